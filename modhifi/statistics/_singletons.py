"""Singleton fidelity in about one extra pass, without full second moments.

With ``D = Σ y xᵀ`` (what a weight gradient computes, applied to the layer's own output), ``E<A_oi, Y_o> = Σ_k W_oik D_oik``;
and ``E‖A_oi‖² = w_oiᵀ H_ii w_oi`` needs only the diagonal blocks of ``H``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from ..layers import Operator, flat_weight, get_operator, observed, outputs_at, patches, position_count
from ..progress import Progress, silent
from ._positions import draw

__all__ = ["collect_singletons"]

# One in this many positions is used.
_FRACTION = 16


class _Sums:
    def __init__(self, name: str, layer: Operator, columns: Tensor, seed: int, size: Callable[[int], int]) -> None:
        self.name, self.seed, self.choose = name, seed, size
        self.weight = flat_weight(layer).float()
        self.columns = columns.to(self.weight.device)
        components, block = columns.shape
        self.cross = torch.zeros_like(self.weight)
        self.blocks = self.weight.new_zeros(components, block, block)
        self.energy = self.weight.new_zeros(self.weight.shape[0])

    def take(self, layer: Operator, x: Tensor, y: Tensor, samples: Tensor) -> None:
        positions = position_count(layer, x, len(samples))
        size = min(positions, max(1, self.choose(positions)))
        at = None if size == positions else draw(positions, size, self.name, samples, self.seed).to(x.device)
        rows, outputs = patches(layer, x, at).float(), outputs_at(layer, y, at).float()
        self.cross.addmm_(outputs.T, rows)
        self.energy += outputs.square().sum(0)
        components, block = self.columns.shape
        if block == 1:
            self.blocks[:, 0, 0] += rows[:, self.columns[:, 0]].square().sum(0)
        else:
            parts = rows[:, self.columns.reshape(-1)].reshape(-1, components, block).permute(1, 2, 0)  # (C, k, r)
            self.blocks.baddbmm_(parts, parts.transpose(1, 2))

    def result(self) -> Tensor:
        weight, cross = self.weight.double().cpu(), self.cross.double().cpu()
        components, block = self.columns.shape
        flat = self.columns.reshape(-1).cpu()
        parts = weight[:, flat].reshape(-1, components, block)
        inner = (weight * cross)[:, flat].reshape(-1, components, block).sum(2)
        own = torch.einsum("oik,ikl,oil->oi", parts, self.blocks.double().cpu(), parts)
        whole = own * self.energy.double().cpu()[:, None]
        alive = whole > 0
        return torch.where(alive, inner.square() / torch.where(alive, whole, 1.0), 0.0).clamp(0.0, 1.0)


def collect_singletons(
    module: nn.Module,
    layers: Mapping[str, Tensor],
    batches: Iterable[Tensor],
    samples: int,
    *,
    seed: int = 0,
    size: Callable[[int], int] | None = None,
    progress: Progress = silent,
    what: str = "collecting singleton scores",
) -> dict[str, Tensor]:
    """Runs ``module`` once over ``batches`` ((B, 3, H, W) each, ``samples`` in total) and returns the singleton fidelity (O, C)
    float64 of every layer in ``layers``, which gives the columns (C, k) of the components.

    ``size`` maps the number of positions to the number used, by default a sixteenth. ``what`` is the name of the step. Raises
    TypeError for a name that is neither a convolution nor a linear layer. Hooks are removed in every case.
    """
    device = next(module.parameters()).device
    choose = size or (lambda positions: positions // _FRACTION)
    sums = {name: _Sums(name, get_operator(module, name), columns, seed, choose) for name, columns in layers.items()}
    done = 0
    current = torch.zeros(0, dtype=torch.int64)
    with (
        torch.inference_mode(),
        observed(module, layers, lambda name, layer, x, y: sums[name].take(layer, x, y, current)),
    ):
        for batch in batches:
            progress(done, samples, what)
            current = torch.arange(done, done + len(batch))
            module(batch.to(device))
            done += len(batch)
        progress(done, samples, what)
    return {name: total.result() for name, total in sums.items()}
