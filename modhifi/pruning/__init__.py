"""ModHiFi-P: a study and a budget in, a plan out (theory, section 6), and the methods that it is compared with."""

from ._allocate import Allocation, allocate, smallest_cost, usual_allocation
from ._baselines import BASELINES, NEEDS_LABELS
from ._compare import LANGUAGE_METHODS, METHODS, Compared, Comparison, Method, compare
from ._latency import ALIGNED, LatencyTable, machine_name, measure_table
from ._prune import CHOLESKY, cholesky, prune, score
from ._published import PUBLISHED, published
from ._sensitivity import SHARES, sensitivity

__all__ = [
    "ALIGNED",
    "BASELINES",
    "CHOLESKY",
    "LANGUAGE_METHODS",
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
    "cholesky",
    "compare",
    "machine_name",
    "measure_table",
    "prune",
    "published",
    "score",
    "sensitivity",
    "smallest_cost",
    "usual_allocation",
]
