"""Streaming second moments of layer inputs (theory, section 3).

``H = E[x xᵀ]`` over samples and positions, from a fraction of the positions drawn uniformly with a fixed seed: sample
``s`` of the data uses the same positions of a layer whatever the batch size, so the estimate does not depend on it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._operators import Operator, observed, patches, position_count
from ..progress import Progress, silent

__all__ = ["Moments", "collect"]


@dataclass
class Moments:
    """``second`` (n, n) float32 and ``mean`` (n,) float64 are averages over ``count`` rows; one sample has ``positions``."""

    second: Tensor
    mean: Tensor
    count: int
    positions: int


class _Sum:
    """One layer's running sums; `take` adds a batch."""

    def __init__(self, name: str, outputs: int, samples: int, seed: int) -> None:
        self.outputs = outputs
        self.samples = samples
        self.generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ seed)
        self.seen = 0
        self.count = 0
        self.positions = 0
        self.second: Tensor | None = None
        self.mean: Tensor | None = None
        self.at: Tensor | None = None

    def _begin(self, layer: Operator, x: Tensor) -> None:
        inputs = layer.weight[0].numel()
        self.positions = position_count(layer, x)
        # As many multiply-accumulates as two passes through the layer itself, or 16 rows per input, whichever is more.
        draw = max(2 * self.positions * self.outputs // inputs, -(-16 * inputs // self.samples), 1)
        if draw < self.positions:
            self.at = torch.randint(self.positions, (self.samples, draw), generator=self.generator)
        self.second = torch.zeros(inputs, inputs, dtype=torch.float32, device=x.device)
        self.mean = torch.zeros(
            inputs, dtype=torch.float32 if x.device.type == "mps" else torch.float64, device=x.device
        )

    def take(self, layer: Operator, x: Tensor) -> None:
        if self.second is None or self.mean is None:
            self._begin(layer, x)
        assert self.second is not None
        assert self.mean is not None
        at = None if self.at is None else self.at[self.seen : self.seen + x.shape[0]].to(x.device)
        rows = patches(layer, x, at).float()
        self.second.addmm_(rows.T, rows)
        self.mean += rows.sum(0, dtype=self.mean.dtype)
        self.count += rows.shape[0]
        self.seen += x.shape[0]

    def result(self) -> Moments:
        if self.second is None or self.mean is None:
            raise RuntimeError("no forward pass went through the layer")
        return Moments(
            second=(self.second / self.count).cpu(),
            mean=(self.mean.cpu().double() / self.count),
            count=self.count,
            positions=self.positions,
        )


def collect(
    module: nn.Module,
    layers: Sequence[str],
    batches: Iterable[Tensor],
    samples: int,
    *,
    seed: int = 0,
    progress: Progress = silent,
    what: str = "collecting statistics",
) -> dict[str, Moments]:
    """Runs ``module`` once over ``batches`` ((B, 3, H, W) each, ``samples`` images in all) and returns the moments of the
    input of each layer in ``layers``. No hook is left behind, whatever happens.
    """
    device = next(module.parameters()).device
    sums = {}
    for name in layers:
        outputs = module.get_submodule(name).weight.shape[0]  # type: ignore[index]
        sums[name] = _Sum(name, int(outputs), samples, seed)
    done = 0
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.inference_mode(), observed(module, layers, lambda name, layer, x: sums[name].take(layer, x)):
            for batch in batches:
                progress(done, samples, what)
                module(batch.to(device))
                done += batch.shape[0]
        progress(done, samples, what)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    return {name: total.result() for name, total in sums.items()}
