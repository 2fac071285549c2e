"""Data: sources, samples and splits."""

from ._arrays import arrays, in_memory
from ._data import Data
from ._images import SUFFIXES as IMAGE_SUFFIXES
from ._load import load_data
from ._parquet import check_parquet
from ._prepare import identify, prepare
from ._sources import DEFAULT_DATA, DataSource, check_split, register_source, source_of, sources
from ._text import SHIPPED_TEXT, tokens_of, windowed

__all__ = [
    "DEFAULT_DATA",
    "IMAGE_SUFFIXES",
    "SHIPPED_TEXT",
    "Data",
    "DataSource",
    "arrays",
    "check_parquet",
    "check_split",
    "identify",
    "in_memory",
    "load_data",
    "prepare",
    "register_source",
    "source_of",
    "sources",
    "tokens_of",
    "windowed",
]
