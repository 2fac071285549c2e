"""Statistics collected in one pass over unlabelled data; see docs/theory.md, *Collecting the statistics*."""

from ._blocks import Stream, collect_blocks, entered
from ._collect import Collected, Partial, collect, process_count, process_rank, share
from ._in_sequence import Affine, Observed, Site, able, at_most, fit_in_sequence, observe
from ._moments import FOLDS, MAX_INPUTS, Moments, partition
from ._positions import draw
from ._singletons import collect_singletons

__all__ = [
    "FOLDS",
    "MAX_INPUTS",
    "Affine",
    "Collected",
    "Moments",
    "Observed",
    "Partial",
    "Site",
    "Stream",
    "able",
    "at_most",
    "collect",
    "collect_blocks",
    "collect_singletons",
    "draw",
    "entered",
    "fit_in_sequence",
    "observe",
    "partition",
    "process_count",
    "process_rank",
    "share",
]
