"""A common view of the linear operators that read components, convolutions and linear layers: ``Y = W x`` at every position.

A weight is *flat* when it has shape (O, n): n = in_channels · kernel pixels for a convolution (channel-major, as
`Tensor.flatten` gives it), n = in_features for a linear layer. A transposed convolution is the ordinary one, with stride 1 and
the kernel reversed, of its input with stride - 1 zeros between neighbours (Dumoulin and Visin, arXiv 1603.07285, section 4);
its flat weight is that of this convolution. A position is a pixel of the output or a token. A layer may receive each sample in
several rows of its batch (Swin's windows), one sample after another: the positions of all these rows belong to the sample.
timm's Conv2dSame, which pads by the size of its input, is a Conv2d here.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._attention import without_fast_path

__all__ = [
    "LAYERS",
    "TRANSPOSED",
    "Change",
    "Edit",
    "Operator",
    "bias_of",
    "change_of",
    "changed",
    "edited",
    "flat_weight",
    "get_operator",
    "input_axis",
    "observed",
    "operate",
    "outputs_at",
    "patches",
    "position_count",
    "shaped_weight",
    "width_of",
]

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Operator = Convolution | nn.Linear

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS: tuple[type[Convolution], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
LAYERS: tuple[type[Operator], ...] = (*_CONVOLUTIONS, nn.Linear)
"""The types of layers that are operators."""
_RUN: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def get_operator(module: nn.Module, name: str) -> Operator:
    """The layer named ``name``. Raises TypeError if it is neither a convolution nor a Linear."""
    layer = module.get_submodule(name)
    if not isinstance(layer, LAYERS):
        raise TypeError(f"{name} is a {type(layer).__name__}, not a convolution or Linear")
    return layer


def width_of(layer: nn.Module) -> int:
    """Output channels of a convolution or linear layer."""
    return int(layer.out_channels if isinstance(layer, _CONVOLUTIONS) else layer.out_features)  # type: ignore[arg-type]


def input_axis(layer: nn.Module, x: Tensor) -> int:
    """The axis of the layer's input, and of its output, that holds its channels."""
    return x.ndim - 1 - len(layer.kernel_size) if isinstance(layer, _CONVOLUTIONS) else x.ndim - 1


def flat_weight(layer: Operator) -> Tensor:
    """The flat weight (O, n); a view except for a transposed convolution."""
    weight: Tensor = layer.weight.detach()
    if not isinstance(layer, TRANSPOSED):
        return weight.flatten(1)
    parts = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2)  # (g, O/g, I/g, …)
    flat: Tensor = parts.flatten(0, 1).flip(tuple(range(2, weight.ndim))).flatten(1)
    return flat


def shaped_weight(layer: Operator, flat: Tensor) -> Tensor:
    """The weight of the layer for which `flat_weight` is ``flat``."""
    if not isinstance(layer, TRANSPOSED):
        return flat.reshape(layer.weight.shape)
    kernel = flat.reshape(layer.groups, -1, layer.in_channels // layer.groups, *layer.kernel_size)  # (g, O/g, I/g, …)
    return kernel.flip(tuple(range(3, kernel.ndim))).transpose(1, 2).flatten(0, 1)


def bias_of(layer: Operator) -> Tensor:
    """The bias (O,); zeros if the layer has none."""
    return layer.weight.new_zeros(width_of(layer)) if layer.bias is None else layer.bias.detach()


# Layers that pad as TensorFlow does, by the names of their classes, so that timm need not be imported.
_SAME = frozenset({"timm.layers.conv2d_same.Conv2dSame"})


def _pads_itself(kind: type) -> bool:
    return any(f"{base.__module__}.{base.__qualname__}" in _SAME for base in kind.__mro__)


def _same_padding(layer: nn.Conv2d, size: torch.Size) -> list[int]:
    """TensorFlow's SAME padding for a map (…, H, W), in the order of `F.pad`: as much as makes ⌈size/stride⌉ outputs along each
    axis, and where it is odd, one more at the end (TensorFlow's documentation of `tf.nn`, *Notes on padding*).
    """
    pads = []
    for axis in (1, 0):
        given, step = size[2 + axis], layer.stride[axis]
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        total = max(0, (-(-given // step) - 1) * step + reach - given)
        pads += [total // 2, total - total // 2]
    return pads


def _padded(layer: Convolution, x: Tensor) -> Tensor:
    """The input (B, C, …) of the convolution without padding that gives the layer's output."""
    if isinstance(layer, TRANSPOSED):
        return _spread(layer, x)
    if isinstance(layer, nn.Conv2d) and _pads_itself(type(layer)):
        return F.pad(x, _same_padding(layer, x.shape))
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    # torch stores the padding of every mode, including "same", in this attribute, ready for F.pad.
    return F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)


def _spread(layer: Convolution, x: Tensor) -> Tensor:
    sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], layer.stride, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *sizes)
    every: tuple[Any, ...] = (..., *(slice(None, None, step) for step in layer.stride))
    spread[every] = x
    pads: list[int] = []
    for axis in reversed(range(len(sizes))):
        edge = layer.dilation[axis] * (layer.kernel_size[axis] - 1) - int(layer.padding[axis])
        pads += [edge, edge + layer.output_padding[axis]]
    return F.pad(spread, pads)


def _steps(layer: Convolution) -> tuple[int, ...]:
    return (1,) * len(layer.kernel_size) if isinstance(layer, TRANSPOSED) else tuple(layer.stride)


def operate(layer: Operator, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The output of ``layer`` for ``x`` with the flat ``weight`` (O, n) and ``bias`` (O,) in place of its own."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    kernel = weight.reshape(len(weight), -1, *layer.kernel_size)
    run = _RUN[len(layer.kernel_size)]
    return run(_padded(layer, x), kernel, bias, _steps(layer), 0, layer.dilation, layer.groups)


def _output_size(layer: Convolution, padded: Tensor) -> tuple[int, ...]:
    spans = (step * (size - 1) for step, size in zip(layer.dilation, layer.kernel_size, strict=True))
    return tuple(
        (given - span - 1) // step + 1 for given, span, step in zip(padded.shape[2:], spans, _steps(layer), strict=True)
    )


def position_count(layer: Operator, x: Tensor, samples: int) -> int:
    """Positions per sample for the input ``x`` (B, …) of ``samples`` samples."""
    if isinstance(layer, nn.Linear):
        return x.numel() // (samples * x.shape[-1])
    return math.prod(_output_size(layer, _padded(layer, x[:1]))) * (x.shape[0] // samples)


def patches(layer: Operator, x: Tensor, at: Tensor | None = None) -> Tensor:
    """The vectors that the flat weight multiplies, one row per position, (B·p, n).

    ``x``: the layer's input. ``at``: (samples, p) int64, the positions of each sample; None for all, in order.
    """
    if isinstance(layer, nn.Linear):
        if at is None:
            return x.reshape(-1, x.shape[-1])
        tokens = x.reshape(len(at), -1, x.shape[-1])  # (samples, P, n)
        return tokens[torch.arange(len(at), device=x.device)[:, None], at].reshape(-1, x.shape[-1])
    padded = _padded(layer, x).contiguous()
    batch, channels = padded.shape[:2]
    sizes, steps = _output_size(layer, padded), _steps(layer)
    if set(layer.kernel_size) == {1} and at is not None and len(at) == batch:
        pixel = torch.zeros_like(at)
        for index, step, width in zip(_indices(at, sizes), steps, padded.shape[2:], strict=True):
            pixel = pixel * width + index * step
        columns = padded.flatten(2).gather(2, pixel[:, None].expand(-1, channels, -1))  # (B, C, p)
        return columns.transpose(1, 2).reshape(-1, channels)
    nb, nc, *strides = padded.stride()
    moves = [stride * step for stride, step in zip(strides, steps, strict=True)]
    inside = [stride * step for stride, step in zip(strides, layer.dilation, strict=True)]
    # A view of every patch, (B, h, w, C, kh, kw); only the requested ones are copied.
    view = padded.as_strided((batch, *sizes, channels, *layer.kernel_size), (nb, *moves, nc, *inside))
    pixels = math.prod(sizes)
    if at is None:
        return view.reshape(batch * pixels, -1)
    row = torch.arange(len(at), device=x.device)[:, None]
    if len(at) != batch:
        row, at = row * (batch // len(at)) + at // pixels, at % pixels
    return view[(row, *_indices(at, sizes))].reshape(at.numel(), -1)


def _indices(at: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The index along each axis of the positions ``at`` in a map with these ``sizes``."""
    found: list[Tensor] = []
    for size in reversed(sizes[1:]):
        found.append(at % size)
        at = at // size
    return [at, *reversed(found)]


def outputs_at(layer: Operator, y: Tensor, at: Tensor | None = None) -> Tensor:
    """``W x`` at the positions of `patches`, (B·p, O), from the layer's output ``y``, without its bias; float32, or float64 if
    ``y`` is.
    """
    bias = None if layer.bias is None else layer.bias.detach()
    if isinstance(layer, nn.Linear):
        rows = y.reshape(y.shape[0] if at is None else len(at), -1, y.shape[-1])  # (samples, P, O)
        chosen = rows if at is None else rows.gather(1, at[:, :, None].expand(-1, -1, rows.shape[2]))
    else:
        maps = y.flatten(2)  # (samples, O, P)
        if at is not None and len(at) != len(maps):
            maps = maps.unflatten(0, (len(at), -1)).transpose(1, 2).flatten(2)
        chosen = (maps if at is None else maps.gather(2, at[:, None].expand(-1, maps.shape[1], -1))).transpose(1, 2)
    found = chosen.reshape(-1, chosen.shape[2])
    found = found.to(torch.promote_types(found.dtype, torch.float32))
    return found if bias is None else found - bias


@contextlib.contextmanager
def observed(
    module: nn.Module, names: Iterable[str], see: Callable[[str, Operator, Tensor, Tensor], None]
) -> Iterator[None]:
    """Inside the context, each forward pass through a named layer calls ``see(name, layer, input, output)``."""
    hooks = []
    try:
        for name in names:
            layer = get_operator(module, name)

            def hook(layer: nn.Module, args: tuple[Any, ...], output: Tensor, *, name: str = name) -> None:
                see(name, layer, args[0].detach(), output.detach())  # type: ignore[arg-type]

            hooks.append(layer.register_forward_hook(hook))
        with without_fast_path():
            yield
    finally:
        for handle in hooks:
            handle.remove()


@dataclass(frozen=True)
class Edit:
    """A layer's new flat weight (O, n), and a constant (O,) added to its output to preserve its mean."""

    weight: Tensor
    shift: Tensor


Change = Callable[[Operator, Tensor, Tensor], Tensor]
"""Maps a layer, its input and its output to what is added to the output."""


@contextlib.contextmanager
def changed(
    module: nn.Module, changes: Mapping[str, Change], see: Callable[[str, Tensor], None] | None = None
) -> Iterator[None]:
    """Inside the context, each named layer's change is added to its output; nothing in ``module`` is written.

    ``see(name, difference)`` receives what was added, in the shape of the layer's output.
    """
    hooks = []
    try:
        for name, change in changes.items():

            def hook(
                layer: nn.Module, args: tuple[Any, ...], output: Tensor, *, name: str = name, change: Change = change
            ) -> Tensor:
                difference = change(layer, args[0], output)  # type: ignore[arg-type]
                if see is not None:
                    see(name, difference)
                return output + difference

            hooks.append(get_operator(module, name).register_forward_hook(hook))
        with without_fast_path():
            yield
    finally:
        for handle in hooks:
            handle.remove()


def change_of(layer: Operator, edit: Edit) -> Change:
    """What an edit of ``layer`` adds to its output."""
    own = flat_weight(layer)
    delta, shift = edit.weight.to(own) - own, edit.shift.to(own)
    return lambda layer, x, _: operate(layer, x, delta, shift)


def edited(
    module: nn.Module, edits: Mapping[str, Edit], see: Callable[[str, Tensor], None] | None = None
) -> contextlib.AbstractContextManager[None]:
    """Inside the context, each named layer computes with its edit instead of its own weight; see `changed`."""
    return changed(module, {name: change_of(get_operator(module, name), edit) for name, edit in edits.items()}, see)
