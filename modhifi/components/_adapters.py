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
    """Fused q/k/v of timm's transformers. The trace is cut between heads and projection, `extra` joins them again."""

    classes = ("timm.layers.attention.Attention", "timm.models.swin_transformer.WindowAttention")

    def stand_in(self, module: Any, sides: list[Tensor]) -> Callable[..., Any]:
        def forward(x: Tensor, *_: Any, **__: Any) -> Any:
            fused = module.qkv(x)  # (…, 3 · heads · head_dim)
            sides.append(fused)
            return module.proj(_source(fused[..., : module.proj.in_features]))

        return forward

    def extra(self, name: str, module: Any) -> Extra | None:
        if getattr(module, "gate", None) is not None or not isinstance(
            getattr(module, "norm", nn.Identity()), nn.Identity
        ):
            return None  # a gate that another layer writes, a normalisation across heads
        heads, width = int(module.num_heads), int(module.proj.in_features)
        head = width // heads
        table = "relative_position_bias_table"
        return Extra(
            size=heads,
            outputs=tuple(Slice(layer=f"{name}.qkv", width=head, start=part * width) for part in range(3)),
            inputs=(Slice(layer=f"{name}.proj", width=head),),
            tables=(Slice(layer=f"{name}.{table}"),) if hasattr(module, table) else (),
            core=name,
        )

    def set_right(self, name: str, module: Any, cuts: Mapping[str, Cut]) -> None:
        cut = cuts.get(f"{name}.qkv")
        if cut is not None:
            head = cut.total // 3 // module.num_heads
            module.num_heads = len(cut.keep) // 3 // head
            if hasattr(module, "attn_dim"):
                module.attn_dim = module.num_heads * head


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


_ADAPTERS: tuple[Adapter, ...] = (_Attention(), _Positions(), _Windows(), _Merging(), _Mixer(), _PaddedShortcut())


def _known(module: nn.Module) -> Iterator[tuple[Adapter, str, nn.Module]]:
    for name, part in module.named_modules():
        kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(part).__mro__}
        for adapter in _ADAPTERS:
            if not kinds.isdisjoint(adapter.classes):
                yield adapter, name, part


@contextlib.contextmanager
def standing_in(module: nn.Module, sides: list[Tensor]) -> Iterator[None]:
    """While open, the known modules inside ``module`` run as their stand-ins."""
    replaced: list[tuple[nn.Module, str]] = []
    try:
        for adapter, _, part in _known(module):
            forward = adapter.stand_in(part, sides)
            if forward is not None:
                part.__dict__[adapter.method] = forward
                replaced.append((part, adapter.method))
        yield
    finally:
        for part, method in replaced:
            del part.__dict__[method]


def extras(module: nn.Module) -> list[Extra]:
    """What can only go together beyond what the trace shows, in forward order of the modules."""
    found = (adapter.extra(name, part) for adapter, name, part in _known(module))
    return [extra for extra in found if extra is not None]


def set_right(module: nn.Module, cuts: Mapping[str, Cut]) -> None:
    """Puts the known modules' own numbers in order after the layers named in ``cuts`` were cut."""
    for adapter, name, part in _known(module):
        adapter.set_right(name, part, cuts)
