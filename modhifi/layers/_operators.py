"""A common view of the two linear operators that read components, Conv2d and Linear: ``Y = W x`` at every position.

A weight is *flat* when it has shape (O, n): n = in_channels · kernel pixels for a convolution (channel-major, as
`Tensor.flatten` gives it), n = in_features for a linear layer. A position is a pixel of the output or a token. A layer may
receive each sample in several rows of its batch (Swin's windows), one sample after another: the positions of all these rows
belong to the sample. timm's Conv2dSame, which pads by the size of its input, is a Conv2d here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Change",
    "Edit",
    "Operator",
    "bias_of",
    "change_of",
    "changed",
    "edited",
    "flat_weight",
    "get_operator",
    "observed",
    "operate",
    "outputs_at",
    "patches",
    "position_count",
]

Operator = nn.Conv2d | nn.Linear


def get_operator(module: nn.Module, name: str) -> Operator:
    """The layer named ``name``. Raises TypeError if it is neither a Conv2d nor a Linear."""
    layer = module.get_submodule(name)
    if not isinstance(layer, (nn.Conv2d, nn.Linear)):
        raise TypeError(f"{name} is a {type(layer).__name__}, not a Conv2d or Linear")
    return layer


def flat_weight(layer: Operator) -> Tensor:
    """The flat weight (O, n), a view."""
    return layer.weight.detach().flatten(1)


def bias_of(layer: Operator) -> Tensor:
    """The bias (O,); zeros if the layer has none."""
    return layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias.detach()


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


def _padded(layer: nn.Conv2d, x: Tensor) -> Tensor:
    if _pads_itself(type(layer)):
        return F.pad(x, _same_padding(layer, x.shape))
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    # torch stores the padding of every mode, including "same", in this attribute, ready for F.pad.
    return F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)


def operate(layer: Operator, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The output of ``layer`` for ``x`` with the flat ``weight`` (O, n) and ``bias`` (O,) in place of its own."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    kernel = weight.reshape(layer.weight.shape)
    return F.conv2d(_padded(layer, x), kernel, bias, layer.stride, 0, layer.dilation, layer.groups)


def _output_size(layer: nn.Conv2d, padded: Tensor) -> tuple[int, int]:
    sizes = [
        (padded.shape[2 + axis] - layer.dilation[axis] * (layer.kernel_size[axis] - 1) - 1) // layer.stride[axis] + 1
        for axis in (0, 1)
    ]
    return sizes[0], sizes[1]


def position_count(layer: Operator, x: Tensor, samples: int) -> int:
    """Positions per sample for the input ``x`` (B, …) of ``samples`` samples."""
    if isinstance(layer, nn.Linear):
        return x.numel() // (samples * x.shape[-1])
    height, width = _output_size(layer, _padded(layer, x[:1]))
    return height * width * (x.shape[0] // samples)


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
    height, width = _output_size(layer, padded)
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    if (kh, kw) == (1, 1) and at is not None and len(at) == batch:
        pixel = at // width * sh * padded.shape[3] + at % width * sw
        columns = padded.flatten(2).gather(2, pixel[:, None].expand(-1, channels, -1))  # (B, C, p)
        return columns.transpose(1, 2).reshape(-1, channels)
    nb, nc, ny, nx = padded.stride()
    # A view of every patch, (B, h, w, C, kh, kw); only the requested ones are copied.
    view = padded.as_strided((batch, height, width, channels, kh, kw), (nb, ny * sh, nx * sw, nc, ny * dh, nx * dw))
    if at is None:
        return view.reshape(batch * height * width, -1)
    row = torch.arange(len(at), device=x.device)[:, None]
    if len(at) != batch:
        row, at = row * (batch // len(at)) + at // (height * width), at % (height * width)
    return view[row, at // width, at % width].reshape(at.numel(), -1)


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
