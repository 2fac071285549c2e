"""Subset Fidelity from the second moment of a layer's input: H = E[x xᵀ] determines the fidelity of every subset.

Notation: a layer ``Y = W x`` with ``W`` (O, n); component ``i`` owns some of the ``n`` columns (the pixels of a kernel, the
dimensions of a head). ``G_o[i, j] = w_oiᵀ H_ij w_oj``. Components are given as ``blocks``: an integer ``k`` if component
``i`` owns columns ``i·k`` to ``(i+1)·k − 1`` and every column is owned, or a (C, k) int64 tensor of columns; columns that are
not listed belong to other groups and are kept. There are three levels of compensation (docs/theory.md, *Compensation*):

- ``none``: the remaining weights do not change;
- ``scalar``: δ* per (output, component), Prop. 3.8, which reconstructs the components' own part of the output;
- ``full``: ``W'_S = W H_{:,S} H_SS⁻¹``, the least-squares optimum over all weights on the remaining columns.

Errors are ``E‖Y − Ŷ‖²`` per position, summed over outputs. A ridge is added to ``H`` beforehand (`ridged`). It pulls the new
weights towards the old ones, and nothing changes if nothing is removed.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ._gram import _indices, _ratio, compensation, fidelity_curve

__all__ = [
    "Compensate",
    "aggregate_gram",
    "centre",
    "eliminate",
    "error_curve",
    "factored",
    "full_compensation",
    "gram",
    "inverse",
    "output_energy",
    "own_part",
    "removal_cost",
    "ridged",
    "row_sum",
    "scalar_compensation",
    "singleton_from_moments",
]

Compensate = Literal["none", "scalar", "full"]
Blocks = int | Tensor
Check = Callable[[], object]
"""Called between the steps of long computations; whatever it raises ends them."""


def _go_on() -> None:
    """The default `Check`."""


# (O, C, C) arrays are computed for as many outputs at a time as have at most 2^26 entries, 512 MiB.
_ENTRIES = 1 << 26

# Squares smaller than this vanish in single precision, in which moments are accumulated: a covariance whose mean did not vanish
# may then have eigenvalues this far below zero.
_UNDERFLOW = 4 * torch.finfo(torch.float32).tiny

# Side of the blocks that `inverse` works on.
_TILE = 512

# While more than `_ONE_BY_ONE` components remain, a step of `eliminate` removes one in `_AT_ONCE` of them.
_AT_ONCE = 64
_ONE_BY_ONE = 256


def _checked(second: Tensor, weight: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor, Tensor]:
    """Both in float64, and the columns of each component (C, k)."""
    n = second.shape[-1]
    fits = second.shape == (n, n) and weight.ndim == 2 and weight.shape[1] == n
    if isinstance(blocks, int):
        fits = fits and blocks >= 1 and n % blocks == 0
        shown = str(blocks)
    else:
        fits = fits and blocks.ndim == 2 and (not blocks.numel() or int(blocks.max()) < n)
        shown = str(tuple(blocks.shape))
    if not fits:
        raise ValueError(
            f"second moment {tuple(second.shape)}, weight {tuple(weight.shape)} and blocks {shown} do not match"
        )
    if second.device.type == "mps":
        second, weight = second.cpu(), weight.cpu()
    device = second.device
    columns = torch.arange(n, device=device).reshape(-1, blocks) if isinstance(blocks, int) else blocks.to(device)
    return second.to(torch.float64), weight.to(torch.float64), columns


def own_part(columns: Tensor, weight: Tensor, *squares: Tensor) -> tuple[Tensor, ...]:
    """``weight`` (O, n) and matrices (n, n) restricted to the components' own ``columns`` (C, k), in order of components."""
    flat = columns.reshape(-1)
    if torch.equal(flat, torch.arange(weight.shape[1], device=flat.device)):
        return weight, *squares
    return weight[:, flat], *(square[flat][:, flat] for square in squares)


def _owned(second: Tensor, weight: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, int]:
    """`own_part` of ``second`` and of ``weight``, and ``k``."""
    own_weight, own_second = own_part(columns, weight, second)
    return own_second, own_weight, columns.shape[1]


def centre(second: Tensor, mean: Tensor) -> Tensor:
    """The covariance ``H − m mᵀ``, (n, n) float64; what is lost, ``W m``, is a constant that a bias can restore."""
    m = mean.to(torch.float64)
    return second.to(torch.float64) - torch.outer(m, m)


def ridged(second: Tensor, ridge: float, floor: float = 0.0) -> Tensor:
    """``H + λI`` in float64, (n, n), with ``λ = max(ridge · mean(diag H), floor)``, at least `_UNDERFLOW` per column.

    ``floor`` is the rounding error of the accumulated ``H``: smaller eigenvalues are noise, and may be negative.
    """
    h = second.to(torch.float64).clone()
    h.diagonal().add_(max(ridge * float(h.diagonal().mean()), floor, _UNDERFLOW * len(h)))
    return h


def factored(second: Tensor) -> tuple[Tensor, float]:
    """The Cholesky factor of ``H + δI``, and δ: zero if ``H`` (n, n) is positive definite, else the first power of ten times
    1e-8 of its mean eigenvalue that makes it so. A `ridged` moment needs one where rounding errors exceeded their estimate: in
    the covariance of an input that is constant, nothing else is left.

    Raises `torch.linalg.LinAlgError` if ``H`` has entries that are not finite.
    """
    factor, failed = torch.linalg.cholesky_ex(second)
    extra = 0.0
    if bool(failed):
        if not bool(second.isfinite().all()):
            raise torch.linalg.LinAlgError("the matrix has entries that are not finite")  # type: ignore[attr-defined]
        extra = max(1e-8 * float(second.diagonal().abs().mean()), _UNDERFLOW)
        identity = torch.eye(len(second), dtype=second.dtype, device=second.device)
        while bool(failed):
            factor, failed = torch.linalg.cholesky_ex(second + extra * identity)
            extra = extra if not bool(failed) else extra * 10
    return factor, extra


def inverse(second: Tensor, check: Check = _go_on) -> Tensor:
    """``H⁻¹``, (n, n) float64, of a `ridged` moment. Raises `torch.linalg.LinAlgError` if it is not finite."""
    h = second.cpu() if second.device.type == "mps" else second
    factor, _ = factored(h.to(torch.float64))
    n = len(factor)
    # Computes L⁻¹ and L⁻ᵀL⁻¹ by block columns, skipping the zeros above the diagonal: several times faster than
    # torch.cholesky_inverse, which runs on one core.
    half, found = torch.zeros_like(factor), torch.empty_like(factor)
    starts = range(0, n, _TILE)
    for start in starts:
        check()
        end = min(start + _TILE, n)
        unit = torch.eye(n - start, end - start, dtype=factor.dtype, device=factor.device)
        half[start:, start:end] = torch.linalg.solve_triangular(factor[start:, start:], unit, upper=False)
    for start in starts:
        check()
        end = min(start + _TILE, n)
        found[:end, start:end] = half[start:, :end].T @ half[start:, start:end]
        found[start:end, :start] = found[:start, start:end].T
    return found


def gram(second: Tensor, weight: Tensor, blocks: Blocks) -> Tensor:
    """``G_o[i, j] = w_oiᵀ H_ij w_oj`` for each row of ``weight``: (n, n), (O, n) -> (O, C, C) float64."""
    h, w, block = _owned(*_checked(second, weight, blocks))
    outputs, components = w.shape[0], w.shape[1] // block
    parts = w.reshape(outputs, components, block)
    left = torch.einsum("oik,ikn->oin", parts, h.reshape(components, block, -1))  # (O, C, n)
    return torch.einsum("oijl,ojl->oij", left.reshape(outputs, components, components, block), parts)


def aggregate_gram(second: Tensor, weight: Tensor, blocks: Blocks) -> Tensor:
    """``Σ_o G_o``, (C, C) float64, without forming the individual ``G_o``."""
    h, w, block = _owned(*_checked(second, weight, blocks))
    components = w.shape[1] // block
    return ((w.T @ w) * h).reshape(components, block, components, block).sum((1, 3))


def output_energy(second: Tensor, weight: Tensor) -> Tensor:
    """``y_o = w_oᵀ H w_o``, (O,) float64."""
    h, w, _ = _checked(second, weight, 1)
    return ((w @ h) * w).sum(1).clamp(min=0.0)


def singleton_from_moments(second: Tensor, weight: Tensor, blocks: Blocks) -> Tensor:
    """`singleton_fidelity` of every (output, component), (O, C) float64, without the (O, C, C) matrices."""
    h, w, columns = _checked(second, weight, blocks)
    outputs, (components, block) = w.shape[0], columns.shape
    flat = columns.reshape(-1)
    product = (w @ h) * w
    energy = product.sum(1, keepdim=True)
    inner = product[:, flat].reshape(outputs, components, block).sum(2)  # E<A_oi, Y_o>
    parts = w[:, flat].reshape(outputs, components, block)
    own_blocks = h[columns[:, :, None], columns[:, None, :]]  # (C, k, k)
    left = torch.bmm(parts.transpose(0, 1), own_blocks)  # (C, O, k)
    own = (left * parts.transpose(0, 1)).sum(2).T  # E‖A_oi‖²
    return _ratio(inner.square(), own * energy)


def row_sum(second: Tensor, weight: Tensor, blocks: Blocks) -> Tensor:
    """``Σ_o E⟨Y_o, A_oi⟩ = Σ_o (G_o 1)_i``, (C,) float64: the score of the published implementation (App. D.2)."""
    h, w, columns = _checked(second, weight, blocks)
    return ((w @ h) * w).sum(0)[columns].sum(1)


def scalar_compensation(second: Tensor, weight: Tensor, blocks: Blocks, keep: Tensor | Sequence[int]) -> Tensor:
    """The weights with ``δ*`` applied to the components ``keep`` and zero for the others: (O, n) float64 (Prop. 3.8). Columns
    that belong to no component keep their weights.

    With one column per component this is `full_compensation` of the components' own part, under the same conditions.
    """
    h, w, columns = _checked(second, weight, blocks)
    own_h, own_w, block = _owned(h, w, columns)
    outputs, components = w.shape[0], len(columns)
    new = w.clone()
    if block == 1:  # a scalar for a single weight is any weight
        new[:, columns.reshape(-1)] = full_compensation(own_h, own_w, 1, keep)
        return new
    index = _indices(keep, components, w.device)
    scale = w.new_zeros(outputs, components)
    step = max(1, _ENTRIES // components**2)
    for start in range(0, outputs, step):
        part = slice(start, start + step)
        scale[part, index] = compensation(gram(own_h, own_w[part], block), index)
    new[:, columns.reshape(-1)] = own_w * scale.repeat_interleave(block, dim=1)
    return new


def full_compensation(second: Tensor, weight: Tensor, blocks: Blocks, keep: Tensor | Sequence[int]) -> Tensor:
    """``W' = W H_{:,S} H_SS⁻¹`` on the remaining columns ``S`` and zero elsewhere: (O, n) float64.

    ``second`` should be `ridged`; raises `torch.linalg.LinAlgError` if it is not finite.
    """
    h, w, columns = _checked(second, weight, blocks)
    kept = torch.ones(w.shape[1], dtype=torch.bool, device=w.device)
    kept[columns.reshape(-1)] = False
    kept[columns[_indices(keep, len(columns), w.device)].reshape(-1)] = True
    new = torch.zeros_like(w)
    if bool(kept.all()):
        return w.clone()
    if bool(kept.any()):
        factor, _ = factored(h[kept][:, kept])
        new[:, kept] = torch.cholesky_solve((w @ h[:, kept]).T, factor).T
    return new


def error_curve(
    second: Tensor,
    weight: Tensor,
    blocks: Blocks,
    order: Tensor,
    compensate: Compensate,
    inverted: Tensor | None = None,
    check: Check = _go_on,
) -> Tensor:
    """``E‖Y − Ŷ‖²`` when the first 0, 1, …, C components of ``order`` are kept: (C + 1,) float64.

    One factorisation gives every size. For ``full``, removing ``R`` costs ``tr(W_R [(H⁻¹)_RR]⁻¹ W_Rᵀ)``; with the rows of
    ``H⁻¹`` in the order of removal, its Cholesky factor gives the cost of all nested ``R`` at once. ``inverted``: `inverse` of
    ``second``, if already known. With ``none``, an error may exceed the energy, which is the error at size 0.
    """
    h, w, columns = _checked(second, weight, blocks)
    components, block = columns.shape
    index = _indices(order, components, w.device)
    if index.numel() != components:
        raise ValueError(f"order contains {index.numel()} of {components} components; it must be a permutation")
    if compensate == "none":
        removed = aggregate_gram(h, w, columns)[index][:, index].flip(0, 1)
        total = removed.cumsum(0).cumsum(1).diagonal()  # error when the last 1, 2, … of the order are removed
        error = torch.cat([total.flip(0), total.new_zeros(1)])
    elif compensate == "scalar" and block > 1:  # with one weight per slice, scalar is full
        own_h, own_w, _ = _owned(h, w, columns)
        energy = output_energy(own_h, own_w)
        error = w.new_zeros(components + 1)
        step = max(1, _ENTRIES // components**2)
        for start in range(0, w.shape[0], step):
            check()
            part = slice(start, start + step)
            error += _scalar_errors(gram(own_h, own_w[part], block)[:, index][:, :, index], energy[part])
        error[-1] = 0.0
    else:
        if compensate == "scalar":
            h, w, _ = _owned(h, w, columns)
            columns, inverted = torch.arange(components, device=w.device)[:, None], None
        inverted = inverse(h, check) if inverted is None else inverted
        gone = columns[index.flip(0)].reshape(-1)
        factor, _ = factored(inverted[gone][:, gone])
        gains = torch.linalg.solve_triangular(factor, w[:, gone].T, upper=False).square().sum(1)
        total = gains.reshape(components, block).sum(1).cumsum(0)
        error = torch.cat([total.flip(0), total.new_zeros(1)])
    return error.clamp(min=0.0)


def _scalar_errors(ordered: Tensor, energy: Tensor) -> Tensor:
    """(C + 1,): the error, summed over outputs, when the first 0…C components of the (O, C, C) matrices are kept with their
    best scalars.

    With ``G = L Lᵀ``, the squared entries of ``L⁻¹ b`` are the additional energy that each component explains. Outputs whose
    components are too dependent for this are left to `fidelity_curve`.
    """
    scale = ordered.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    inverted = torch.where(scale > 0, 1 / torch.where(scale > 0, scale, 1.0), 0.0)
    unit = ordered * inverted[:, :, None] * inverted[:, None, :]
    b = (unit @ scale[..., None])[..., 0]
    unit.diagonal(dim1=1, dim2=2).add_(torch.where(scale > 0, 1e-12, 1.0))  # no energy: nothing explained
    factor, failed = torch.linalg.cholesky_ex(unit)
    gains = torch.linalg.solve_triangular(factor, b[..., None], upper=False)[..., 0].square()
    explained = torch.cat([torch.zeros_like(gains[:, :1]), gains.cumsum(1)], 1)
    error = energy[:, None] - explained
    bad = torch.nonzero(failed)[:, 0]
    if len(bad):
        order = torch.arange(ordered.shape[1], device=ordered.device)
        error[bad] = (1.0 - fidelity_curve(ordered[bad], order)) * energy[bad, None]
    return error.clamp(min=0.0).sum(0)


def eliminate(layers: Sequence[tuple[Tensor, Tensor, Blocks]], check: Check = _go_on) -> tuple[Tensor, Tensor]:
    """Backward greedy elimination with full compensation, in closed form (optimal brain surgeon for blocks).

    Removing component ``i`` costs ``tr(W_i [(H⁻¹)_ii]⁻¹ W_iᵀ)``; afterwards ``W ← W − W_i [(H⁻¹)_ii]⁻¹ H⁻¹_{i,:}`` and ``H⁻¹``
    takes the matching rank-k downdate. While more than 256 components remain, one step removes the cheapest 64th of them,
    so that wide layers take a few hundred steps.

    ``layers``: one ``(inverted (n, n), weight (O, n), blocks)`` per consumer of the same C components, with ``inverted`` the
    `inverse` of its ridged moment; their costs are added. Only the components' own rows and columns are used.

    Returns the order, most important first, (C,) int64, and the cost at which each component was removed, (C,) float64,
    indexed by component. Raises ValueError if the layers differ in C.
    """
    states = []
    for inverted, weight, blocks in layers:
        p, w, block = _owned(*_checked(inverted, weight, blocks))
        states.append((p.clone(), w.T.clone(), block))  # (m, m), (m, O)
    counts = {len(p) // block for p, _, block in states}
    if len(counts) != 1:
        raise ValueError(f"the layers have {sorted(counts)} components; they must read the same components")
    components = counts.pop()
    device = states[0][0].device
    names = torch.arange(components, device=device)  # the component of each block of the matrices
    alive = torch.ones(components, dtype=torch.bool, device=device)
    removed: list[Tensor] = []
    costs = torch.zeros(components, dtype=torch.float64, device=device)
    left = components
    while left:
        check()
        cost = _removal_costs(states).masked_fill(~alive, torch.inf)
        worst = cost.argsort(stable=True)[: max(1, left // _AT_ONCE if left > _ONE_BY_ONE else 1)]
        costs[names[worst]] = cost[worst]
        removed.append(names[worst])
        alive[worst] = False
        left -= len(worst)
        # Removed rows are only dropped from the matrices now and then, because each time costs a copy.
        remaining = torch.nonzero(alive)[:, 0] if left <= 0.8 * len(alive) else None
        for position, (p, w, block) in enumerate(states):
            gone = _columns(worst, block)
            rows = p[gone]
            scaled = torch.linalg.solve(rows[:, gone], torch.cat([rows, w[gone]], 1))  # [(H⁻¹)_ii]⁻¹ [H⁻¹_{i,:}, W_i]
            p.addmm_(rows.T, scaled[:, : len(p)], alpha=-1.0)
            w.addmm_(rows.T, scaled[:, len(p) :], alpha=-1.0)
            if remaining is None:
                # All blocks are inverted together, so removed ones must not be singular.
                p[gone, gone] = 1.0
            else:
                index = _columns(remaining, block)
                states[position] = (p[index][:, index], w[index], block)
        if remaining is not None:
            names, alive = names[remaining], alive[remaining]
    return torch.cat(removed).flip(0), costs


def removal_cost(layers: Sequence[tuple[Tensor, Tensor, Blocks]]) -> Tensor:
    """``tr(W_i [(H⁻¹)_ii]⁻¹ W_iᵀ)``, (C,) float64: the cost of removing each component alone while the others compensate,
    summed over ``layers``, which are as in `eliminate`.
    """
    states = []
    for inverted, weight, blocks in layers:
        p, w, block = _owned(*_checked(inverted, weight, blocks))
        states.append((p, w.T, block))
    return _removal_costs(states)


def _columns(index: Tensor, block: int) -> Tensor:
    """The columns of the components ``index``, with ``block`` contiguous columns per component: (len(index)·block,)."""
    return (index[:, None] * block + torch.arange(block, device=index.device)).reshape(-1)


def _removal_costs(states: Sequence[tuple[Tensor, Tensor, int]]) -> Tensor:
    """``tr(W_i [(H⁻¹)_ii]⁻¹ W_iᵀ)`` of every component, summed over the layers, (C,)."""
    total: Tensor | float = 0.0
    for p, w, block in states:
        if block == 1:
            total = total + w.square().sum(1) / p.diagonal()
        else:
            components = len(p) // block
            blocks = p.reshape(components, block, components, block).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            parts = w.reshape(components, block, -1)
            total = total + torch.linalg.solve_triangular(_factors(blocks), parts, upper=False).square().sum((1, 2))
    assert isinstance(total, Tensor)
    return total


def _factors(blocks: Tensor) -> Tensor:
    """The Cholesky factors (C, k, k) of ``blocks``. (LU of a batch of large blocks fails on several threads in torch 2.14 with
    MKL, and sometimes does not return.)
    """
    factors: Tensor
    factors, failed = torch.linalg.cholesky_ex(blocks)
    for index in torch.nonzero(failed)[:, 0].tolist():  # rounding has left a block indefinite
        factors[index] = factored(blocks[index])[0]
    return factors
