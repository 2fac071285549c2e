"""Fitting a layer to rows of its input and of its target output.

Sequential compensation weights all rows equally (docs/theory.md, *Compensation*); unlearning weights them (*Pruning and
unlearning*).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._moments import factored

__all__ = ["SPREAD", "TAIL", "Averages", "Limit", "Sums", "fit_moments", "fit_rows"]

# The smallest ridge to try is the largest eigenvalue for which it and all smaller ones together hold at most this share of the
# input's energy: directions that the input hardly ever takes do not change the weights.
TAIL = 1e-4
# Larger ones to choose from, relative to the mean eigenvalue.
_RIDGES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
# A fit gives the part of the target that the inputs determine, and less of its spread. Layers that follow have thresholds and
# a ridge towards weights made for the whole of it. This power of the lost factor is given back; 0 is the least-squares fit, 1
# the spread of the target. See docs/theory.md, *Compensation*.
SPREAD = 0.5
# A fit that explains nearly nothing is enlarged by no more than this factor.
_LARGEST = 3.0
# How often a layer in front of a ReLU is refitted.
_ROUNDS = 3


@dataclass(frozen=True)
class Limit:
    """For outputs that a ReLU cuts off: ``free`` (r, O) bool marks them, and ``bound`` (O,) or (r, O) limits them from above,
    or from below where ``falling`` (O,) is true.
    """

    free: Tensor
    bound: Tensor
    falling: Tensor

    def follow(self, target: Tensor, found: Tensor) -> Tensor:
        """``target`` where it must be met; elsewhere ``found``, clipped to the bound."""
        within = torch.where(self.falling, torch.maximum(found, self.bound), torch.minimum(found, self.bound))
        return torch.where(self.free, within, target)


@dataclass(frozen=True)
class Averages:
    """Of the input and the target of a layer over some rows: ``second`` = E[x xᵀ] (n, n), ``cross`` = E[y xᵀ] (O, n), the means
    ``x`` (n,) and ``y`` (O,), all in the precision to solve in, and the ``count`` of rows.
    """

    second: Tensor
    cross: Tensor
    x: Tensor
    y: Tensor
    count: float

    def about(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """``second`` and ``cross`` of x − ``x`` and y − ``y``."""
        apart, beside = self.x - x, self.y - y
        second = self.second - torch.outer(self.x, self.x) + torch.outer(apart, apart)
        return second, self.cross - torch.outer(self.y, self.x) + torch.outer(beside, apart)

    @classmethod
    def of(cls, parts: Sequence[Averages]) -> Averages:
        """Over the rows of all ``parts`` together."""
        total = sum(part.count for part in parts)

        def average(values: Sequence[Tensor]) -> Tensor:
            first = values[0] * (parts[0].count / total)
            for value, part in zip(values[1:], parts[1:], strict=True):
                first += value * (part.count / total)
            return first

        return cls(
            average([part.second for part in parts]),
            average([part.cross for part in parts]),
            average([part.x for part in parts]),
            average([part.y for part in parts]),
            total,
        )


class Sums:
    """What `Averages` are taken of: batches of rows, added up in single precision."""

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        # MPS has no float64.
        self.exact = torch.float32 if device.type == "mps" else torch.float64
        self.second = torch.zeros(inputs, inputs, device=device)
        self.cross = torch.zeros(outputs, inputs, device=device)
        self.x = torch.zeros(inputs, dtype=self.exact, device=device)
        self.y = torch.zeros(outputs, dtype=self.exact, device=device)
        self.count = 0

    def add(self, rows: Tensor, target: Tensor) -> None:
        """Adds ``rows`` (r, n) and ``target`` (r, O), float32."""
        self.second.addmm_(rows.T, rows)
        self.cross.addmm_(target.T, rows)
        self.x += rows.to(self.exact).sum(0)
        self.y += target.to(self.exact).sum(0)
        self.count += len(rows)

    def averages(self) -> Averages:
        second, cross = self.second.to(self.exact) / self.count, self.cross.to(self.exact) / self.count
        return Averages(second, cross, self.x / self.count, self.y / self.count, self.count)


def fit_rows(
    rows: Tensor,
    target: Tensor,
    own: Tensor,
    tail: float,
    centred: bool,
    limit: Limit | None = None,
    share: Tensor | None = None,
    fold: Tensor | None = None,
    spread: float = 0.0,
) -> tuple[Tensor, Tensor, float]:
    """``W' = argmin E‖y − W'x − b‖² + λ‖W' − W‖²`` from ``rows`` (r, n), ``target`` (r, O) and the weights ``own`` (O, n).

    Returns W' (O, n) and b (O,), both float64, and λ relative to the mean eigenvalue of E[x xᵀ]. b is 0 unless ``centred``.
    Without ``fold``, λ is the largest eigenvalue for which it and all smaller ones hold at most ``tail`` of the trace. With the
    number of each row's fold, (r,) int64, it is that or a larger one, whichever has the smallest error on folds that the fit
    has not seen. With a ``limit``, fitting alternates with moving the free targets to the fit. ``share`` (r,), positive, weights
    the rows in every expectation; equal weights by default. ``spread``: see `SPREAD`.
    """
    exact = torch.float32 if rows.device.type == "mps" else torch.float64
    each = rows.new_full((len(rows), 1), 1 / len(rows)) if share is None else (share / share.sum())[:, None].to(rows)

    def mean(values: Tensor) -> Tensor:
        return (values * each).to(exact).sum(0) if centred else values.new_zeros(values.shape[1], dtype=exact)

    mean_x, mean_y = mean(rows), mean(target)
    x, y = rows - mean_x.to(rows), target - mean_y.to(target)
    weighted = x * each

    def averages(chosen: Tensor) -> Averages:
        some, weight, aim = x[chosen], weighted[chosen], y[chosen]
        count = float(each[chosen].double().sum())
        second, cross = (weight.T @ some).to(exact) / count, (aim.T @ weight).to(exact) / count
        return Averages(
            second, cross, weight.to(exact).sum(0) / count, (aim * each[chosen]).to(exact).sum(0) / count, count
        )

    folds = [] if fold is None else [averages(fold == number) for number in fold.unique()]
    second = Averages.of(folds).second if len(folds) > 1 else (weighted.T @ x).to(exact)
    factor, ridge, relative = _regularised(second, tail, folds, own, centred)

    def solved(target: Tensor) -> tuple[Tensor, Tensor]:
        mean_y = mean(target)
        cross = ((target - mean_y.to(target)).T @ weighted).to(exact) + ridge * own.to(exact)
        weight = torch.cholesky_solve(cross.T, factor).T
        return weight, mean_y - weight @ mean_x

    weight, constant = solved(target)
    for _ in range(0 if limit is None else _ROUNDS):
        assert limit is not None
        weight, constant = solved(limit.follow(target, rows @ weight.to(rows).T + constant.to(rows)))
    if spread:
        aim = target if limit is None else limit.follow(target, rows @ weight.to(rows).T + constant.to(rows))
        mean_y = mean(aim)
        power = ((aim - mean_y.to(aim)).square() * each).to(exact).sum(0)
        found = ((x @ weight.to(rows).T).square() * each).to(exact).sum(0)
        weight = weight * _restored(power, found, spread)
        constant = mean_y - weight @ mean_x
    return weight, constant, relative


def _restored(power: Tensor, found: Tensor, spread: float) -> Tensor:
    """The factors (O, 1) of the weights of a fit whose outputs have the power ``found`` (O,) and whose targets have ``power``."""
    ratio = (power / found.clamp_min(torch.finfo(found.dtype).tiny)).sqrt()
    return ratio.clamp(1.0, _LARGEST).pow(spread)[:, None]


def fit_moments(folds: Sequence[Averages], own: Tensor, tail: float, centred: bool) -> tuple[Tensor, Tensor, float]:
    """`fit_rows` from the averages of each fold instead of the rows."""
    whole = Averages.of(folds)
    x, y = (whole.x, whole.y) if centred else (torch.zeros_like(whole.x), torch.zeros_like(whole.y))
    second, cross = whole.about(x, y)
    factor, ridge, relative = _regularised(second, tail, folds, own, centred)
    weight = torch.cholesky_solve((cross + ridge * own.to(cross)).T, factor).T
    return weight, y - weight @ x, relative


def _regularised(
    second: Tensor, tail: float, folds: Sequence[Averages], own: Tensor, centred: bool
) -> tuple[Tensor, float, float]:
    """The Cholesky factor of ``second`` + λI, λ, and λ relative to the mean eigenvalue; adds λI to ``second`` in place."""
    mean = max(float(second.diagonal().mean()), 1e-12)
    ridge = max(_tail_eigenvalue(second, tail), 1e-12)
    if len(folds) > 1:
        ridge = _chosen(folds, own, centred, [ridge, *(mean * larger for larger in _RIDGES if mean * larger > ridge)])
    second.diagonal().add_(ridge)
    factor, extra = factored(second)
    return factor, ridge + extra, (ridge + extra) / mean


def _chosen(folds: Sequence[Averages], own: Tensor, centred: bool, ridges: Sequence[float]) -> float:
    """The one of ``ridges`` whose fits to all folds but one have the smallest error on that one."""
    errors = torch.zeros(len(ridges), dtype=torch.float64)
    for number, judge in enumerate(folds):
        train = Averages.of([one for index, one in enumerate(folds) if index != number])
        x, y = (train.x, train.y) if centred else (torch.zeros_like(train.x), torch.zeros_like(train.y))
        second, cross = train.about(x, y)
        tested, wanted = judge.about(x, y)
        for index, ridge in enumerate(ridges):
            regular = second.clone()
            regular.diagonal().add_(ridge)
            factor, _ = factored(regular)
            weight = torch.cholesky_solve((cross + ridge * own.to(cross)).T, factor).T
            # E‖y − W'x‖² without E‖y‖², which no choice changes.
            error = ((weight @ tested - 2.0 * wanted) * weight).sum()
            errors[index] += judge.count * float(error)
    return ridges[int(errors.argmin())]


def _tail_eigenvalue(second: Tensor, tail: float) -> float:
    # Single precision suffices for a threshold, and takes a fraction of the time for wide layers.
    values = torch.linalg.eigvalsh(second.float()).clamp(min=0.0)
    few = values.cumsum(0) <= tail * values.sum()
    return float(values[few][-1]) if bool(few.any()) else 0.0
