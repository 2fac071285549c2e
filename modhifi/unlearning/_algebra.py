"""Closed forms for unlearning, on plain tensors. See docs/theory.md, *Pruning and unlearning*."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "combined_projection",
    "eigen",
    "erasure",
    "forgetting_ridge",
    "retained_rows",
    "scaled_space",
    "specific_projection",
]

# Singular values below this, relative to the largest, are rounding errors.
_RANK = 1e-6


def forgetting_ridge(
    weight: Tensor, second_r: Tensor, second_f: Tensor, mean_f: Tensor, target: Tensor, strength: float
) -> Tensor:
    """The new weight ``W' = argmin E_r‖Wx − W'x‖² + λ E_f‖W'x − t‖² = (W H_r + λ t m_fᵀ)(H_r + λ H_f)⁻¹``, (O, n) float64.

    Args:
        weight: (O, n) W.
        second_r: (n, n) H_r = E[x xᵀ] over the retain set.
        second_f: (n, n) H_f = E[x xᵀ] over the forget set.
        mean_f: (n,) m_f = E[x] over the forget set.
        target: (O,) t, the output that the layer should have on the forget set.
        strength: λ ≥ 0; 0 returns ``weight``.

    Directions that occur in neither set keep their weights.
    """
    w, h_r, h_f = weight.double(), second_r.double(), second_f.double()
    if strength == 0:
        return w.clone()
    both = h_r + strength * h_f
    # Solve for the change of W, so that the ridge pulls towards W instead of zero.
    change = strength * (torch.outer(target.double(), mean_f.double()) - w @ h_f)
    floor = 1e-6 * both.diagonal().mean().clamp(min=1e-30)
    added: Tensor = torch.linalg.solve(
        both + floor * torch.eye(len(both), dtype=both.dtype, device=both.device), change.T
    ).T
    return w + added


def erasure(features: Tensor, concept: Tensor) -> Tensor:
    """(d, d) float64: the linear map ``P`` after which no linear classifier can detect ``concept`` in centred ``features``
    (LEACE, Belrose et al. 2023, theorem 4.2: the smallest change, in the metric of the features' covariance, after which the
    two have no covariance):

        P = I − A (Aᵀ Σ⁻¹ A)⁺ Aᵀ Σ⁻¹ ,   A = Cov(x, z)

    Args:
        features: (N, d) x.
        concept: (N, k) z: one column per class, 1 for its samples and 0 for the others.

    Σ is the covariance shrunk after Ledoit and Wolf (2004), which is invertible even for few samples. A constant concept cannot
    be detected and gives the identity.
    """
    from sklearn.covariance import ledoit_wolf

    x = features.double() - features.double().mean(0)
    z = concept.double() - concept.double().mean(0)
    same = torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
    cross = x.T @ z / len(x)  # (d, k)
    if not bool(cross.abs().max() > 0):
        return same
    covariance = torch.from_numpy(ledoit_wolf(x.cpu().numpy(), assume_centered=True)[0]).to(x.device)
    weighted = torch.linalg.solve(covariance, cross)  # Σ⁻¹ A
    erased: Tensor = cross @ torch.linalg.pinv(cross.T @ weighted, hermitian=True) @ weighted.T
    return same - erased


def retained_rows(rows: Tensor) -> Tensor:
    """(r, d) float64, orthonormal rows: the directions of the features that a classifier with weights ``rows`` (K, d) needs to
    separate its classes. They span the differences of its rows, r ≤ K − 1.
    """
    differences = rows.double() - rows.double().mean(0)
    _, values, basis = torch.linalg.svd(differences, full_matrices=False)
    needed: Tensor = basis[values > _RANK * values.max().clamp(min=1e-30)]
    return needed


def specific_projection(second_r: Tensor, second_f: Tensor, scale_r: float, scale_f: float) -> Tensor:
    """(n, n) float64: ``I − P_f (I − P_r)``, which removes from a layer's input the directions of the forget set that the
    retain set lacks (Kodge, Saha and Roy, TMLR 2024, "Deep Unlearning: Fast and Efficient Gradient-free Class Forgetting",
    section 4).

    With the eigenvectors U of H and the shares σ² of its eigenvalues, ``P = U diag(α σ² / ((α − 1) σ² + 1)) Uᵀ``.

    Args:
        second_r: (n, n) E[x xᵀ] over the retain set.
        second_f: (n, n) E[x xᵀ] over the forget set.
        scale_r: α of the retain space, ≥ 1: the larger, the more of it is protected.
        scale_f: α of the forget space, ≥ 1.
    """

    return combined_projection(scaled_space(eigen(second_r), scale_r), scaled_space(eigen(second_f), scale_f))


def eigen(second: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues as shares of their sum, σ² (n,), and eigenvectors (n, n) in columns, float64."""
    values, vectors = torch.linalg.eigh(second.double())
    return values.clamp(min=0) / values.clamp(min=0).sum().clamp(min=1e-30), vectors


def scaled_space(found: tuple[Tensor, Tensor], scale: float) -> Tensor:
    """``P = U diag(α σ² / ((α − 1) σ² + 1)) Uᵀ`` from the result of `eigen`."""
    share, vectors = found
    return (vectors * (scale * share / ((scale - 1) * share + 1))) @ vectors.T


def combined_projection(space_r: Tensor, space_f: Tensor) -> Tensor:
    """``I − P_f (I − P_r)``."""
    same = torch.eye(len(space_r), dtype=space_r.dtype, device=space_r.device)
    return same - space_f @ (same - space_r)
