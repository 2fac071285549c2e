"""A study: what was observed once, from which everything else is decided in closed form."""

from ._analyze import analyze
from ._tables import LEVELS, ORDERS
from ._types import STUDY_SCHEMA, LayerStats, Study

__all__ = ["LEVELS", "ORDERS", "STUDY_SCHEMA", "LayerStats", "Study", "analyze"]
