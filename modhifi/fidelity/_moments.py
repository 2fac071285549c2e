"""Subset Fidelity from the second moment of a layer's input: H = E[x xᵀ] answers every question about every subset.

Notation: a layer ``Y = W x`` with ``W`` (O, n) and ``n = C·k`` inputs; component ``i`` owns the ``k`` columns
``i·k … (i+1)·k`` (``block = k``: the pixels of a kernel, the dimensions of a head). ``G_o[i, j] = w_oiᵀ H_ij w_oj``.
Three ways to make up for what is removed, each at least as good as the one before (theory, sections 2 and 4):

- ``none``: the remaining weights stay;
- ``scalar``: δ* per (output, component), Prop. 3.8;
- ``full``: ``W'_S = W H_{:,S} H_SS⁻¹``, the least-squares optimum over all weights on ``S``.

Errors are ``E‖Y − Ŷ‖²`` per position, summed over outputs. A ridge is added to ``H`` beforehand (`ridged`), so that it pulls
the new weights towards the old ones and nothing changes when nothing is removed.
"""

from collections.abc import Sequence
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
    "full_compensation",
    "gram",
    "output_energy",
    "ridged",
    "scalar_compensation",
    "singleton_from_moments",
]

Compensate = Literal["none", "scalar", "full"]

# Outputs handled at a time where a (O, C, C) array would otherwise be needed whole: at most 2^26 entries, 512 MiB.
_ENTRIES = 1 << 26

# One component in so many leaves in one step of `eliminate`.
_AT_ONCE = 128


def _checked(second: Tensor, weight: Tensor, block: int) -> tuple[Tensor, Tensor]:
    n = second.shape[-1]
    if second.shape != (n, n) or weight.ndim != 2 or weight.shape[1] != n or block < 1 or n % block:
        raise ValueError(
            f"second moment {tuple(second.shape)}, weight {tuple(weight.shape)} and block {block} do not belong together"
        )
    if second.device.type == "mps":
        second, weight = second.cpu(), weight.cpu()
    return second.to(torch.float64), weight.to(torch.float64)


def _columns(index: Tensor, block: int) -> Tensor:
    """The input columns of the components ``index``, (len(index)·block,)."""
    return (index[:, None] * block + torch.arange(block, device=index.device)).reshape(-1)


def centre(second: Tensor, mean: Tensor) -> Tensor:
    """The covariance ``H − m mᵀ``, (n, n) float64; what is lost, ``W m``, is a constant that a bias can put back."""
    m = mean.to(torch.float64)
    return second.to(torch.float64) - torch.outer(m, m)


def ridged(second: Tensor, ridge: float, floor: float = 0.0) -> Tensor:
    """``H + λI`` in float64, (n, n), with ``λ = max(ridge · mean(diag H), floor)``; at least 1e-300 so that zero inputs invert.

    ``floor`` is for what ``H`` was rounded by when it was accumulated: smaller eigenvalues are noise, and may be negative.
    """
    h = second.to(torch.float64).clone()
    h.diagonal().add_(max(ridge * float(h.diagonal().mean()), floor, 1e-300))
    return h


def gram(second: Tensor, weight: Tensor, block: int) -> Tensor:
    """``G_o[i, j] = w_oiᵀ H_ij w_oj`` for each row of ``weight``: (n, n), (O, n) -> (O, C, C) float64."""
    h, w = _checked(second, weight, block)
    outputs, components = w.shape[0], w.shape[1] // block
    parts = w.reshape(outputs, components, block)
    left = torch.einsum("oik,ikn->oin", parts, h.reshape(components, block, -1))  # (O, C, n)
    return torch.einsum("oijl,ojl->oij", left.reshape(outputs, components, components, block), parts)


def aggregate_gram(second: Tensor, weight: Tensor, block: int) -> Tensor:
    """``Σ_o G_o``, (C, C) float64, without forming the single ones."""
    h, w = _checked(second, weight, block)
    components = w.shape[1] // block
    return ((w.T @ w) * h).reshape(components, block, components, block).sum((1, 3))


def output_energy(second: Tensor, weight: Tensor) -> Tensor:
    """``y_o = w_oᵀ H w_o``, (O,) float64."""
    h, w = _checked(second, weight, 1)
    return ((w @ h) * w).sum(1).clamp(min=0.0)


def singleton_from_moments(second: Tensor, weight: Tensor, block: int) -> Tensor:
    """`singleton_fidelity` of every (output, component), (O, C) float64, without the (O, C, C) matrices."""
    h, w = _checked(second, weight, block)
    outputs, components = w.shape[0], w.shape[1] // block
    parts = w.reshape(outputs, components, block)
    inner = ((w @ h) * w).reshape(outputs, components, block).sum(2)  # E<A_oi, Y_o>
    blocks = h.reshape(components, block, components, block).diagonal(dim1=0, dim2=2)  # (k, k, C)
    own = torch.einsum("oik,kli,oil->oi", parts, blocks, parts)  # E‖A_oi‖²
    return _ratio(inner.square(), own * inner.sum(1, keepdim=True))


def scalar_compensation(second: Tensor, weight: Tensor, block: int, keep: Tensor | Sequence[int]) -> Tensor:
    """The weights with ``δ*`` applied to the components ``keep`` and zero elsewhere: (O, n) float64 (Prop. 3.8).

    With ``block = 1`` this is `full_compensation`, whose conditions hold.
    """
    if block == 1:  # a scalar for a single weight is any weight
        return full_compensation(second, weight, block, keep)
    h, w = _checked(second, weight, block)
    outputs, components = w.shape[0], w.shape[1] // block
    index = _indices(keep, components, w.device)
    scale = w.new_zeros(outputs, components)
    step = max(1, _ENTRIES // components**2)
    for start in range(0, outputs, step):
        part = slice(start, start + step)
        scale[part, index] = compensation(gram(h, w[part], block), index)
    return w * scale.repeat_interleave(block, dim=1)


def full_compensation(second: Tensor, weight: Tensor, block: int, keep: Tensor | Sequence[int]) -> Tensor:
    """``W' = W H_{:,S} H_SS⁻¹`` on the columns of ``keep`` and zero elsewhere: (O, n) float64.

    ``second`` should be `ridged`; a singular ``H_SS`` raises `torch.linalg.LinAlgError`.
    """
    h, w = _checked(second, weight, block)
    columns = _columns(_indices(keep, w.shape[1] // block, w.device), block)
    new = torch.zeros_like(w)
    if columns.numel():
        factor = torch.linalg.cholesky(h[columns][:, columns])
        new[:, columns] = torch.cholesky_solve((w @ h[:, columns]).T, factor).T
    return new


def error_curve(second: Tensor, weight: Tensor, block: int, order: Tensor, compensate: Compensate) -> Tensor:
    """``E‖Y − Ŷ‖²`` when the first 0, 1, …, C components of ``order`` stay: (C + 1,) float64.

    One factorisation answers every size: with ``H`` permuted into ``order`` and ``H = L Lᵀ``, the rows of ``L⁻¹ H Wᵀ`` hold
    what each component newly explains. With ``none`` the error may exceed the energy at size 0.
    """
    h, w = _checked(second, weight, block)
    components = w.shape[1] // block
    index = _indices(order, components, w.device)
    if index.numel() != components:
        raise ValueError(f"order names {index.numel()} of {components} components; it must be a permutation")
    energy = output_energy(h, w)
    if compensate == "none":
        removed = aggregate_gram(h, w, block)[index][:, index].flip(0, 1)
        total = removed.cumsum(0).cumsum(1).diagonal()  # error when the last 1, 2, … of the order are gone
        error = torch.cat([total.flip(0), total.new_zeros(1)])
    elif compensate == "scalar" and block > 1:  # with one weight a slice, scalar is full
        error = w.new_zeros(components + 1)
        step = max(1, _ENTRIES // components**2)
        for start in range(0, w.shape[0], step):
            part = slice(start, start + step)
            curve = fidelity_curve(gram(h, w[part], block), index)
            error += ((1.0 - curve) * energy[part, None]).sum(0)
        error[-1] = 0.0
    else:
        columns = _columns(index, block)
        factor = torch.linalg.cholesky(h[columns][:, columns])
        # L⁻¹ H Wᵀ = Lᵀ Wᵀ in the permuted order: no second solve is needed.
        gains = (factor.T @ w[:, columns].T).square().sum(1).reshape(components, block).sum(1)
        rest = gains.flip(0).cumsum(0).flip(0)
        error = torch.cat([rest, rest.new_zeros(1)])
    return error.clamp(min=0.0)


def eliminate(layers: Sequence[tuple[Tensor, Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Backward greedy elimination with full compensation, in closed form (optimal brain surgeon for blocks).

    Removing component ``i`` costs ``tr(W_i [(H⁻¹)_ii]⁻¹ W_iᵀ)``; afterwards ``W ← W − W_i [(H⁻¹)_ii]⁻¹ H⁻¹_{i,:}`` and ``H⁻¹``
    takes the matching rank-k downdate. While more than 256 components are left, the cheapest 128th of them leaves in one
    step, so that wide layers take a few hundred steps.

    ``layers``: one ``(second (n, n), weight (O, n), block)`` for each consumer of the same C components, ``second`` ridged;
    their costs add.

    Returns the order, most important first, (C,) int64, and the cost at which each component left, (C,) float64, indexed
    by component. Raises ValueError if the layers differ in C.
    """
    states = []
    for second, weight, block in layers:
        h, w = _checked(second, weight, block)
        states.append((torch.cholesky_inverse(torch.linalg.cholesky(h)), w.clone(), block))
    counts = {w.shape[1] // block for _, w, block in states}
    if len(counts) != 1:
        raise ValueError(f"the layers have {sorted(counts)} components; they must be the same ones")
    components = counts.pop()
    device = states[0][1].device
    left = list(range(components))  # which component each remaining block is; the matrices shrink with it
    removed: list[int] = []
    costs = torch.zeros(components, dtype=torch.float64, device=device)
    while left:
        cost = torch.zeros(len(left), dtype=torch.float64, device=device)
        for inverse, w, block in states:
            blocks = inverse.reshape(len(left), block, len(left), block).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            parts = w.reshape(w.shape[0], len(left), block)
            own = torch.einsum("oik,oil->ikl", parts, parts)  # W_iᵀ W_i, (C, k, k)
            cost += (own / blocks if block == 1 else own * torch.linalg.inv(blocks)).sum((1, 2))
        worst = cost.argsort(stable=True)[: max(1, len(left) // _AT_ONCE)]
        for index in worst.tolist():
            costs[left[index]] = cost[index]
            removed.append(left[index])
        left = [component for index, component in enumerate(left) if index not in set(worst.tolist())]
        for position, (inverse, w, block) in enumerate(states):
            gone = _columns(worst, block)
            rows = inverse[gone]
            scaled = torch.linalg.solve(rows[:, gone], rows)  # [(H⁻¹)_ii]⁻¹ H⁻¹_{i,:}, (k, n)
            stay = torch.ones(w.shape[1], dtype=torch.bool, device=device)
            stay[gone] = False
            w = (w - w[:, gone] @ scaled)[:, stay]
            inverse = (inverse - rows.T @ scaled)[stay][:, stay]
            states[position] = (inverse, w, block)
    return torch.tensor(removed[::-1], dtype=torch.int64, device=device), costs
