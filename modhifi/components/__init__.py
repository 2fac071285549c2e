"""Components: coupled groups, the consumers and producers of each component, the cost of one."""

from ._adapters import Cut, set_right
from ._enumerate import enumerate_components, structure_of
from ._trace import flop_counter
from ._types import Consumer, Cost, Group, Kind, LayerCost, Share, Skipped, Slice, Structure

__all__ = [
    "Consumer",
    "Cost",
    "Cut",
    "Group",
    "Kind",
    "LayerCost",
    "Share",
    "Skipped",
    "Slice",
    "Structure",
    "enumerate_components",
    "flop_counter",
    "set_right",
    "structure_of",
]
