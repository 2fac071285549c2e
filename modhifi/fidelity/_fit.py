"""Fitting a layer to rows of its input and of its target output.

Sequential compensation weights all rows equally (docs/theory.md, *Compensation*); unlearning weights them (*Pruning and
unlearning*).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._moments import factored

__all__ = ["TAIL", "Limit", "fit_moments", "fit_rows"]

# The ridge is the largest eigenvalue for which it and all smaller ones together hold at most this share of the input's energy:
# directions that the input hardly ever takes do not change the weights.
TAIL = 1e-4
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


def fit_rows(
    rows: Tensor,
    target: Tensor,
    own: Tensor,
    tail: float,
    centred: bool,
    limit: Limit | None = None,
    share: Tensor | None = None,
) -> tuple[Tensor, Tensor, float]:
    """``W' = argmin E‖y − W'x − b‖² + λ‖W' − W‖²`` from ``rows`` (r, n), ``target`` (r, O) and the weights ``own`` (O, n).

    Returns W' (O, n) and b (O,), both float64, and λ relative to the mean eigenvalue of E[x xᵀ]. b is 0 unless ``centred``. λ
    is the largest eigenvalue for which it and all smaller ones hold at most ``tail`` of the trace. With a ``limit``, fitting
    alternates with moving the free targets to the fit. ``share`` (r,), positive, weights the rows in every expectation; equal
    weights by default.
    """
    exact = torch.float32 if rows.device.type == "mps" else torch.float64
    each = rows.new_full((len(rows), 1), 1 / len(rows)) if share is None else (share / share.sum())[:, None].to(rows)

    def mean(values: Tensor) -> Tensor:
        return (values * each).to(exact).sum(0) if centred else values.new_zeros(values.shape[1], dtype=exact)

    mean_x = mean(rows)
    x = rows - mean_x.to(rows)
    weighted = x * each
    second = (weighted.T @ x).to(exact)
    factor, ridge, relative = _regularised(second, tail)

    def solved(target: Tensor) -> tuple[Tensor, Tensor]:
        mean_y = mean(target)
        cross = ((target - mean_y.to(target)).T @ weighted).to(exact) + ridge * own.to(exact)
        weight = torch.cholesky_solve(cross.T, factor).T
        return weight, mean_y - weight @ mean_x

    weight, constant = solved(target)
    for _ in range(0 if limit is None else _ROUNDS):
        assert limit is not None
        weight, constant = solved(limit.follow(target, rows @ weight.to(rows).T + constant.to(rows)))
    return weight, constant, relative


def fit_moments(second: Tensor, cross: Tensor, own: Tensor, tail: float) -> tuple[Tensor, float]:
    """`fit_rows` from averages over the rows: ``second`` = E[x xᵀ] (n, n) and ``cross`` = E[y xᵀ] (O, n), both in the
    precision to solve in. Returns W' (O, n) and λ relative to the mean eigenvalue. To fit a constant too, pass covariances.
    """
    factor, ridge, relative = _regularised(second.clone(), tail)
    return torch.cholesky_solve((cross + ridge * own.to(cross)).T, factor).T, relative


def _regularised(second: Tensor, tail: float) -> tuple[Tensor, float, float]:
    """The Cholesky factor of ``second`` + λI, λ, and λ relative to the mean eigenvalue; adds λI to ``second`` in place."""
    ridge = max(_tail_eigenvalue(second, tail), 1e-12)
    mean = max(float(second.diagonal().mean()), 1e-12)
    second.diagonal().add_(ridge)
    factor, extra = factored(second)
    return factor, ridge + extra, (ridge + extra) / mean


def _tail_eigenvalue(second: Tensor, tail: float) -> float:
    # Single precision suffices for a threshold, and takes a fraction of the time for wide layers.
    values = torch.linalg.eigvalsh(second.float()).clamp(min=0.0)
    few = values.cumsum(0) <= tail * values.sum()
    return float(values[few][-1]) if bool(few.any()) else 0.0
