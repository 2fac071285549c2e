"""How close two networks' outputs are, without labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..data import Data, identify, load_data
from ..errors import UserError
from ..models import Model

__all__ = ["Closeness", "calibration_samples"]

# Logits that are held in double precision at once: 32 MiB.
_AT_ONCE = 1 << 22


class Closeness:
    """Sums over samples (for language models, tokens), from which three measures follow. ``f`` are the logits of the baseline,
    ``f̂`` those of the modified network, ``p`` and ``p̂`` their softmax:

    - ``agreement``: share of samples for which ``argmax f = argmax f̂``, in [0, 1]; higher is better;
    - ``relative_error``: ``√(E‖f − f̂‖² / E‖f − E f‖²)``: 0 if nothing has changed, 1 for a network that always gives the mean
      answer; lower is better. None if the baseline gives the same logits for all samples;
    - ``kl``: mean of ``Σ_k p_k log(p_k / p̂_k)`` in nats; 0 if nothing has changed; lower is better.

    All are None before the first sample, and where they are not finite; the first and the last also without ``classes``, if the
    outputs are no logits. No logits are kept: the variance of ``f`` is merged batch by batch (Chan, Golub and LeVeque,
    *Algorithms for Computing the Sample Variance*, 1983).
    """

    def __init__(self, classes: bool = True) -> None:
        self.classes = classes
        self.count = self.same = 0
        self.error = self.spread = self.divergence = 0.0
        self.mean: Tensor | None = None

    def take(self, before: Tensor, after: Tensor) -> None:
        """Adds the logits (N, K) of the baseline and of the modified network for the same samples, in any float dtype. Raises
        ValueError if their shapes differ.
        """
        if before.shape != after.shape:
            raise ValueError(f"the logits have the shapes {tuple(before.shape)} and {tuple(after.shape)}")
        step = max(1, _AT_ONCE // max(1, before.shape[1]))
        for f, g in zip(before.split(step), after.split(step), strict=True):
            self._add(f, g)

    def _add(self, f: Tensor, g: Tensor) -> None:
        if not len(f):
            return
        self.same += int((f.argmax(1) == g.argmax(1)).sum())
        if f.device.type == "mps":  # it has no float64
            f, g = f.cpu(), g.cpu()
        f, g = f.double(), g.double()
        self.error += float((f - g).square().sum())
        log_p, log_q = f.log_softmax(1), g.log_softmax(1)
        p = log_p.exp()
        self.divergence += float(torch.where(p > 0, p * (log_p - log_q), 0.0).sum())
        mean, count = f.mean(0), len(f)
        self.spread += float((f - mean).square().sum())
        if self.mean is None:
            self.mean = mean
        else:
            apart = mean - self.mean
            total = self.count + count
            self.spread += float(apart.square().sum()) * self.count * count / total
            self.mean = self.mean + apart * (count / total)
        self.count += count

    @property
    def agreement(self) -> float | None:
        return self.same / self.count if self.count and self.classes else None

    @property
    def relative_error(self) -> float | None:
        return _finite(math.sqrt(self.error / self.spread)) if self.spread > 0 else None

    @property
    def kl(self) -> float | None:
        # Rounding can leave a divergence of nothing just below zero.
        return (
            _finite(max(0.0, self.divergence / self.count))
            if self.count and self.classes and not math.isnan(self.divergence)
            else None
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def calibration_samples(data: Data, model: Model, original: Model) -> int | None:
    """How many samples of ``data`` the plan of ``model`` was calibrated on: on these, it looks better than it is. A text counts
    as a whole, since its windows may lie elsewhere. None if ``model`` has no plan, or if the calibration samples cannot be opened
    any more. ``original``: the network before the plan, for which some sources generate their images.

    Samples are the same if they are at the same place of the same source; copies elsewhere are not found.
    """
    if model.plan is None:
        return None
    ref = model.plan.calibration
    if (data.spec, data.root) != (ref.spec, ref.root):
        return 0
    try:
        known = load_data(ref.spec, ref.root, ref.split)
        if known.text is not None:
            return len(data) if known.text == data.text else 0
        known = identify(known.take(ref.samples, ref.seed), original)
    except UserError:
        return None
    if known.ref.fingerprint != ref.fingerprint:  # changed since
        return None
    return len(set(known.order) & set(data.order)) if known.source == data.source else 0
