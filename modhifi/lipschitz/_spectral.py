"""Spectral norms of linear operators, including convolutions at their input size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse.linalg
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["convolution_norm", "operator_norm"]

Linear = Callable[[Tensor], Tensor]
_ROUNDING = 5e-6


def convolution_norm(
    weight: Tensor,
    size: tuple[int, int],
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> float:
    """The spectral norm of ``x ↦ conv2d(x, weight)`` on inputs of ``size`` (H, W), including zero padding: the largest singular
    value of the equivalent matrix (O·H'·W', C·H·W).

    ``weight``: (O, C/groups, kh, kw). If patches do not overlap and nothing is padded, it is the norm of the flattened weight;
    otherwise see `operator_norm`.
    """
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    apart = all(s >= r for s, r in zip(stride, reach, strict=True))
    if apart and not any(padding):
        flat = weight.detach().cpu().double().flatten(1).unflatten(0, (groups, -1))
        return float(torch.linalg.matrix_norm(flat, 2).max())
    kernel = weight.detach().float()

    def forward(x: Tensor) -> Tensor:
        return F.conv2d(x, kernel, None, tuple(stride), tuple(padding), tuple(dilation), groups)

    return operator_norm(forward, (1, weight.shape[1] * groups, *size), weight.device)


def operator_norm(forward: Linear, shape: Sequence[int], device: torch.device) -> float:
    """The spectral norm of the linear map ``forward`` on float32 tensors of ``shape``, by Lanczos iteration (ARPACK) on AᵀA.

    Accurate to a relative 1e-5, from above: the residual and the rounding error of float32 are added to the eigenvalue.
    """
    with torch.enable_grad():
        probe = torch.zeros(*shape, device=device, requires_grad=True)
        image = forward(probe)

    def normal(x: NDArray[np.float32]) -> Any:
        point = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32).reshape(shape)).to(device)
        with torch.no_grad():
            there = forward(point)
        # The adjoint of a linear map is its vector-Jacobian product at any point.
        (back,) = torch.autograd.grad(image, probe, there, retain_graph=True)
        return back.cpu().numpy().reshape(-1)

    count = probe.numel()
    if count <= 2:
        columns = np.stack([normal(column) for column in np.eye(count, dtype=np.float32)]).astype(np.float64)
        return float(np.sqrt(max(0.0, np.linalg.eigvalsh(columns)[-1]) * (1 + _ROUNDING)))
    begin = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    if not normal(begin).any():
        return 0.0
    square = scipy.sparse.linalg.LinearOperator((count, count), matvec=normal, dtype=np.float32)
    values, vectors = scipy.sparse.linalg.eigsh(
        square, k=1, which="LA", v0=begin, ncv=min(count, 20), tol=5e-6, maxiter=1000
    )
    value, vector = float(values[0]), vectors[:, 0]
    residual = float(np.linalg.norm(normal(vector) - value * vector))
    return float(np.sqrt(max(0.0, value + residual) * (1 + _ROUNDING)))
