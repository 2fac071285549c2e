"""What the tracer is shown in place of modules that it cannot follow, and what must be set right in them afterwards.

torch-pruning reads the coupling of channels off the operations between layers. Attention reshapes channels into heads,
windows and patches reshape positions, a padded shortcut shifts channels, an MLP over tokens mixes positions: it misreads all
of them. An `Adapter` replaces such a module's forward pass, while the network is traced, by one that couples the same
channels in operations that it reads well; says which channels can only go together beyond that (a head); and after a removal
puts the module's own numbers (how many heads, how much padding) in order.

Modules are known by the name of their class, so that no library is imported to recognise them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._stand_in import replaced
from ..models import CausalLM
from ..models.language import set_heads
from ._types import Slice

__all__ = ["Cut", "Extra", "extras", "set_right", "standing_in"]


@dataclass(frozen=True)
class Extra:
    """Equally many units in every slice: unit ``i`` of all of them can only go together (a head, its row of a table)."""

    size: int
    outputs: tuple[Slice, ...]
    inputs: tuple[Slice, ...]
    tables: tuple[Slice, ...] = ()
    """Parameters that have one column for each unit."""
    core: str | None = None
    """For heads, the attention: its multiply-accumulates beyond its layers' belong to them in equal parts."""


@dataclass(frozen=True)
class Cut:
    """Of ``total`` output channels of a layer those in ``keep`` stayed."""

    total: int
    keep: Sequence[int]


class Adapter:
    """For one kind of module."""

    classes: tuple[str, ...] = ()
    method = "forward"
    """The method that the stand-in replaces."""

    def stand_in(self, module: Any, sides: list[Tensor]) -> Callable[..., Any] | None:
        """What the tracer runs instead, None for the module's own; ``sides`` takes outputs that join no other path."""

    def extra(self, name: str, module: Any) -> Extra | None:
        """What can only go together beyond what the trace shows."""

    def set_right(self, name: str, module: Any, cuts: Mapping[str, Cut]) -> None:
        """After layers were cut, ``cuts`` by their names."""


def _source(x: Tensor) -> Tensor:
    """``x`` as if it came from nowhere."""
    return x.detach().requires_grad_(True)


class _Attention(Adapter):
    """timm's attention, q/k/v fused or separate, several heads sharing one k/v head included. The trace is cut between heads
    and projection, `extra` joins them again. One component is a k/v head with all heads that share it.
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
            return None  # a gate that another layer writes, a normalisation across heads
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
    """Attention that uses the weights of its layers without running them: nothing in it can be observed or cut, and following
    its windows and heads takes the tracer minutes and gigabytes. It stays whole, with the channels that it reads and writes.
    """

    classes = (
        "torch.nn.modules.activation.MultiheadAttention",
        "torchvision.models.swin_transformer.ShiftedWindowAttention",
    )

    def stand_in(self, module: Any, sides: list[Tensor]) -> Callable[..., Any]:
        def forward(x: Tensor, *others: Tensor, **_: Any) -> Any:
            sides.extend([x, *(other for other in others if isinstance(other, Tensor))])
            answer = _source(x)
            return (answer, None) if isinstance(module, nn.MultiheadAttention) else answer

        return forward


class _Positions(Adapter):
    """The classification token and the position embedding, which the tracer takes for channels put side by side."""

    classes = ("timm.models.vision_transformer.VisionTransformer",)
    method = "_pos_embed"

    def stand_in(self, module: Any, sides: list[Tensor]) -> Callable[..., Any]:  # noqa: ARG002
        return lambda x: x.flatten(1, -2)


class _Windows(Adapter):
    """Swin's windows: positions are regrouped, channels are not."""

    classes = ("timm.models.swin_transformer.SwinTransformerBlock",)

    def stand_in(self, module: Any, sides: list[Tensor]) -> Callable[..., Any]:  # noqa: ARG002
        def forward(x: Tensor) -> Any:
            x = x + module.attn(module.norm1(x))
            return x + module.mlp(module.norm2(x))

        return forward


class _Merging(Adapter):
    """Swin's patch merging puts four neighbouring positions side by side. Its channels are normalised, hence left whole."""

    classes = ("timm.models.swin_transformer.PatchMerging",)

    def stand_in(self, module: Any, sides: list[Tensor]) -> Callable[..., Any]:
        def forward(x: Tensor) -> Any:
            sides.append(x)
            return module.reduction(_source(x[:, ::2, ::2].repeat(1, 1, 1, 4)))

        return forward


class _Mixer(Adapter):
    """MLP-Mixer: one of its two MLPs runs over positions, whose outputs are no channels."""

    classes = ("timm.models.mlp_mixer.MixerBlock",)

    def stand_in(self, module: Any, sides: list[Tensor]) -> Callable[..., Any]:
        def forward(x: Tensor) -> Any:
            sides.append(module.mlp_tokens(_source(x.transpose(1, 2))))
            return x + module.mlp_channels(module.norm2(x))

        return forward


class _PaddedShortcut(Adapter):
    """Option A of the CIFAR ResNets: between the channels that are new in the stage lie those that were there before."""

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
        # What the first convolution reads is what the shortcut adds.
        old = module.conv1.in_channels
        written = Slice(layer=f"{name}.conv2", start=module.padding[0])
        return Extra(size=old, outputs=(written,), inputs=(Slice(layer=f"{name}.conv1"),))

    def set_right(self, name: str, module: Any, cuts: Mapping[str, Cut]) -> None:
        cut = cuts.get(f"{name}.conv2")
        if cut is not None:
            before, behind = module.padding
            first_behind = cut.total - behind
            module.padding = (sum(i < before for i in cut.keep), sum(i >= first_behind for i in cut.keep))


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
    """While open, the known modules inside ``module`` run as their stand-ins."""
    known = ((part, adapter.method, adapter.stand_in(part, sides)) for adapter, _, part in _known(module))
    return replaced((part, method, forward) for part, method, forward in known if forward is not None)


def extras(module: nn.Module) -> list[Extra]:
    """What can only go together beyond what the trace shows, in forward order of the modules."""
    found = (adapter.extra(name, part) for adapter, name, part in _known(module))
    return [extra for extra in found if extra is not None]


def set_right(module: nn.Module, cuts: Mapping[str, Cut]) -> None:
    """Puts the known modules' own numbers in order after the layers named in ``cuts`` were cut."""
    if isinstance(module, CausalLM):
        set_heads(module)
        return
    for adapter, name, part in _known(module):
        adapter.set_right(name, part, cuts)
