"""Components: coupled groups, the consumers and producers of each component, the cost of one."""

from ._enumerate import dependency_graph, enumerate_components, prune_out
from ._types import Consumer, Cost, Group, LayerCost, Skipped, Structure

__all__ = [
    "Consumer",
    "Cost",
    "Group",
    "LayerCost",
    "Skipped",
    "Structure",
    "dependency_graph",
    "enumerate_components",
    "prune_out",
]
