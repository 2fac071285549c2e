"""The gains that an estimator saw, and how far they can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln
from torch import Tensor

__all__ = ["Gains", "Growth"]

Array = NDArray[np.float64]
# Sums of bounds with such constants are still finite.
_LARGEST = 1e100


@dataclass(frozen=True)
class Growth:
    """How an estimate grows with the number of samples, ``sizes``: (S,) each.

    ``maximum`` is the expected largest gain among that many of the samples, drawn at random; ``low`` and ``high`` are its 5%
    and 95% quantiles (exact, from order statistics; both end at the largest gain of all). ``rms`` is the root-mean-square over
    all samples; ``rms_low`` and ``rms_high`` are the 90% confidence band that each number of samples gives (normal
    approximation).
    """

    sizes: NDArray[np.int64]
    maximum: Array
    low: Array
    high: Array
    rms: float
    rms_low: Array
    rms_high: Array

    @property
    def last_doubling(self) -> float:
        """The fraction by which the largest gain is expected to grow from half of the samples to all of them."""
        half = float(np.interp(self.sizes[-1] / 2, self.sizes, self.maximum))
        return float(self.maximum[-1]) / half - 1.0 if half > 0 else 0.0


@dataclass(frozen=True)
class Gains:
    """For each sample, the squared norm of an error at the layer's output, ``local`` (N,), and of what ``reached`` the
    network's output, (N,). Samples without a local error carry no information and are omitted; if none remain, every gain is
    0.

    ``flips`` (2, N), where the output is a row of logits: the multiple of what reached it, and of its opposite, at which the
    largest logit is no longer the same, to first order; at most 10³⁰. None elsewhere.
    """

    local: Tensor
    reached: Tensor
    flips: Tensor | None = None

    @cached_property
    def ratios(self) -> Array:
        """(M,): the gain of each sample that has a local error."""
        seen = self.local > 0
        return (self.reached[seen].double() / self.local[seen].double()).sqrt().cpu().numpy()

    @property
    def samples(self) -> int:
        return len(self.ratios)

    @cached_property
    def maximum(self) -> float:
        return float(self.ratios.max(initial=0.0))

    @cached_property
    def rms(self) -> float:
        """√(Σ reached / Σ local): times the root-mean-square local error, it gives the root-mean-square error at the output."""
        below = float(self.local.double().sum())
        return math.sqrt(float(self.reached[self.local > 0].double().sum()) / below) if below > 0 else 0.0

    @cached_property
    def critical(self) -> Array | None:
        """Ascending: the root-mean-square errors at the output at which one sample's answer changes, if its error grows in
        proportion to what was seen, in either direction. None where that is not known.
        """
        seen = self.local > 0
        if self.flips is None or not bool(seen.any()):
            return None
        size = self.reached[seen].double().mean().sqrt()
        return np.sort((self.flips[:, seen].double() * size).flatten().cpu().numpy())

    def quantile(self, q: float = 0.9) -> float:
        """The gain that a fraction ``q`` of the samples does not exceed."""
        return float(np.quantile(self.ratios, q)) if self.samples else 0.0

    def growth(self, points: int = 24) -> Growth:
        """See `Growth`; ``points``: the number of sizes, evenly spaced on a logarithmic axis."""
        count = self.samples
        sizes = np.unique(np.geomspace(1, max(count, 1), points).round().astype(np.int64))
        if not count:
            nothing = np.zeros(1)
            return Growth(sizes, nothing, nothing, nothing, 0.0, nothing, nothing)
        ordered = np.sort(self.ratios)
        below = _all_below(count, sizes)
        chance = np.diff(below, axis=1, prepend=0.0)
        seen = self.local > 0
        local, reached = self.local[seen].double().cpu().numpy(), self.reached[seen].double().cpu().numpy()
        ratio = reached.sum() / local.sum()
        # The standard error of a ratio of two means to first order, before division by √n.
        spread = float(np.std(reached - ratio * local) / local.mean())
        band = 1.645 * spread / np.sqrt(sizes)
        return Growth(
            sizes=sizes,
            maximum=chance @ ordered,
            low=ordered[(below >= 0.05 - 1e-12).argmax(1)],
            high=ordered[(below >= 0.95 - 1e-12).argmax(1)],
            rms=math.sqrt(ratio),
            rms_low=np.sqrt(np.maximum(ratio - band, 0.0)),
            rms_high=np.sqrt(ratio + band),
        )

    def stacked(self) -> Tensor:
        """(2, N) float64, as stored in a study; (4, N) with ``flips``."""
        rows = torch.stack([self.local.double(), self.reached.double()]).cpu()
        return rows if self.flips is None else torch.cat([rows, self.flips.double().cpu()])

    @classmethod
    def of(cls, stacked: Tensor) -> Gains:
        """From `stacked`. Raises `ValueError` for values that are no squared norms: they may come from a damaged file."""
        if stacked.ndim != 2 or len(stacked) not in (2, 4) or not stacked.is_floating_point():
            raise ValueError("its gains are not two or four rows of numbers")
        if not bool((stacked.isfinite() & (stacked >= 0)).all()):
            raise ValueError("its gains are not finite and positive")
        found = cls(stacked[0], stacked[1], stacked[2:] if len(stacked) > 2 else None)
        if not max(found.maximum, found.rms) < _LARGEST:
            raise ValueError("its gains are larger than any network's")
        return found


def _all_below(count: int, sizes: NDArray[np.int64]) -> Array:
    """(S, N): the probability that none of n samples, drawn from N without replacement, exceeds the k-th smallest:
    C(k, n) / C(N, n).
    """
    logs = gammaln(np.arange(count + 1) + 1.0)  # of the factorials
    k, n = np.arange(1, count + 1)[None], sizes[:, None]
    few = k < n
    inside = np.where(few, 0, k - n)
    value = logs[k] - logs[inside] - logs[count] + logs[count - n]
    return np.asarray(np.where(few, 0.0, np.exp(value)))
