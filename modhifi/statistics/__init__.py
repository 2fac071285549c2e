"""Statistics collected in one pass over unlabelled data; see docs/theory.md, *Collecting the statistics*."""

from ._blocks import Stream, collect_blocks, entered
from ._collect import Collected, Partial, collect, process_count, process_rank, share
from ._in_sequence import Affine, InSequence, Seen, Site, able
from ._moments import FOLDS, MAX_INPUTS, Moments, partition
from ._positions import draw
from ._singletons import collect_singletons

__all__ = [
    "FOLDS",
    "MAX_INPUTS",
    "Affine",
    "Collected",
    "InSequence",
    "Moments",
    "Partial",
    "Seen",
    "Site",
    "Stream",
    "able",
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
