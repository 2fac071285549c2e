"""The bound on the output error (ModHiFi, Thm. 3.6), predicted and measured.

See docs/theory.md, *Lipschitz constants and the bound*.
"""

from ._measure import GRAINS, BoundReport, BoundRow, Grain, HeldOut, measure
from ._predict import predict

__all__ = ["GRAINS", "BoundReport", "BoundRow", "Grain", "HeldOut", "measure", "predict"]
