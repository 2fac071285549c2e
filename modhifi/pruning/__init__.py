"""ModHiFi-P: a study and a budget in, a plan out (theory, section 6)."""

from ._allocate import Allocation, allocate, smallest_cost
from ._prune import prune

__all__ = ["Allocation", "allocate", "prune", "smallest_cost"]
