"""Latency relative to the original network, which was timed in turns with the modified one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Relative", "relative_latency"]


@dataclass(frozen=True)
class Relative:
    """``share``: latency over that of the original network; ``spread``: its uncertainty, None where no spread was
    recorded.
    """

    share: float
    spread: float | None

    @property
    def within_noise(self) -> bool:
        """Whether the change is no larger than the spread."""
        return self.spread is not None and abs(self.share - 1.0) <= self.spread


def relative_latency(evaluation: Mapping[str, Any]) -> Relative | None:
    """From the fields of a `modhifi.Evaluation`; None if either network was not timed.

    The spread combines the interquartile ranges of both networks to first order: share · √((s / t)² + (s₀ / t₀)²).
    """
    now, before = evaluation.get("latency_ms"), evaluation.get("latency_ms_before")
    if now is None or not before:
        return None
    spread, spread_before = evaluation.get("latency_spread_ms"), evaluation.get("latency_spread_ms_before")
    share = now / before
    if spread is None or spread_before is None:
        return Relative(share, None)
    return Relative(share, math.hypot(spread, share * spread_before) / before)
