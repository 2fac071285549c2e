"""What an estimator saw, and how far it may be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["ESTIMATORS", "Estimator", "Gains", "Growth"]

Array = NDArray[np.float64]
Claim = Literal["lower", "upper"]


@dataclass(frozen=True)
class Estimator:
    """One way to come by a layer's constant. ``claim``: on which side of the true constant it lies; ``says``: that in words."""

    name: str
    title: str
    claim: Claim
    says: str

    @property
    def heading(self) -> str:
        """The title where it stands first."""
        return self.title.capitalize()


def _lower(name: str, title: str, how: str) -> Estimator:
    return Estimator(name, title, "lower", f"Lower bound: {how}; other samples can show more.")


ESTIMATORS = {
    one.name: one
    for one in (
        _lower("directional", "directional", "the largest gain seen for the error that an edit makes"),
        _lower("jacobian", "Jacobian", "the largest operator norm of the Jacobian found at the samples"),
        _lower("random", "random", "the largest gain seen for errors of random direction"),
        _lower("pairs", "pairs", "the largest gain seen when a sample's activation takes the place of another's"),
        Estimator(
            "certified",
            "operator norms",
            "upper",
            "Upper bound: products of operator norms along all ways to the logits, sums where ways meet.",
        ),
    )
}
"""Every estimator by name. Each seen on samples is a lower bound of the true constant, and its root-mean-square and quantile
hold for those samples only."""


@dataclass(frozen=True)
class Growth:
    """How an estimate grows with the samples: (S,) each, for ``sizes`` samples.

    ``maximum`` is the expected largest gain among so many of the samples, drawn at random, ``low`` and ``high`` the 5% and
    95% quantiles of it (exact, from order statistics; both end at the largest of all). ``rms`` is the root-mean-square of
    all, with ``rms_low`` and ``rms_high`` the 90% confidence band that so many samples give it (normal approximation).
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
        """By what fraction the largest is expected to grow from half of the samples to all of them."""
        half = float(np.interp(self.sizes[-1] / 2, self.sizes, self.maximum))
        return float(self.maximum[-1]) / half - 1.0 if half > 0 else 0.0


@dataclass(frozen=True)
class Gains:
    """For each sample the squared norm of an error at the layer's output, ``local`` (N,), and of what ``reached`` the network's
    output, (N,). Samples without a local error say nothing and are left out; with none left every gain is 0.
    """

    local: Tensor
    reached: Tensor

    @cached_property
    def ratios(self) -> Array:
        """(M,): the gain of each sample that has a local error."""
        seen = self.local > 0
        return (self.reached[seen].double() / self.local[seen].double()).sqrt().cpu().numpy()

    @property
    def samples(self) -> int:
        return len(self.ratios)

    @property
    def maximum(self) -> float:
        return float(self.ratios.max(initial=0.0))

    @property
    def rms(self) -> float:
        """√(Σ reached / Σ local): times the root-mean-square local error it is the root-mean-square error that arrives."""
        below = float(self.local.double().sum())
        return math.sqrt(float(self.reached[self.local > 0].double().sum()) / below) if below > 0 else 0.0

    def quantile(self, q: float = 0.9) -> float:
        """What a fraction ``q`` of the samples does not exceed."""
        return float(np.quantile(self.ratios, q)) if self.samples else 0.0

    def growth(self, points: int = 24) -> Growth:
        """See `Growth`; ``points``: at how many sizes, evenly spread on a logarithmic axis."""
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
        # The error of a ratio of two means, to first order.
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
        """(2, N) float64, as a study keeps it."""
        return torch.stack([self.local.double(), self.reached.double()]).cpu()

    @classmethod
    def of(cls, stacked: Tensor) -> Gains:
        return cls(stacked[0], stacked[1])


def _all_below(count: int, sizes: NDArray[np.int64]) -> Array:
    """(S, N): the probability that of n out of N samples, drawn without replacement, none is above the k-th smallest:
    C(k, n) / C(N, n).
    """
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])  # of the factorials
    k, n = np.arange(1, count + 1)[None], sizes[:, None]
    few = k < n
    inside = np.where(few, 0, k - n)
    value = logs[k] - logs[inside] - logs[count] + logs[count - n]
    return np.asarray(np.where(few, 0.0, np.exp(value)))
