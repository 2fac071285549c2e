"""What pruning does to the network's output, predicted in closed form from a study: relative error and agreement.

The error of layer ``l`` on unseen samples, ``e_l``, reaches the output with the root-mean-square gain ``K_l`` of the directional
constants. Consumers of one group lose the same components, so their amplitudes are added, and errors of different groups are
taken as uncorrelated: ``σ² = Σ_g (Σ_l K_l √e_l)²``, the quantity that global allocation minimises. The relative error is
``σ / √E‖f − E f‖²``.

For the agreement, every sample of the constants has, for every layer, the root-mean-square error at which its first answer
changes if the error that was seen there grows in proportion (`Gains.critical`). The agreement is the share of those above σ, with
each layer weighted by its part of σ². No label is used.

How far measured errors lie from this is known from other networks: their ratio is taken as log-normal, with one part that a
network keeps at every budget and one that it does not (`_RATIOS`). Measurements of other plans of the same study settle the
first. See docs/theory.md, *Predictions*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..specs import Compensation
from ..study import Study

__all__ = ["Prediction", "Ratio", "predict_outcome"]

# 90% of a normal distribution lies within this many standard deviations.
_NINE_IN_TEN = 1.645


@dataclass(frozen=True)
class Ratio:
    """The logarithm of measured over closed-form relative error: its ``mean``, its standard deviation ``between`` networks, and
    that ``within`` one network, from budget to budget.
    """

    mean: float
    between: float
    within: float

    def given(self, logs: Sequence[float]) -> tuple[float, float]:
        """Mean and standard deviation of the next one for a network that had these."""
        precision = 1 / self.between**2 + len(logs) / self.within**2
        mean = (self.mean / self.between**2 + sum(logs) / self.within**2) / precision
        return mean, math.sqrt(self.within**2 + 1 / precision)


# Of the networks in docs/results/predictions.md.
_RATIOS: Mapping[Compensation, Ratio] = {
    "none": Ratio(0.3, 0.5, 0.35),
    "scalar": Ratio(0.15, 0.3, 0.3),
    "full": Ratio(0.15, 0.3, 0.3),
    "sequential": Ratio(-0.2, 0.5, 0.2),
}


@dataclass(frozen=True)
class Prediction:
    """Relative error of the output, ``√(E‖f − f̂‖² / E‖f − E f‖²)``, lower is better, and agreement, the share of samples whose
    first answer stays, higher is better; each with the interval that holds what is measured on unseen samples 9 times in 10.
    Agreement is None where the output is not a row of logits. ``closed_form`` is the relative error before it is corrected by
    the ratios seen elsewhere.
    """

    relative_error: float
    relative_error_low: float
    relative_error_high: float
    agreement: float | None
    agreement_low: float | None
    agreement_high: float | None
    closed_form: float


def predict_outcome(
    study: Study,
    amplitudes: Mapping[str, Mapping[str, float]],
    compensate: Compensation,
    measured: Sequence[tuple[float, float]] = (),
    ratio: Ratio | None = None,
) -> Prediction | None:
    """The prediction if group ``g`` contributes ``amplitudes[g][l]`` = √e_l to the error of layer ``l``; None if the study has
    no directional constants.

    ``measured``: ``closed_form`` and measured relative error of other plans of the same study and compensation. ``ratio``: what
    is known of other networks; by default that of docs/results/predictions.md.
    """
    if "directional" not in study.estimators or not study.variance:
        return None
    total, parts = 0.0, dict[str, float]()
    for by_layer in amplitudes.values():
        reached = {layer: study.constant(layer, typical=True) * error for layer, error in by_layer.items()}
        together = sum(reached.values())
        total += together**2
        for layer, one in reached.items():
            parts[layer] = parts.get(layer, 0.0) + one * together
    plain = math.sqrt(total / study.variance)
    logs = [math.log(after / before) for before, after in measured if before > 0 and after > 0]
    mean, spread = (ratio or _RATIOS[compensate]).given(logs)
    middle, low, high = (plain * math.exp(mean + sign * _NINE_IN_TEN * spread) for sign in (0, -1, 1))
    size = math.sqrt(study.variance)
    shares = [_agreement(study, parts, size * one) for one in (middle, high, low)]
    likely, least, most = shares
    if likely is None or least is None or most is None:
        return Prediction(middle, low, high, None, None, None, plain)
    samples = max(one.samples for one in study.gains["directional"].values())
    return Prediction(
        middle, low, high, likely, _wilson(least, samples, -1), _wilson(most, samples, 1) if total > 0 else 1.0, plain
    )


def _agreement(study: Study, parts: Mapping[str, float], sigma: float) -> float | None:
    """The share of samples whose answer stays under an error of ``sigma``, if the layers' parts of it are as ``parts``."""
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


def _wilson(share: float, samples: int, sign: int) -> float:
    """The end of the 90% score interval (Wilson 1927) of a ``share`` seen on so many samples: the lower for ``sign`` −1."""
    z2 = _NINE_IN_TEN**2 / samples
    root = math.sqrt(max(0.0, share * (1 - share) * z2 + z2**2 / 4))
    return min(1.0, max(0.0, (share + z2 / 2 + sign * root) / (1 + z2)))
