"""Stand-ins for modules that the tracer cannot follow, and the updates that these modules need after a removal.

torch-pruning infers the coupling of channels from the operations between layers. It misreads attention (which reshapes
channels into heads), windows and patches (which reshape positions), padded shortcuts (which shift channels) and MLPs over
tokens (which mix positions). While the network is traced, an `Adapter` replaces the forward pass of such a module by one
that couples the same channels through operations that are read correctly. It also lists channels that can only be removed
together beyond that (a head), and after a removal it updates the module's attributes (number of heads, padding).

Modules are recognised by the name of their class, so that no library has to be imported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import substituted
from ..models import CausalLM
from ..models.language import set_heads
from ._structure import Slice

__all__ = ["Cut", "Extra", "extras", "set_right", "standing_in"]


@dataclass(frozen=True)
class Extra:
    """Equally many units in every slice: unit ``i`` of all slices can only be removed together (a head, its row of a table)."""

    size: int
    outputs: tuple[Slice, ...]
    inputs: tuple[Slice, ...]
    tables: tuple[Slice, ...] = ()
    """Parameters with one column per unit."""
    core: str | None = None
    """For heads, the attention module: its multiply-accumulates beyond those of its layers are shared equally by the heads."""


@dataclass(frozen=True)
class Cut:
    """A layer that had ``total`` output channels and kept those in ``keep``."""

    total: int
    keep: Sequence[int]


class Adapter:
    """Handles one kind of module."""

    classes: tuple[str, ...] = ()
    method = "forward"
    """The method that the stand-in replaces."""

    def stand_in(self, module: Any, sides: list[Tensor]) -> Callable[..., Any] | None:
        """What the tracer runs instead; None for its own forward. ``sides`` collects outputs that join no other path."""

    def extra(self, name: str, module: Any) -> Extra | None:
        """Channels that can only be removed together, beyond what the trace shows."""

    def set_right(self, name: str, module: Any, cuts: Mapping[str, Cut]) -> None:
        """Updates the module's attributes after layers were cut; ``cuts`` is by layer name."""


def _source(x: Tensor) -> Tensor:
    """``x`` detached from whatever computed it."""
    return x.detach().requires_grad_(True)


class _Attention(Adapter):
    """timm's attention: q/k/v fused or separate, also with several heads sharing one k/v head. The trace is cut between heads
    and projection; `extra` joins them again. One component is a k/v head with all heads that share it.
    """

    classes = (
        "timm.layers.attention.Attention",
        "timm.layers.attention.AttentionRope",
        "timm.models.swin_transformer.WindowAttention",
    )

    def stand_in(self, module: Any, sides: list[Tensor]) -> Callable[..., Any]:
        def forward(x: Tensor, *_: Any, **__: Any) -> Any:
            parts = [
                part(x) for part in ([module.qkv] if _fused(module) else _separate(module))
            ]  # (…, heads · head_dim)
            sides.extend(parts)
            return module.proj(_source(parts[0][..., : module.proj.in_features]))

        return forward

    def extra(self, name: str, module: Any) -> Extra | None:
        if getattr(module, "gate", None) is not None or not isinstance(
            getattr(module, "norm", nn.Identity()), nn.Identity
        ):
            return None  # a gate written by another layer, or a normalisation across heads
        heads, width = int(module.num_heads), int(module.proj.in_features)
        head, units = width // heads, _kv_heads(module)
        shared = head * (heads // units)
        if _fused(module):
            outputs = [Slice(layer=f"{name}.qkv", width=head, start=part * width) for part in range(3)]
        else:
            widths = {"q_proj": shared, "k_proj": head, "v_proj": head}
            outputs = [Slice(layer=f"{name}.{part}", width=each) for part, each in widths.items()]
        table = "relative_position_bias_table"
        return Extra(
            size=units,
            outputs=tuple(outputs),
            inputs=(Slice(layer=f"{name}.proj", width=shared),),
            tables=(Slice(layer=f"{name}.{table}"),) if hasattr(module, table) else (),
            core=name,
        )

    def set_right(self, name: str, module: Any, cuts: Mapping[str, Cut]) -> None:
        fused = _fused(module)
        cut = cuts.get(f"{name}.qkv" if fused else f"{name}.k_proj")
        if cut is None:
            return
        units = _kv_heads(module)
        width = cut.total // 3 if fused else cut.total
        left = len(cut.keep) * units // cut.total
        module.num_heads = left * (module.num_heads // units)
        if hasattr(module, "num_kv_heads"):
            module.num_kv_heads = left
            module.kv_dim = left * (width // units)
        if hasattr(module, "attn_dim"):
            module.attn_dim = module.num_heads * (width // units)


def _fused(attention: Any) -> bool:
    return getattr(attention, "qkv", None) is not None


def _separate(attention: Any) -> list[Any]:
    return [attention.q_proj, attention.k_proj, attention.v_proj]


def _kv_heads(attention: Any) -> int:
    return int(getattr(attention, "num_kv_heads", attention.num_heads))


class _Opaque(Adapter):
    """Attention that uses the weights of its layers without running them: nothing in it can be observed or cut, and tracing its
    windows and heads takes minutes and gigabytes. Neither it nor the channels that it reads and writes are pruned.
    """

    classes = (
        "torch.nn.modules.activation.MultiheadAttention",
        "torchvision.models.swin_transformer.ShiftedWindowAttention",
    )

    def stand_in(self, module: Any, sides: list[Tensor]) -> Callable[..., Any]:
        def forward(x: Tensor, *others: Tensor, **_: Any) -> Any:
            sides.extend([x, *(other for other in others if isinstance(other, Tensor))])
            output = _source(x)
            return (output, None) if isinstance(module, nn.MultiheadAttention) else output

        return forward


class _Positions(Adapter):
    """The class token and the position embedding, which the tracer mistakes for concatenated channels."""

    classes = ("timm.models.vision_transformer.VisionTransformer",)
    method = "_pos_embed"

    def stand_in(self, module: Any, sides: list[Tensor]) -> Callable[..., Any]:  # noqa: ARG002
        return lambda x: x.flatten(1, -2)


class _Windows(Adapter):
    """Swin's windows, which regroup positions but not channels."""

    classes = ("timm.models.swin_transformer.SwinTransformerBlock",)

    def stand_in(self, module: Any, sides: list[Tensor]) -> Callable[..., Any]:  # noqa: ARG002
        def forward(x: Tensor) -> Any:
            x = x + module.attn(module.norm1(x))
            return x + module.mlp(module.norm2(x))

        return forward


class _Merging(Adapter):
    """Swin's patch merging concatenates four neighbouring positions. Its channels are normalised and therefore not pruned."""

    classes = ("timm.models.swin_transformer.PatchMerging",)

    def stand_in(self, module: Any, sides: list[Tensor]) -> Callable[..., Any]:
        def forward(x: Tensor) -> Any:
            sides.append(x)
            return module.reduction(_source(x[:, ::2, ::2].repeat(1, 1, 1, 4)))

        return forward


class _Mixer(Adapter):
    """MLP-Mixer: one of its two MLPs runs over positions, so its outputs are not channels."""

    classes = ("timm.models.mlp_mixer.MixerBlock",)

    def stand_in(self, module: Any, sides: list[Tensor]) -> Callable[..., Any]:
        def forward(x: Tensor) -> Any:
            sides.append(module.mlp_tokens(_source(x.transpose(1, 2))))
            return x + module.mlp_channels(module.norm2(x))

        return forward


class _PaddedShortcut(Adapter):
    """Option A of the CIFAR ResNets: the old channels are in the middle, with the stage's new ones on both sides."""

    classes = ("modhifi.models.cifar_resnet.BasicBlock",)

    def stand_in(self, module: Any, sides: list[Tensor]) -> Callable[..., Any] | None:  # noqa: ARG002
        if not any(module.padding):
            return None

        def forward(x: Tensor) -> Any:
            return torch.relu(module.bn2(module.conv2(torch.relu(module.bn1(module.conv1(x))))))

        return forward

    def extra(self, name: str, module: Any) -> Extra | None:
        if not any(module.padding):
            return None
        # The shortcut adds what the first convolution reads.
        old = module.conv1.in_channels
        written = Slice(layer=f"{name}.conv2", start=module.padding[0])
        return Extra(size=old, outputs=(written,), inputs=(Slice(layer=f"{name}.conv1"),))

    def set_right(self, name: str, module: Any, cuts: Mapping[str, Cut]) -> None:
        cut = cuts.get(f"{name}.conv2")
        if cut is not None:
            before, after = module.padding
            first_after = cut.total - after
            module.padding = (sum(i < before for i in cut.keep), sum(i >= first_after for i in cut.keep))


_ADAPTERS: tuple[Adapter, ...] = (
    _Attention(),
    _Opaque(),
    _Positions(),
    _Windows(),
    _Merging(),
    _Mixer(),
    _PaddedShortcut(),
)


def _known(module: nn.Module) -> Iterator[tuple[Adapter, str, nn.Module]]:
    for name, part in module.named_modules():
        kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(part).__mro__}
        for adapter in _ADAPTERS:
            if not kinds.isdisjoint(adapter.classes):
                yield adapter, name, part


def standing_in(module: nn.Module, sides: list[Tensor]) -> contextlib.AbstractContextManager[None]:
    """Inside the context, the known modules in ``module`` run as their stand-ins."""
    known = ((part, adapter.method, adapter.stand_in(part, sides)) for adapter, _, part in _known(module))
    return substituted((part, method, forward) for part, method, forward in known if forward is not None)


def extras(module: nn.Module) -> list[Extra]:
    """Channels that can only be removed together, beyond what the trace shows, in forward order of the modules."""
    found = (adapter.extra(name, part) for adapter, name, part in _known(module))
    return [extra for extra in found if extra is not None]


def set_right(module: nn.Module, cuts: Mapping[str, Cut]) -> None:
    """Updates the attributes of the known modules after the layers named in ``cuts`` were cut."""
    if isinstance(module, CausalLM):
        set_heads(module)
        return
    for adapter, name, part in _known(module):
        adapter.set_right(name, part, cuts)
