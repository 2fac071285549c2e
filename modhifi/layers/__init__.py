"""Working with layers: operators as matrices, edits and hooks, replaying a network from a layer on, running it in sections, and
the route of a layer's output to the addition or activation that follows it. `widened` has a network compute in single precision.
"""

from ._attention import without_fast_path
from ._fold import copied, fold
from ._operators import (
    LAYERS,
    TRANSPOSED,
    Change,
    Edit,
    Operator,
    bias_of,
    change_of,
    changed,
    edited,
    flat_weight,
    get_operator,
    input_axis,
    observed,
    operate,
    outputs_at,
    patches,
    position_count,
    shaped_weight,
    width_of,
)
from ._replay import Replay, batched
from ._routes import Route, followed, rows_at
from ._sections import INPUT, Reached, Sections
from ._substitute import in_single, reweighted, substituted, widened, widened_on_cpu

__all__ = [
    "INPUT",
    "LAYERS",
    "TRANSPOSED",
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
    "copied",
    "edited",
    "flat_weight",
    "fold",
    "followed",
    "get_operator",
    "in_single",
    "input_axis",
    "observed",
    "operate",
    "outputs_at",
    "patches",
    "position_count",
    "reweighted",
    "rows_at",
    "shaped_weight",
    "substituted",
    "widened",
    "widened_on_cpu",
    "width_of",
    "without_fast_path",
]
