"""Statistics: what is collected in one pass over unlabelled data (theory, section 3)."""

from ._blocks import Stream, collect_blocks, entered
from ._collect import Collected, Partial, collect, process_count, process_rank, share
from ._moments import MAX_INPUTS, Moments, partition
from ._positions import draw
from ._singletons import collect_singletons

__all__ = [
    "MAX_INPUTS",
    "Collected",
    "Moments",
    "Partial",
    "Stream",
    "collect",
    "collect_blocks",
    "collect_singletons",
    "draw",
    "entered",
    "partition",
    "process_count",
    "process_rank",
    "share",
]
