"""A study: what was observed once, from which everything else is decided in closed form."""

from ._analyze import CLASS_SAMPLES, analyze
from ._constants import CONSTANT_SAMPLES, CONSTANTS, estimate, estimators_for, usual
from ._layer import LayerStats, Level
from ._tables import LEVELS, ORDERS, SCORES
from ._types import STUDY_SCHEMA, Study, read_columns

__all__ = [
    "CLASS_SAMPLES",
    "CONSTANTS",
    "CONSTANT_SAMPLES",
    "LEVELS",
    "ORDERS",
    "SCORES",
    "STUDY_SCHEMA",
    "LayerStats",
    "Level",
    "Study",
    "analyze",
    "estimate",
    "estimators_for",
    "read_columns",
    "usual",
]
