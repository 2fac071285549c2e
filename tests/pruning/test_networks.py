"""Large networks with random weights: the budget reaches residual streams and attention heads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import modhifi
from modhifi import Model
from modhifi.evaluation import count_cost
from modhifi.models import InputSpec


def load(name: str, size: int) -> Model:
    model = modhifi.load_model(f"timm:{name}", device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in model.module.modules():
            # timm begins with blocks that add nothing to the stream: their last normalisation is zero.
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
    model.input = InputSpec(size=(size, size), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    model.fingerprint = modhifi.models.fingerprint(model.module)
    return model


@pytest.mark.slow
def test_a_resnet50_at_half_its_flops_has_narrower_stages() -> None:
    model = load("resnet50", 64)
    study = modhifi.analyze(model, modhifi.load_data("digits"), samples=48, batch_size=16)
    plan = modhifi.prune(study, flops=0.5)
    smaller = modhifi.apply(plan, model)
    cost = count_cost(smaller)
    assert (cost.params, cost.flops) == (plan.predicted["params"], plan.predicted["flops"])
    assert 0.45 < cost.flops / study.dense.flops <= 0.5
    streams = {group.name: group for group in study.groups if group.kind == "stream"}
    assert [group.size for group in streams.values()] == [256, 512, 1024, 2048]
    widths = [len(plan.groups[name].keep) for name in streams]
    assert sum(width < group.size for width, group in zip(widths, streams.values(), strict=True)) >= 3
    for stage, width in enumerate(widths, 1):
        for block in smaller.module.get_submodule(f"layer{stage}"):
            assert block.conv3.out_channels == block.bn3.num_features == width
    assert smaller.module.fc.in_features == widths[-1]


def test_a_vit_loses_whole_heads() -> None:
    model = load("vit_tiny_patch16_224", 224)
    study = modhifi.analyze(model, modhifi.load_data("digits"), samples=12, batch_size=4)
    heads = [group for group in study.groups if group.kind == "heads"]
    assert [group.size for group in heads] == [3] * 12
    plan = modhifi.prune(study, params=0.6)
    smaller = modhifi.apply(plan, model)
    kept = [len(plan.groups[group.name].keep) for group in heads]
    assert min(kept) < 3
    for block, count in zip(smaller.module.blocks, kept, strict=True):
        assert block.attn.num_heads == count
        assert block.attn.qkv.out_features == 3 * 64 * count
        assert block.attn.proj.in_features == 64 * count
    cost = count_cost(smaller)
    assert (cost.params, cost.flops) == (plan.predicted["params"], plan.predicted["flops"])
    assert cost.params <= 0.6 * study.dense.params
