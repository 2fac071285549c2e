"""Subset Fidelity from component similarity matrices (ModHiFi, Def. 3.1 to Thm. 3.9).

    FS_o(S) = b_Sᵀ G_SS⁺ b_S / y_o,   b = G·1,   y = 1ᵀG 1,   δ*_S = G_SS⁺ b_S

``G`` is symmetric positive semidefinite, (O, C, C): outputs, components, components. An output with ``y_o = 0`` has nothing
to reconstruct: its fidelity is reported as 0, and it has no weight in choices made for all outputs together.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

__all__ = ["compensation", "fidelity_curve", "greedy_subset", "singleton_fidelity", "subset_fidelity"]

# A component whose part orthogonal to those already chosen has less than this share of its energy adds nothing.
_DEPENDENT = 1e-10


def _checked(gram: Tensor) -> Tensor:
    """``gram`` in float64 (on the CPU if the device has no float64)."""
    if gram.ndim != 3 or gram.shape[1] != gram.shape[2]:
        raise ValueError(f"gram must have shape (O, C, C), not {tuple(gram.shape)}")
    if not gram.is_floating_point():
        raise ValueError(f"gram must have a floating-point dtype, not {gram.dtype}")
    if not bool(torch.isfinite(gram).all()):
        raise ValueError("gram has entries that are not finite")
    return (gram.cpu() if gram.device.type == "mps" else gram).to(torch.float64)


def _indices(subset: Tensor | Sequence[int], components: int, device: torch.device) -> Tensor:
    index = torch.as_tensor(subset, device=device)
    if index.ndim != 1 or (index.numel() and index.dtype not in (torch.int64, torch.int32)):
        raise ValueError(f"subset must be a list of component indices, not {index.dtype} of shape {tuple(index.shape)}")
    index = index.to(torch.int64)
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= components):
        raise ValueError(f"subset has indices outside 0..{components - 1}")
    if len(set(index.tolist())) != index.numel():
        raise ValueError("subset contains a component twice")
    return index


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole`` clipped to [0, 1]; 0 where ``whole`` is 0."""
    alive = whole > 0
    return torch.where(alive, part / torch.where(alive, whole, 1.0), 0.0).clamp(0.0, 1.0)


def _energy(gram: Tensor) -> Tensor:
    """``y_o``, (O,); exactly 0 where it is only rounding noise compared with the energies of the contributions."""
    energy = gram.sum((1, 2))
    noise = 1e-14 * gram.shape[1] * gram.diagonal(dim1=1, dim2=2).sum(1)
    return torch.where(energy > noise, energy, 0.0)


def singleton_fidelity(gram: Tensor) -> Tensor:
    """FS_o({i}) = E<A_oi, Y_o>² / (E‖A_oi‖² E‖Y_o‖²), the squared cosine between contribution and output.

    ``gram``: (O, C, C) floating. Returns (O, C) in [0, 1]; 0 for a component or an output without energy.
    Raises ValueError for another shape, an integer dtype, or entries that are not finite.
    """
    g = _checked(gram)
    energy = g.diagonal(dim1=1, dim2=2)
    return _ratio(g.sum(2).square(), energy * _energy(g)[:, None]).to(gram)


def compensation(gram: Tensor, subset: Tensor | Sequence[int]) -> Tensor:
    """δ*_S = G_SS⁺ b_S, the scalars that best reconstruct each output from ``subset`` (Prop. 3.8).

    ``gram``: (O, C, C); ``subset``: (k,) distinct indices. Returns (O, k), the minimum-norm solution where several are
    equally good. Raises ValueError for bad shapes, dtypes or indices.
    """
    g = _checked(gram)
    index = _indices(subset, g.shape[1], g.device)
    b = g.sum(2)[:, index, None]
    inner = g[:, index][:, :, index]
    if not index.numel():
        return b[..., 0].to(gram)
    best: Tensor = torch.linalg.pinv(inner, hermitian=True) @ b
    return best[..., 0].to(gram)


def subset_fidelity(gram: Tensor, subset: Tensor | Sequence[int]) -> Tensor:
    """FS_o(S) of Def. 3.1: the share of each output's energy that ``subset`` reconstructs with the best scalars.

    ``gram``: (O, C, C); ``subset``: (k,) distinct indices, possibly none. Returns (O,) in [0, 1].
    Raises ValueError for bad shapes, dtypes or indices.
    """
    g = _checked(gram)
    index = _indices(subset, g.shape[1], g.device)
    explained = (compensation(g, index) * g.sum(2)[:, index]).sum(1)
    return _ratio(explained, _energy(g)).to(gram)


def fidelity_curve(gram: Tensor, order: Tensor | Sequence[int]) -> Tensor:
    """FS_o of the first 0, 1, …, C components of ``order``, in the time of one Cholesky factorisation per output.

    ``gram``: (O, C, C); ``order``: a permutation of the components, (C,). Returns (O, C + 1), from 0 to 1.
    Raises ValueError if ``order`` is not a permutation, or as `subset_fidelity` does.
    """
    g = _checked(gram)
    index = _indices(order, g.shape[1], g.device)
    if index.numel() != g.shape[1]:
        raise ValueError(f"order contains {index.numel()} of {g.shape[1]} components; it must be a permutation")
    _, gains = _forward(g, g.shape[1], index)
    explained = torch.cat([torch.zeros_like(gains[:, :1]), gains.cumsum(1)], 1)
    return _ratio(explained, _energy(g)[:, None]).to(gram)


def greedy_subset(gram: Tensor, k: int, direction: Literal["forward", "backward"] = "backward") -> Tensor:
    """The ``k`` components that greedy search keeps for all outputs together, weighted by energy: Σ_o y_o FS_o(S).

    ``backward`` removes the components one at a time, always the one whose removal costs least (closed form:
    δ_i² / (G⁻¹)_ii); ``forward`` adds the component with the largest gain. ``gram``: (O, C, C). Returns (k,) int64, most
    important first.
    Raises ValueError for ``k`` outside 0..C, an unknown direction, or as `subset_fidelity` does.
    """
    g = _checked(gram)
    if not 0 <= k <= g.shape[1]:
        raise ValueError(f"k must lie in 0..{g.shape[1]}, not {k}")
    if direction == "forward":
        return _forward(g, k)[0]
    if direction != "backward":
        raise ValueError(f"direction must be 'forward' or 'backward', not {direction!r}")
    return _backward(g)[:k]


def _normalised(gram: Tensor) -> tuple[Tensor, Tensor]:
    """``G`` scaled to unit diagonal, and the scales (O, C): fidelity does not depend on them, but rounding does."""
    scale = gram.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    inverse = torch.where(scale > 0, 1 / torch.where(scale > 0, scale, 1.0), 0.0)
    return gram * inverse[:, :, None] * inverse[:, None, :], scale


def _forward(gram: Tensor, k: int, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cholesky factorisation; the pivot is given by ``order``, or is the component with the largest gain over all outputs.

    Returns the pivots (k,) and, per output, the additional energy that each explains (O, k).
    """
    unit, scale = _normalised(gram)
    outputs, components, _ = unit.shape
    residual = (unit @ scale[..., None])[..., 0]  # <A_i / ‖A_i‖, unexplained part of Y>, (O, C)
    own = unit.diagonal(dim1=1, dim2=2).clone()  # energy of each component's orthogonal part, (O, C)
    factor = unit.new_zeros(outputs, components, k)
    chosen = torch.full((k,), -1, dtype=torch.int64, device=gram.device)
    gains = unit.new_zeros(outputs, k)
    taken = torch.zeros(components, dtype=torch.bool, device=gram.device)
    for step in range(k):
        gain = torch.where(own > _DEPENDENT, residual.square() / own.clamp(min=_DEPENDENT), 0.0)  # (O, C)
        pivot = int(gain.sum(0).masked_fill(taken, -1.0).argmax()) if order is None else int(order[step])
        chosen[step], taken[pivot] = pivot, True
        gains[:, step] = gain[:, pivot]
        root = own[:, pivot].clamp(min=_DEPENDENT).sqrt()
        column = unit[:, :, pivot] - (factor[:, :, :step] @ factor[:, pivot, :step, None])[..., 0]
        column = torch.where(own[:, pivot, None] > _DEPENDENT, column / root[:, None], 0.0)
        factor[:, :, step] = column
        residual = residual - column * (residual[:, pivot] / root)[:, None]
        own = (own - column.square()).clamp(min=0.0)
    return chosen, gains


def _backward(gram: Tensor) -> Tensor:
    """All components, the last removed first. A ridge of 1e-10 on the unit diagonal keeps the matrix invertible."""
    unit, weight = _normalised(gram)  # in units of ‖A_i‖, the optimal scalars of the full set are the scales
    components = unit.shape[1]
    factor = torch.linalg.cholesky(unit + 1e-10 * torch.eye(components, dtype=unit.dtype, device=unit.device))
    inverse = torch.cholesky_inverse(factor)
    left = torch.ones(components, dtype=torch.bool, device=gram.device)
    removed: list[int] = []
    for _ in range(components):
        diagonal = inverse.diagonal(dim1=1, dim2=2).clamp(min=1e-300)
        worst = int((weight.square() / diagonal).sum(0).masked_fill(~left, torch.inf).argmin())
        removed.append(worst)
        left[worst] = False
        column = inverse[:, :, worst].clone()
        pivot = diagonal[:, worst].clone()
        weight = weight - column * (weight[:, worst] / pivot)[:, None]
        inverse = inverse - column[:, :, None] * (column / pivot[:, None])[:, None, :]
        weight[:, worst] = 0.0
        # Rounding would otherwise leave a remainder where the downdate gives exactly zero.
        inverse[:, worst, :] = inverse[:, :, worst] = 0.0
        inverse[:, worst, worst] = 1.0
    return torch.tensor(removed[::-1], dtype=torch.int64, device=gram.device)
