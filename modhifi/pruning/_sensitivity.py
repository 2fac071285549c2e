"""What each group alone would cost, from the study's curves: coupled layers are one group, and lose the same components."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..specs import Level
from ..study import Study

__all__ = ["SHARES", "sensitivity"]

SHARES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)


def sensitivity(
    study: Study,
    shares: Sequence[float] = SHARES,
    *,
    score: str = "greedy",
    compensate: Level = "full",
    centred: bool | None = None,
) -> dict[str, np.ndarray]:
    """For each group (len(shares),) float64: the estimated root-mean-square error of the logits, ``Σ_l K_l √e_l`` over the layers
    that read it, when that share of it stays (at least one component) and everything else is whole.
    """
    centred = study.centred if centred is None else centred
    found = {}
    for group in study.groups:
        kept = [max(1, math.ceil(share * group.size)) for share in shares]
        errors = [
            study.constant(c.layer) * np.sqrt(study.errors(group.name, c.layer, score, compensate, centred)[kept])
            for c in group.consumers
        ]
        found[group.name] = np.sum(errors, 0)
    return found
