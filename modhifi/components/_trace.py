"""Observes one forward pass: which layers run in which order, how many positions each computes, and the cost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..layers import LAYERS, TRANSPOSED, Operator, flat_weight, input_axis, operate, width_of, without_fast_path
from ..models import is_packed

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Trace", "flop_counter", "trace"]


@dataclass
class Trace:
    """``order``: names of the convolutions and linear layers in the order they ran; for each, ``positions`` per sample: how often
    each entry of its kernel is used, in all its calls. ``macs``: per sample, by module name, including everything inside the
    module; ``""`` is the whole network. ``odd``: layers whose output is not that of a convolution or linear layer with their
    weight and bias. ``mixed``: layers whose input does not hold one sample after another (a table of positions, the same for
    every image).
    """

    order: list[str] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)
    odd: set[str] = field(default_factory=set)
    mixed: set[str] = field(default_factory=set)


@contextlib.contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    """Counts the operations run inside the context, two per multiply-accumulate; gradients are off."""
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton where there is one

    # The fast path is a single operation that the counter does not know.
    with without_fast_path(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        yield counter


def trace(module: nn.Module, example: Tensor) -> Trace:
    """Runs ``module`` on ``example`` (1, 3, H, W), and once more with a second sample appended."""
    found = Trace()
    overridden: list[tuple[str, Operator, Tensor, Tensor]] = []
    first: dict[str, Tensor] = {}

    def note(name: str, layer: Operator, x: Tensor, output: Tensor) -> None:
        if name not in found.positions:
            found.order.append(name)
            first[name] = x.clone() if len(x) > 1 else x.new_empty(1)
        transposed = isinstance(layer, TRANSPOSED)
        given = x.shape[input_axis(layer, x)]
        positions = x.numel() // given if transposed else output.numel() // width_of(layer)
        found.positions[name] = found.positions.get(name, 0) + positions
        if transposed or all(type(layer).forward is not plain.forward for plain in LAYERS):
            overridden.append((name, layer, x, output.clone()))

    def compare(name: str, _: Operator, x: Tensor, __: Tensor) -> None:
        alone = first.pop(name, None)
        if alone is None:  # seen before
            return
        # The rows of one sample must be contiguous.
        contiguous = len(x) == 2 * len(alone) and (
            len(alone) == 1 or torch.allclose(x[: len(alone)], alone, rtol=1e-3, atol=1e-4)
        )
        if not contiguous:
            found.mixed.add(name)

    with flop_counter() as counter, _watched(module, note):
        module(example)
    if is_packed(example):  # with whole numbers in it: half of each is in the same range
        other = example / 2
    else:
        other = torch.randn(example.shape, dtype=example.dtype, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), _watched(module, compare):
        module(torch.cat([example, other]))
    found.odd = {name for name, layer, x, output in overridden if not _behaves_as_plain(layer, x, output)}
    root = f"{type(module).__name__}."
    for name, counts in counter.get_flop_counts().items():
        macs = sum(counts.values()) // 2
        found.macs[name.removeprefix(root) if name.startswith(root) else ""] = macs
    found.macs[""] = counter.get_total_flops() // 2
    return found


@contextlib.contextmanager
def _watched(module: nn.Module, see: Callable[[str, Operator, Tensor, Tensor], None]) -> Iterator[None]:
    """Inside the context, every convolution and linear layer that runs calls ``see(name, layer, input, output)``."""
    hooks = [
        layer.register_forward_hook(lambda layer, args, output, name=name: see(name, layer, args[0], output))
        for name, layer in module.named_modules()
        if isinstance(layer, LAYERS)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _behaves_as_plain(layer: Operator, x: Tensor, output: Tensor) -> bool:
    """Whether the forward pass gives what `operate` computes from the layer's weight and bias."""
    try:
        expected = operate(layer, x, flat_weight(layer), layer.bias)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return expected.shape == output.shape and torch.allclose(expected, output, rtol=1e-5, atol=1e-6)
