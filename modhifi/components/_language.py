"""The groups of a causal language model, taken from its family's layer names: no trace is needed if all blocks are alike.

In each decoder block: attention heads (a key-value head with all query heads that share it) and hidden neurons of the MLP. The
residual stream keeps its width.
"""

from __future__ import annotations

from torch import nn

from ..models import CausalLM
from ._structure import Consumer, Cost, Group, Kind, LayerCost, Share, Skipped, Slice, Structure

__all__ = ["language_structure"]


def language_structure(module: CausalLM, context: int) -> Structure:
    """All groups of ``module``, with the cost of one sample of ``context`` tokens."""
    groups: list[Group] = []
    skipped = [Skipped(name="lm", reason="the residual stream keeps its width: every block reads and writes all of it")]
    costs: list[LayerCost] = []
    for path, block in module.blocks():
        found = [_heads(module, path, block), _neurons(module, path, block)]
        single = {group.name: "a single component" for group in found if group.size < 2}
        skipped += [Skipped(name=name, reason=reason) for name, reason in single.items()]
        prunable = [group for group in found if group.name not in single]
        groups += prunable
        for group in prunable:
            costs += _costs(module, group, context)
            if group.kind == "heads":
                heads, units, size = module.heads_of(block)
                # Products of queries with keys, and of attention weights with values, over all pairs of tokens.
                each = 2 * context * context * size * (heads // units)
                share = Share(group=group.name)
                costs.append(
                    LayerCost(name=f"{path}.{module.family.attention}", outputs=0, out_shares=(share,), macs=each)
                )
    total = _dense(module, context)
    tied = Structure(groups=tuple(groups), skipped=(), layers=tuple(costs), other=Cost(params=0, flops=0)).cost()
    return Structure(
        groups=tuple(groups),
        skipped=tuple(skipped),
        layers=tuple(costs),
        other=Cost(params=total.params - tied.params, flops=total.flops - tied.flops),
    )


def _layer(module: nn.Module, name: str) -> nn.Linear:
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def _heads(module: CausalLM, path: str, block: nn.Module) -> Group:
    family = module.family
    heads, units, size = module.heads_of(block)
    shared = size * (heads // units)
    if family.fused:
        written = [Slice(layer=f"{path}.{family.query}", width=size, start=part * heads * size) for part in range(3)]
    else:
        widths = {family.query: shared, family.key: size, family.value: size}
        written = [Slice(layer=f"{path}.{name}", width=width) for name, width in widths.items()]
    return _group(module, "heads", units, written, f"{path}.{family.out}", shared)


def _neurons(module: CausalLM, path: str, block: nn.Module) -> Group:
    family = module.family
    written = [Slice(layer=f"{path}.{name}") for name in family.hidden]
    return _group(module, "neurons", _layer(block, family.down).in_features, written, f"{path}.{family.down}", 1)


def _group(module: CausalLM, kind: Kind, size: int, written: list[Slice], reader: str, width: int) -> Group:
    layer = _layer(module, reader)
    shift = None if layer.bias is None else f"{reader}.bias"
    return Group(
        name=written[0].layer,
        kind=kind,
        size=size,
        producers=tuple(written),
        through=(),
        consumers=(Consumer(layer=reader, width=width, outputs=layer.out_features, shift=shift),),
    )


def _costs(module: CausalLM, group: Group, context: int) -> list[LayerCost]:
    """The costs of the layers that write and read the group, each of which runs ``context`` times per sample."""
    rows = []
    widths: dict[str, int] = {}
    for part in group.producers:  # the three parts of a fused layer count as one
        widths[part.layer] = widths.get(part.layer, 0) + part.width
    for name, width in widths.items():
        layer = _layer(module, name)
        rows.append(
            LayerCost(
                name=name,
                inputs=layer.in_features,
                outputs=0,
                out_shares=(Share(group=group.name, width=width),),
                macs=context,
                params=1,
                per_output=float(layer.bias is not None),
            )
        )
    (reader,) = group.consumers
    layer = _layer(module, reader.layer)
    rows.append(
        LayerCost(
            name=reader.layer,
            inputs=0,
            outputs=layer.out_features,
            in_shares=(Share(group=group.name, width=reader.width),),
            macs=context,
            params=1,
            per_output=float(layer.bias is not None),
        )
    )
    return rows


def _dense(module: CausalLM, context: int) -> Cost:
    """The cost of the whole network. Every linear layer runs once per token."""
    flops = sum(
        context * layer.in_features * layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear)
    )
    for _, block in module.blocks():
        heads, _, size = module.heads_of(block)
        flops += 2 * context * context * heads * size
    return Cost(params=sum(parameter.numel() for parameter in module.parameters()), flops=flops)
