"""Which positions of a layer's output are looked at. The draw depends on the seed, the layer and the sample alone, so that it
is the same whatever the size of the batches, the number of processes, or where an interrupted run went on.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

__all__ = ["draw", "draw_size"]

# A draw costs as many multiply-accumulates in the second moment as a quarter of a pass through the layer …
_PASSES = 0.25
# … or so many rows for each input of the layer, whichever is more: too few would leave the moment without full rank.
_ROWS_PER_INPUT = 4


def draw_size(positions: int, inputs: int, outputs: int, samples: int) -> int:
    """How many of ``positions`` are drawn from each of ``samples`` samples of a layer with an (outputs, inputs) flat weight."""
    return min(positions, max(int(_PASSES * positions * outputs / inputs), -(-_ROWS_PER_INPUT * inputs // samples), 1))


def draw(positions: int, size: int, layer: str, samples: Tensor, seed: int) -> Tensor:
    """(B, size) int64: for each of the samples with these numbers (B,) distinct positions, uniformly."""
    key = (zlib.crc32(layer.encode()) << 32) | (seed & 0xFFFFFFFF)
    rows = []
    for sample in samples.tolist():
        generator = np.random.Generator(np.random.Philox(key=np.array([key, sample], dtype=np.uint64)))
        rows.append(generator.choice(positions, size, replace=False))
    return torch.from_numpy(np.stack(rows))
