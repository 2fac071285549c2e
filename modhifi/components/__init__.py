"""Components: coupled groups, the consumers and producers of each component, and costs."""

from ._adapters import Cut, set_right
from ._enumerate import enumerate_components, structure_of
from ._structure import Consumer, Cost, Group, Kind, LayerCost, Share, Skipped, Slice, Structure
from ._trace import flop_counter

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
