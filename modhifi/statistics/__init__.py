"""Statistics: what is collected in one pass over unlabelled data (theory, section 3)."""

from ._collect import Collected, Partial, collect, process_count, process_rank, share
from ._moments import MAX_INPUTS, Moments, partition
from ._positions import draw
from ._singletons import collect_singletons

__all__ = [
    "MAX_INPUTS",
    "Collected",
    "Moments",
    "Partial",
    "collect",
    "collect_singletons",
    "draw",
    "partition",
    "process_count",
    "process_rank",
    "share",
]
