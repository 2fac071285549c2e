"""The pass over the data one decoder block at a time, for language models that are too large to be observed as a whole.

The inputs of the first block are stored for all samples. The block runs on them, the moments of its layers are collected, and
its outputs replace them as the inputs of the next block. Only one block's moments are in memory at once and, of weights that
accelerate keeps elsewhere, only one block's. The states themselves, samples · tokens · channels values in the network's dtype,
are on the CPU, or in a file if they exceed `_IN_MEMORY` bytes.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..devices import full_precision
from ..layers import get_operator, observed, substituted, widened_on_cpu
from ..models import CausalLM, held, place_of
from ..progress import Progress, silent
from ._collect import add_up, agree
from ._moments import LayerSums, Moments

__all__ = ["Stream", "collect_blocks", "entered"]

_IN_MEMORY = 4 << 30


class _LastBlockError(Exception):
    """Raised at the last block: what follows is not needed."""


@dataclass
class Stream:
    """The input of one block: ``states`` (N, T, E) on the CPU, and the other arguments of every block, by batch size and block
    number.
    """

    states: Tensor
    calls: dict[int, list[tuple[tuple[Any, ...], dict[str, Any]]]]
    device: torch.device
    batch: int

    def starts(self) -> range:
        return range(0, len(self.states), self.batch)

    def at(self, start: int) -> Tensor:
        """The states (B, T, E) of the samples from ``start`` on, on the device where the network runs."""
        return self.states[start : start + self.batch].to(self.device)

    def run(self, number: int, block: nn.Module, states: Tensor) -> Tensor:
        """(B, T, E): the output of block ``number`` for ``states`` (B, T, E)."""
        args, kwargs = self.calls[len(states)][number]
        with widened_on_cpu(block):
            output = block(states, *args, **kwargs)
        return output if isinstance(output, Tensor) else output[0]

    def put(self, start: int, states: Tensor) -> None:
        self.states[start : start + len(states)] = states.to(self.states.device)

    def copy(self) -> Stream:
        return Stream(
            _allocated(self.states.shape, self.states.dtype).copy_(self.states), self.calls, self.device, self.batch
        )


def _allocated(shape: Iterable[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU; a large one is in a file that disappears with it."""
    size = torch.Size(shape)
    if size.numel() * dtype.itemsize <= _IN_MEMORY:
        return torch.empty(size, dtype=dtype)
    handle, name = tempfile.mkstemp(prefix="modhifi.", suffix=".states")
    os.close(handle)
    try:
        return torch.from_file(name, shared=True, size=size.numel(), dtype=dtype).reshape(size)
    finally:
        with contextlib.suppress(OSError):  # Windows cannot delete a file while it is mapped
            Path(name).unlink()


@torch.inference_mode()
def entered(module: CausalLM, batches: Iterable[Tensor], samples: int) -> Stream:
    """Runs everything before the first block on all ``batches`` (B, T), ``samples`` in total, the first one the largest."""
    blocks = module.blocks()
    device = place_of(module)
    calls: dict[int, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    states: Tensor | None = None
    first: list[Tensor] = []

    def stand_in(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        first[:] = [hidden]
        seen.append((args, kwargs))
        if len(seen) == len(blocks):
            raise _LastBlockError
        return hidden

    done = largest = 0
    with substituted((block, "forward", stand_in) for _, block in blocks):
        for batch in batches:
            seen.clear()
            with contextlib.suppress(_LastBlockError):
                module(batch.to(device))
            calls.setdefault(len(batch), list(seen))
            (hidden,) = first
            if states is None:
                states, largest = _allocated((samples, *hidden.shape[1:]), hidden.dtype), len(batch)
            states[done : done + len(batch)] = hidden.to(states.device)
            done += len(batch)
    if states is None:
        states, largest = torch.empty(0), 1
    return Stream(states, calls, device, largest)


def collect_blocks(
    module: CausalLM,
    layers: Mapping[str, Mapping[str, Tensor]],
    batches: Iterable[Tensor],
    samples: int,
    *,
    seed: int = 0,
    numbers: range | None = None,
    progress: Progress = silent,
) -> Iterator[tuple[str, dict[str, Moments]]]:
    """Yields each block's name and the moments of its layers' inputs, block after block, without holding on to earlier ones.

    Arguments are as in `collect`; ``batches`` are windows of tokens (B, T), all but the last of the same size. Every token is
    used. Moments are dense whatever a layer's width: if every neuron is a component, the matrix of contributions would be
    just as large.
    """
    numbers = numbers or range(samples)
    stream = entered(module, batches, len(numbers))
    blocks = module.blocks()
    for number, (path, block) in enumerate(blocks):
        progress(number, len(blocks), "collecting statistics, block by block")
        yield path, _one_block(stream, number, path, block, layers, samples, seed, numbers)
    progress(len(blocks), len(blocks), "collecting statistics, block by block")


def _one_block(
    stream: Stream,
    number: int,
    path: str,
    block: nn.Module,
    layers: Mapping[str, Mapping[str, Tensor]],
    samples: int,
    seed: int,
    numbers: range,
) -> dict[str, Moments]:
    block = held(block)
    sums: dict[str, LayerSums] = {}
    for name, groups in layers.items():
        if name.startswith(f"{path}."):
            layer = get_operator(block, name.removeprefix(f"{path}."))
            sums[name] = LayerSums(name, layer, groups, samples, seed, 0, layer.weight.shape[1], every=True)
    current = torch.zeros(0, dtype=torch.int64)
    see: Callable[..., None] = lambda name, layer, x, y: sums[f"{path}.{name}"].take(layer, x, y, current)  # noqa: E731
    seen = [name.removeprefix(f"{path}.") for name in sums]
    with torch.inference_mode(), full_precision(), observed(block, seen, see):
        for start in stream.starts():
            states = stream.at(start)
            current = torch.arange(numbers.start + start, numbers.start + start + len(states))
            stream.put(start, stream.run(number, block, states))
    add_up([value for one in sums.values() for value in one.sums.values()])
    agree(list(sums.values()))
    return {name: one.result() for name, one in sums.items()}
