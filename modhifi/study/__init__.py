"""A study: what was observed once, from which everything else is decided in closed form."""

from ._analyze import CLASS_SAMPLES, analyze
from ._layer import LayerStats, Level, Order
from ._tables import LEVELS, ORDERS
from ._types import STUDY_SCHEMA, Study, read_columns

__all__ = [
    "CLASS_SAMPLES",
    "LEVELS",
    "ORDERS",
    "STUDY_SCHEMA",
    "LayerStats",
    "Level",
    "Order",
    "Study",
    "analyze",
    "read_columns",
]
