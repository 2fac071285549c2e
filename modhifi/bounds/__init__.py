"""The bound of Thm. 3.6, predicted and measured: how far local errors reach (theory, section 5)."""

from ._measure import GRAINS, BoundReport, BoundRow, Grain, HeldOut, measure
from ._predict import predict

__all__ = ["GRAINS", "BoundReport", "BoundRow", "Grain", "HeldOut", "measure", "predict"]
