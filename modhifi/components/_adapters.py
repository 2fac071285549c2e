"""Attributes of modules that say how many channels or heads they have, and the updates that they need after a removal.

Modules are recognised by the name of their class, so that no library has to be imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..models import CausalLM
from ..models.language import set_heads

__all__ = ["Cut", "set_right"]


@dataclass(frozen=True)
class Cut:
    """A layer that had ``total`` output channels and kept those in ``keep``."""

    total: int
    keep: Sequence[int]


class Adapter:
    """Handles one kind of module."""

    classes: tuple[str, ...] = ()

    def set_right(self, name: str, module: Any, cuts: Mapping[str, Cut]) -> None:
        """Updates the module's attributes after layers were cut; ``cuts`` is by layer name."""


class _Attention(Adapter):
    """timm's attention: q/k/v fused or separate, also with several heads sharing one k/v head."""

    classes = (
        "timm.layers.attention.Attention",
        "timm.layers.attention.AttentionRope",
        "timm.models.swin_transformer.WindowAttention",
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


def _kv_heads(attention: Any) -> int:
    return int(getattr(attention, "num_kv_heads", attention.num_heads))


class _PaddedShortcut(Adapter):
    """Option A of the CIFAR ResNets: the old channels are in the middle, with the stage's new ones on both sides."""

    classes = ("modhifi.models.cifar_resnet.BasicBlock",)

    def set_right(self, name: str, module: Any, cuts: Mapping[str, Cut]) -> None:
        cut = cuts.get(f"{name}.conv2")
        if cut is not None:
            before, after = module.padding
            first_after = cut.total - after
            module.padding = (sum(i < before for i in cut.keep), sum(i >= first_after for i in cut.keep))


_ADAPTERS: tuple[Adapter, ...] = (_Attention(), _PaddedShortcut())


def _known(module: nn.Module) -> Iterator[tuple[Adapter, str, nn.Module]]:
    for name, part in module.named_modules():
        kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(part).__mro__}
        for adapter in _ADAPTERS:
            if not kinds.isdisjoint(adapter.classes):
                yield adapter, name, part


def set_right(module: nn.Module, cuts: Mapping[str, Cut]) -> None:
    """Updates the attributes of the known modules after the layers named in ``cuts`` were cut."""
    if isinstance(module, CausalLM):
        set_heads(module)
        return
    for adapter, name, part in _known(module):
        adapter.set_right(name, part, cuts)
