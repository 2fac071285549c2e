"""ModHiFi-P: a study and a budget in, a plan out (theory, section 6), and the methods that it is compared with."""

from ._allocate import Allocation, allocate, smallest_cost
from ._baselines import BASELINES, NEEDS_LABELS
from ._compare import METHODS, Compared, Comparison, Method, compare
from ._latency import ALIGNED, LatencyTable, machine_name, measure_table
from ._prune import prune, score
from ._published import PUBLISHED, published
from ._sensitivity import SHARES, sensitivity

__all__ = [
    "ALIGNED",
    "BASELINES",
    "METHODS",
    "NEEDS_LABELS",
    "PUBLISHED",
    "SHARES",
    "Allocation",
    "Compared",
    "Comparison",
    "LatencyTable",
    "Method",
    "allocate",
    "compare",
    "machine_name",
    "measure_table",
    "prune",
    "published",
    "score",
    "sensitivity",
    "smallest_cost",
]
