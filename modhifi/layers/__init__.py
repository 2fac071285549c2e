"""Working with layers: operators as matrices, edits and hooks, replaying a network from a layer on, running it in sections, and
the route of a layer's output to the addition or activation that follows it. `widened` has a network compute in single precision.
"""

from ._operators import (
    Change,
    Edit,
    Operator,
    bias_of,
    change_of,
    changed,
    edited,
    flat_weight,
    get_operator,
    observed,
    operate,
    outputs_at,
    patches,
    position_count,
)
from ._replay import Replay, batched
from ._routes import Route, followed, rows_at
from ._sections import INPUT, Reached, Sections
from ._substitute import in_single, reweighted, substituted, widened, widened_on_cpu

__all__ = [
    "INPUT",
    "Change",
    "Edit",
    "Operator",
    "Reached",
    "Replay",
    "Route",
    "Sections",
    "batched",
    "bias_of",
    "change_of",
    "changed",
    "edited",
    "flat_weight",
    "followed",
    "get_operator",
    "in_single",
    "observed",
    "operate",
    "outputs_at",
    "patches",
    "position_count",
    "reweighted",
    "rows_at",
    "substituted",
    "widened",
    "widened_on_cpu",
]
