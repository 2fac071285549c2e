"""What pruning does to the network's output, predicted in closed form from a study: relative error and agreement.

The error of layer ``l`` on unseen samples, ``e_l``, reaches the output with the root-mean-square gain ``K_l`` of the directional
constants. Consumers of one group lose the same components, so their amplitudes are added, and errors of different groups are
taken as uncorrelated: ``σ² = Σ_g (Σ_l K_l √e_l)²``, the quantity that global allocation minimises. The relative error is
``σ / √E‖f − E f‖²``.

For the agreement, every sample of the constants has, for every layer, the root-mean-square error at which its first answer
changes if the error that was seen there grows in proportion (`Gains.critical`). The agreement is the share of those above σ, with
each layer weighted by its part of σ². No label is used. See docs/theory.md, *Predictions*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..study import Study

__all__ = ["Outcome", "outcome"]


@dataclass(frozen=True)
class Outcome:
    """``error``: σ, the root-mean-square error of the output; ``relative``: over the spread of the output; ``agreement``: share
    of samples whose first answer stays, None where the output is not a row of logits.
    """

    error: float
    relative: float
    agreement: float | None


def outcome(study: Study, amplitudes: Mapping[str, Mapping[str, float]], factor: float = 1.0) -> Outcome | None:
    """The prediction if group ``g`` contributes ``amplitudes[g][l]`` = √e_l to the error of layer ``l``; None if the study has
    no directional constants. ``factor`` multiplies σ.
    """
    if "directional" not in study.estimators or study.variance is None:
        return None
    total, parts = 0.0, dict[str, float]()
    for by_layer in amplitudes.values():
        reached = {layer: study.constant(layer, typical=True) * error for layer, error in by_layer.items()}
        together = sum(reached.values())
        total += together**2
        for layer, one in reached.items():
            parts[layer] = parts.get(layer, 0.0) + one * together
    sigma = factor * math.sqrt(total)
    relative = sigma / math.sqrt(study.variance) if study.variance > 0 else 0.0
    return Outcome(sigma, relative, _agreement(study, parts, sigma))


def _agreement(study: Study, parts: Mapping[str, float], sigma: float) -> float | None:
    gains = study.gains["directional"]
    if all(one.flips is None for one in gains.values()):
        return None
    above, whole = 0.0, 0.0
    for layer, part in parts.items():
        critical = gains[layer].critical
        if critical is not None and part > 0:
            above += part * (1.0 - float(np.searchsorted(critical, sigma, side="right")) / len(critical))
            whole += part
    return above / whole if whole > 0 else 1.0
