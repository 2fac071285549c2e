"""Errors on samples that a fit has not seen (docs/theory.md, *Unseen samples*).

Weights that are fitted to a second moment look better on the samples it was taken from than on others, without limit as the
number of inputs approaches the number of samples. So the samples are divided into folds. For each of them the weights are
fitted on the others, with the ridged moment ``H̃``, and judged by the fold's own moment ``J``; the error is the average,

    ẽ(S) = Σ_f share_f · tr((W − W'_(−f)) J_f (W − W'_(−f))ᵀ) ,

which is the expected error on new samples of a fit on (F − 1)/F of the samples: almost unbiased, and slightly pessimistic.
Other arguments and conventions are those of `modhifi.fidelity.error_curve`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ._moments import (
    _ENTRIES,
    Blocks,
    Check,
    _checked,
    _go_on,
    factored,
    full_compensation,
    gram,
    inverse,
    own_part,
    ridged,
)

__all__ = ["Fold", "best_ridge", "crossfitted_curve", "crossfitted_error", "scalar_curve"]


@dataclass(frozen=True)
class Fold:
    """``train`` (n, n): the `ridged` moment of all other folds; ``judge`` (n, n): that of this fold, about the mean of the
    others where moments are centred; ``share``: the fraction of the samples that is in this fold.
    """

    train: Tensor
    judge: Tensor
    share: float

    @cached_property
    def _inverted(self) -> Tensor:
        return inverse(self.train)

    @cached_property
    def _between(self) -> Tensor:
        return self._inverted @ self.judge.to(self._inverted) @ self._inverted

    def own_part(self, columns: Tensor) -> Fold:
        """The fold as seen by the ``columns`` (C, k) of a group's components, in their order, where all others are kept and
        refitted: the moments of what is left of these columns after regression on the others, (m, m) each.
        """
        flat = columns.reshape(-1)
        if len(flat) == len(self.train):
            return Fold(self.train[flat][:, flat], self.judge[flat][:, flat], self.share)
        train = inverse(self._inverted[flat][:, flat])  # the Schur complement
        return Fold(train, train @ self._between[flat][:, flat] @ train, self.share)


def crossfitted_error(folds: Iterable[Fold], weight: Tensor, blocks: Blocks, keep: Tensor | Sequence[int]) -> float:
    """ẽ(S) if the components ``keep`` remain and all weights on the remaining columns are fitted; see the module docstring."""
    total = 0.0
    for fold in folds:
        delta = weight.double() - full_compensation(fold.train, weight, blocks, keep)
        total += fold.share * float(((delta @ fold.judge.to(delta)) * delta).sum())
    return total


def crossfitted_curve(
    folds: Sequence[Fold], weight: Tensor, blocks: Blocks, order: Tensor, check: Check = _go_on
) -> Tensor:
    """ẽ for full compensation when the first 0, 1, …, C components of ``order`` are kept: (C + 1,) float64.

    With the columns of ``H̃ = L Lᵀ`` in this order, columns that are always kept first, and ``S`` the leading ones, the weights
    change by ``W − W' = U_R (L⁻¹)_R`` where ``U = W L`` and ``R`` are the removed ones. So the error is the sum over the
    trailing block of ``UᵀU ∘ L⁻¹ J L⁻ᵀ``, which one factorisation gives for every size. With ``J = H̃`` the second factor is
    the identity, and this is `error_curve`.
    """
    _, w, columns = _checked(folds[0].train, weight, blocks)
    index = order.to(columns.device)
    w = w[:, columns[index].reshape(-1)]
    total = w.new_zeros(len(columns) + 1)
    for fold in folds:
        check()
        own = fold.own_part(columns[index])
        factor, _ = factored(own.train)
        u = w @ factor
        half = torch.linalg.solve_triangular(factor, own.judge.to(factor), upper=False)
        product = torch.linalg.solve_triangular(factor, half.T, upper=False) * (u.T @ u)
        total += fold.share * _trailing(product, columns.shape[1])
    return total.clamp(min=0.0)


def _trailing(product: Tensor, block: int) -> Tensor:
    """(C + 1,): the sums over the trailing blocks of ``product`` (…, m, m), from all of it to none, added up over the rest."""
    each = 2.0 * product.triu(1).sum(-1) + product.diagonal(dim1=-2, dim2=-1)  # with those that are removed before
    each = each.reshape(-1, each.shape[-1] // block, block).sum((0, 2))
    return torch.cat([each.flip(0).cumsum(0).flip(0), each.new_zeros(1)])


def scalar_curve(folds: Sequence[Fold], weight: Tensor, blocks: Blocks, order: Tensor, check: Check = _go_on) -> Tensor:
    """ẽ for one scalar per slice, as `crossfitted_curve`. With one weight per slice that is full compensation of the
    components' own part.

    With ``G = L Lᵀ`` in the order of importance, ``δ_S = L_SS⁻ᵀ u_S`` where ``u = Lᵀ 1``, so that ``1 − δ`` is a sum over the
    removed components again: the error is the sum over the trailing block of ``u uᵀ ∘ L⁻¹ G_J L⁻ᵀ``.
    """
    _, _, columns = _checked(folds[0].train, weight, blocks)
    components, block = columns.shape
    own_weight, *_ = own_part(columns, weight.double())
    if block == 1:
        parts = []
        for fold in folds:
            train, judge = own_part(columns, weight, fold.train, fold.judge)[1:]
            parts.append(Fold(train, judge, fold.share))
        return crossfitted_curve(parts, own_weight, 1, order, check)
    index = order.to(columns.device)
    total = own_weight.new_zeros(components + 1)
    step = max(1, _ENTRIES // components**2)
    for fold in folds:
        train, judge = own_part(columns, weight, fold.train.double(), fold.judge.double())[1:]
        for start in range(0, len(own_weight), step):
            check()
            some = own_weight[start : start + step]
            fitted, tested = (gram(square, some, block)[:, index][:, :, index] for square in (train, judge))
            total += fold.share * _scalar_errors(fitted, tested)
    return total.clamp(min=0.0)


def _scalar_errors(fitted: Tensor, tested: Tensor) -> Tensor:
    """(C + 1,): the errors by ``tested`` (O, C, C), summed over outputs, of the scalars fitted on ``fitted`` (O, C, C) when the
    first 0…C components are kept.
    """
    scale = fitted.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    inverted = torch.where(scale > 0, 1 / torch.where(scale > 0, scale, 1.0), 0.0)
    unit = fitted * inverted[:, :, None] * inverted[:, None, :]
    jitter, failed = 1e-12, torch.ones(1)
    factor = unit
    while bool(failed.any()):  # components that are nearly dependent, up to rounding
        eye = torch.diag_embed(torch.where(scale > 0, jitter, 1.0))  # no energy: nothing explained
        factor, failed = torch.linalg.cholesky_ex(unit + eye)
        jitter *= 100
    # In units of the scaled contributions, all of them together are the output: ``scale`` takes the place of 1.
    u = (factor.mT @ scale[..., None])[..., 0]
    half = torch.linalg.solve_triangular(factor, tested * inverted[:, :, None] * inverted[:, None, :], upper=False)
    product = torch.linalg.solve_triangular(factor, half.mT, upper=False) * u[:, :, None] * u[:, None, :]
    return _trailing(product, 1)


def best_ridge(
    moments: Sequence[tuple[Tensor, Tensor, float]],
    weight: Tensor,
    keep: Tensor,
    ridges: Sequence[float],
    floor: float = 0.0,
    check: Check = _go_on,
) -> float:
    """The one of ``ridges`` (relative to the mean eigenvalue) with the lowest ẽ if the columns ``keep`` remain.

    ``moments``: for each fold the moment of the others, without a ridge, that of the fold, and its share.
    """

    errors = []
    for ridge in ridges:
        check()
        folds = (Fold(ridged(train, ridge, floor), judge, share) for train, judge, share in moments)
        errors.append(crossfitted_error(folds, weight, 1, keep))
    return ridges[min(range(len(errors)), key=errors.__getitem__)]
