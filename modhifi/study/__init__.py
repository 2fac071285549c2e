"""Studies: statistics that are collected once and from which everything else follows in closed form."""

from ._analyze import CLASS_SAMPLES, analyze
from ._constants import CONSTANT_SAMPLES, CONSTANTS, estimate, usual
from ._folder import STUDY_SCHEMA, read_columns
from ._layer import LayerStats, Level
from ._study import Study
from ._tables import LEVELS, ORDERS, SCORES

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
    "read_columns",
    "usual",
]
