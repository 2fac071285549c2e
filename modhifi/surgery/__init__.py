"""Surgery: turns a plan and a model into a modified model."""

from ._apply import apply
from ._recalibrate import calibration_data, recalibrate, recalibrated
from ._remove import remaining_columns, remove, restructure
from ._verify import verified

__all__ = [
    "apply",
    "calibration_data",
    "recalibrate",
    "recalibrated",
    "remaining_columns",
    "remove",
    "restructure",
    "verified",
]
