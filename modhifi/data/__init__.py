"""Data: specs, sources and their splits (contract: DATA)."""

from ._types import Data, DataRef

__all__ = ["Data", "DataRef"]
