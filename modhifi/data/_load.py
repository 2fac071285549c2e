"""From a spec to data (contract: DATA)."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from ._digits import digits
from ._types import Data

__all__ = ["DEFAULT_DATA", "load_data"]

DEFAULT_DATA = "digits"


def load_data(
    spec: str = DEFAULT_DATA,
    root: str | Path | None = None,
    split: str | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> Data:
    if spec != DEFAULT_DATA:
        raise UserError(f"unknown data {spec!r}")
    split = split or "calibration"
    if split not in ("train", "calibration", "test"):
        raise UserError(f"digits has no split {split!r}; there is train, calibration, test")
    data = digits(split)
    return data if samples is None else data.take(samples, seed)
