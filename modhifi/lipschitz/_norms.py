"""The norms that a LayerNorm divides by: it magnifies by at most ``max|γ| / r``, with ``r`` the smallest one seen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers import batched
from ..progress import Progress, silent

__all__ = ["smallest_norms", "spread"]


def spread(x: Tensor, dims: int, eps: float | None, centred: bool = True) -> Tensor:
    """LayerNorm's divisor, √(variance + ε), over the last ``dims`` axes; RMSNorm's, √(mean square + ε) if not ``centred``."""
    axes = tuple(range(-dims, 0))
    x = x.float()
    square = x.var(axes, unbiased=False) if centred else x.square().mean(axes)
    return (square + (torch.finfo(torch.float32).eps if eps is None else eps)).sqrt()


def smallest_norms(
    module: nn.Module, images: Tensor, *, batch_size: int | None = None, progress: Progress = silent
) -> dict[str, Tensor]:
    """(N,) for each LayerNorm or RMSNorm: the smallest norm that it divides by for each sample, over positions, in the units of
    its input (root-mean-square over channels). Takes one forward pass. ``images``: (N, 3, H, W) on the CPU.
    """
    found: dict[str, list[Tensor]] = {}
    hooks = []
    batches = list(batched(module, images, batch_size))
    try:
        for name, layer in module.named_modules():
            kind = type(layer).__name__.lower()
            shape = getattr(layer, "normalized_shape", None)
            if shape is None or not ("layernorm" in kind or "rmsnorm" in kind):
                continue

            def hook(layer: nn.Module, args: tuple[Tensor], _: object, *, name: str = name, kind: str = kind) -> None:
                x = args[0].movedim(1, -1) if kind.endswith("2d") else args[0]
                least = spread(x, len(layer.normalized_shape), getattr(layer, "eps", None), "rms" not in kind)  # type: ignore[arg-type]
                # A layer may see a sample in several rows of its batch.
                found.setdefault(name, []).append(least.reshape(samples, -1).amin(1).cpu())

            hooks.append(layer.register_forward_hook(hook))
        if not hooks:
            return {}
        with torch.no_grad():
            for done, batch in enumerate(batches):
                progress(done, len(batches), "recording the smallest norms")
                samples = len(batch)
                module(batch)
    finally:
        for handle in hooks:
            handle.remove()
    return {name: torch.cat(values) for name, values in found.items()}
