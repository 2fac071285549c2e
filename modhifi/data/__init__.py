"""Data: specs, sources and their splits (contract: DATA)."""

from ._images import SUFFIXES as IMAGE_SUFFIXES
from ._inversion import made_for, meant_for
from ._load import DEFAULT_DATA, SYNTHETIC, load_data
from ._text import SHIPPED_TEXT, tokens_of, windowed
from ._types import Data, DataRef

__all__ = [
    "DEFAULT_DATA",
    "IMAGE_SUFFIXES",
    "SHIPPED_TEXT",
    "SYNTHETIC",
    "Data",
    "DataRef",
    "load_data",
    "made_for",
    "meant_for",
    "tokens_of",
    "windowed",
]
