"""Networks of other families, with random weights: the budget reaches residual streams and attention heads."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import modhifi
from modhifi import Model, Study
from modhifi.bounds._measure import plan_edits
from modhifi.evaluation import count_cost
from modhifi.specs import InputSpec
from modhifi.statistics import _positions
from modhifi.surgery import calibration_data


def load(name: str, **smaller: object) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model(name, num_classes=10, **smaller).eval().requires_grad_(False)
        for module in net.modules():
            # timm begins with blocks that add nothing to the stream: their last normalisation is zero.
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
    spec = InputSpec(size=(64, 64), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return Model(name, net, spec, tuple("0123456789"), None, modhifi.models.fingerprint(net))


def test_a_network_with_the_blocks_of_resnet50_has_narrower_stages() -> None:
    """Two of the four at half of the FLOPs, three at 0.35: a channel of a stream costs all of its many readers. A quarter of
    ResNet-50's width, so that it takes seconds.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = (
            timm.create_model("resnet50", channels=(16, 32, 64, 128), zero_init_last=False).eval().requires_grad_(False)
        )
    spec = InputSpec(size=(64, 64), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    classes = tuple(map(str, range(1000)))
    model = Model("narrow-resnet50", net, spec, classes, None, modhifi.models.fingerprint(net))
    study = modhifi.analyze(model, modhifi.load_data("digits"), samples=48, batch_size=16)
    streams = {group.name: group for group in study.groups if group.kind == "stream"}
    at_half = modhifi.allocate(study, flops=0.5, compensate="full").counts
    assert sum(at_half[name] < group.size for name, group in streams.items()) >= 2
    plan = modhifi.prune(study, flops=0.35, compensate="full")
    smaller = modhifi.apply(plan, model)
    cost = count_cost(smaller)
    assert (cost.params, cost.flops) == (plan.predicted["params"], plan.predicted["flops"])
    assert 0.33 < cost.flops / study.dense.flops <= 0.35
    assert [group.size for group in streams.values()] == [64, 128, 256, 512]
    widths = [len(plan.groups[name].keep) for name in streams]
    assert sum(width < group.size for width, group in zip(widths, streams.values(), strict=True)) >= 3
    for stage, width in enumerate(widths, 1):
        for block in smaller.module.get_submodule(f"layer{stage}"):
            assert block.conv3.out_channels == block.bn3.num_features == width
    assert smaller.module.fc.in_features == widths[-1]


def test_sequential_compensation_is_closer_than_one_shot_also_with_depthwise_layers_and_gates() -> None:
    model = load("mobilenetv3_small_100")
    assert_sequential_is_closer(model, modhifi.analyze(model, modhifi.load_data("digits"), samples=32, batch_size=16))


def assert_sequential_is_closer(model: Model, study: Study) -> None:
    images = torch.cat([batch for batch, _ in calibration_data(study.data).batches(model.input)])
    with torch.inference_mode():
        dense = model.module(images)
        off = {}
        for compensate in ("none", "full", "sequential"):
            plan = modhifi.prune(study, params=0.7, allocation="uniform", compensate=compensate, model=model)
            assert (plan.settings.ridges != {}) == (compensate != "none")
            off[compensate] = float((modhifi.apply(plan, model).module(images) - dense).norm())
    assert off["sequential"] < off["full"] < off["none"]


def test_a_vit_loses_whole_heads() -> None:
    model = load("vit_tiny_patch16_224", img_size=64, depth=4)
    study = modhifi.analyze(model, modhifi.load_data("digits"), samples=12, batch_size=4)
    heads = [group for group in study.groups if group.kind == "heads"]
    assert [group.size for group in heads] == [3] * 4
    plan = modhifi.prune(study, params=0.6, compensate="full")
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
    assert_sequential_is_closer(model, study)


@pytest.mark.parametrize("name", ["swin_transformer.SwinTransformer", "swin_transformer_v2.SwinTransformerV2"])
def test_layers_that_see_an_image_window_by_window(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their rows of the batch are windows: what is summed per sample must be summed over all of its windows."""
    monkeypatch.setattr(_positions, "_ROWS_PER_INPUT", 10**6)  # all positions
    module, _, kind = name.partition(".")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = getattr(getattr(timm.models, module), kind)(
            img_size=32, patch_size=2, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4), num_classes=10
        )
        for part in net.modules():
            if isinstance(part, nn.LayerNorm):  # the second version begins with blocks that add nothing
                part.weight.data.uniform_(0.5, 1.5)
            if isinstance(part, nn.Linear):  # timm's are so small that rounding would be seen
                nn.init.xavier_uniform_(part.weight)
    net.eval().requires_grad_(False)
    spec = InputSpec(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    model = Model(kind, net, spec, tuple("0123456789"), None, modhifi.models.fingerprint(net))
    data = modhifi.load_data("digits")
    study = modhifi.analyze(model, data, samples=24, batch_size=9)
    tables = {skip.name: skip.reason for skip in study.skipped if "cpb_mlp" in skip.name}
    if kind == "SwinTransformer":
        assert study.layers["layers.0.blocks.1.attn.proj"].moments.positions == 256
        assert [group.size for group in study.groups if group.kind == "heads"] == [2, 2, 4, 4]
    else:
        assert len(tables) == 8, "both layers of the MLP over a table of positions"
        assert all("does not read its input sample by sample" in reason for reason in tables.values())
    plan = modhifi.prune(
        study, overrides={group.name: (group.size + 1) // 2 for group in study.groups}, compensate="full"
    )
    report = modhifi.bounds.measure(study, plan, data.take(24, 0), samples=24, model=model)
    edits = plan_edits(study, plan)
    assert len(report.rows) == len(study.layers)
    for row in report.rows:
        assert row.local**2 == pytest.approx(study.layers[row.layer].error(edits[row.layer]), rel=1e-3)
        assert row.alone_bound >= row.measured * (1 - 1e-6)
    # The plan's own weights, on the samples they were fitted to; the plan predicts for others.
    assert 0.7 * plan.predicted["bound"] < report.predicted < plan.predicted["bound"]
    smaller = modhifi.apply(plan, model)
    assert count_cost(smaller).params == plan.predicted["params"]
    assert_sequential_is_closer(model, study)
