"""Sensitivity: predicted error if one group alone is pruned, from the study's curves."""

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
    """Group → (len(shares),) float64: the estimated root-mean-square error of the logits, ``Σ_l K_l √e_l`` over the layers
    that read the group, if it alone keeps that share of its components (at least one). Lower is better.
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
