"""Which positions of a layer's output are used. The draw depends only on the seed, the layer and the sample, so that it is the
same whatever the batch size, the number of processes, or the point at which an interrupted run continued.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

__all__ = ["draw", "draw_size"]

# A draw costs as many multiply-accumulates in the second moment as a quarter of a pass through the layer …
_PASSES = 0.25
# … or this many rows per input of the layer, whichever is more: with too few, the moment would not have full rank.
_ROWS_PER_INPUT = 4


def draw_size(positions: int, inputs: int, outputs: int, samples: int) -> int:
    """How many of ``positions`` are drawn per sample, of ``samples``, for a layer with an (outputs, inputs) flat weight."""
    return min(positions, max(int(_PASSES * positions * outputs / inputs), -(-_ROWS_PER_INPUT * inputs // samples), 1))


def draw(positions: int, size: int, layer: str, samples: Tensor, seed: int) -> Tensor:
    """(B, size) int64: distinct positions, drawn uniformly, for each of the sample indices ``samples`` (B,)."""
    key = (zlib.crc32(layer.encode()) << 32) | (seed & 0xFFFFFFFF)
    rows = []
    for sample in samples.tolist():
        generator = np.random.Generator(np.random.Philox(key=np.array([key, sample], dtype=np.uint64)))
        rows.append(generator.choice(positions, size, replace=False))
    return torch.from_numpy(np.stack(rows))
