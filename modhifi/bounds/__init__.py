"""The bound of Thm. 3.6, predicted and measured: how far local errors reach (theory, section 5)."""

from ._measure import BoundReport, BoundRow, measure

__all__ = ["BoundReport", "BoundRow", "measure"]
