"""A layer fitted to rows of its input and of what it should answer (theory, section 4, level 3; section 6 with weights)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TAIL", "Limit", "fit_moments", "fit_rows"]

# The ridge is the eigenvalue below which so little of the energy of a layer's input lies, all smaller ones together: what the
# inputs hardly ever do, the weights are not changed for.
TAIL = 1e-4
# How often a layer before a ReLU is fitted again.
_ROUNDS = 3


@dataclass(frozen=True)
class Limit:
    """For outputs that a ReLU cuts off: ``free`` (r, O) bool says which, and ``bound`` (O,) or (r, O) how far they may go:
    up to there, or where ``falling`` (O,) down to there.
    """

    free: Tensor
    bound: Tensor
    falling: Tensor

    def follow(self, target: Tensor, found: Tensor) -> Tensor:
        """``target`` where it must be met; elsewhere what was ``found``, as far as it may go."""
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
    """``W' = argmin E‖y − W'x − b‖² + λ‖W' − W‖²`` from ``rows`` (r, n), ``target`` (r, O) and the weights as they are, ``own``
    (O, n): W' (O, n), b (O,), which is 0 unless ``centred``, both float64, and λ relative to the mean eigenvalue of E[x xᵀ]. λ is
    the largest eigenvalue for which the smaller ones and itself hold at most ``tail`` of the trace. With a ``limit`` the targets
    that are free follow the fit, in turns. ``share`` (r,), positive, weighs the rows in every expectation; equal by default.
    """
    exact = torch.float32 if rows.device.type == "mps" else torch.float64
    each = rows.new_full((len(rows), 1), 1 / len(rows)) if share is None else (share / share.sum())[:, None].to(rows)

    def mean(values: Tensor) -> Tensor:
        return (values * each).to(exact).sum(0) if centred else values.new_zeros(values.shape[1], dtype=exact)

    mean_x = mean(rows)
    x = rows - mean_x.to(rows)
    weighted = x * each
    second = (weighted.T @ x).to(exact)
    factor, pull, relative = _pulled(second, tail)

    def solved(target: Tensor) -> tuple[Tensor, Tensor]:
        mean_y = mean(target)
        cross = ((target - mean_y.to(target)).T @ weighted).to(exact) + pull * own.to(exact)
        weight = torch.cholesky_solve(cross.T, factor).T
        return weight, mean_y - weight @ mean_x

    weight, constant = solved(target)
    for _ in range(0 if limit is None else _ROUNDS):
        assert limit is not None
        weight, constant = solved(limit.follow(target, rows @ weight.to(rows).T + constant.to(rows)))
    return weight, constant, relative


def fit_moments(second: Tensor, cross: Tensor, own: Tensor, tail: float) -> tuple[Tensor, float]:
    """`fit_rows` from what was summed over the rows: ``second`` = E[x xᵀ] (n, n), ``cross`` = E[y xᵀ] (O, n), both in the
    precision to solve in. W' (O, n) and λ relative to the mean eigenvalue; for a constant beside them give covariances.
    """
    factor, pull, relative = _pulled(second.clone(), tail)
    return torch.cholesky_solve((cross + pull * own.to(cross)).T, factor).T, relative


def _pulled(second: Tensor, tail: float) -> tuple[Tensor, float, float]:
    """The Cholesky factor of ``second`` + λ, in whose place it is written, λ, and λ relative to the mean eigenvalue."""
    pull = max(_tail_eigenvalue(second, tail), 1e-12)
    relative = pull / max(float(second.diagonal().mean()), 1e-12)
    second.diagonal().add_(pull)
    return torch.linalg.cholesky(second), pull, relative


def _tail_eigenvalue(second: Tensor, tail: float) -> float:
    # Single precision will do for a threshold, and takes a fraction of the time for wide layers.
    values = torch.linalg.eigvalsh(second.float()).clamp(min=0.0)
    few = values.cumsum(0) <= tail * values.sum()
    return float(values[few][-1]) if bool(few.any()) else 0.0
