"""How many samples go through the network at once, where much is remembered of each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .._replay import Replay

__all__ = ["batched"]

_MEMORY = 1 << 30
_LARGEST = 64


def batched(
    module: nn.Module, images: Tensor, size: int | None, at_least: int = 1, times: float = 1.0
) -> Iterator[Tensor]:
    """``images`` on the network's device, ``size`` at once; None for as many as have ``times`` their activations in a gigabyte.
    A last batch below ``at_least`` goes with the one before it.
    """
    device = next(module.parameters()).device
    if size is None:
        with torch.no_grad():
            each = Replay(module, images[:1].to(device)).nbytes * times
        size = int(min(_LARGEST, max(1, _MEMORY // max(each, 1))))
    size = max(size, at_least)
    starts = list(range(0, len(images), size))
    if len(starts) > 1 and len(images) - starts[-1] < at_least:
        starts.pop()
    for start, stop in zip(starts, [*starts[1:], len(images)], strict=True):
        yield images[start:stop].to(device)
