"""Surgery: a plan and a model in, a changed model out."""

from ._apply import apply, restructure
from ._recalibrate import recalibrate, recalibrated

__all__ = ["apply", "recalibrate", "recalibrated", "restructure"]
