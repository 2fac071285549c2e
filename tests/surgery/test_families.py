"""The families that people use: half of everything removed at random, in float32 and float64, exported and opened again."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import nn

import modhifi
from modhifi import Model, Plan
from modhifi.components import Structure, structure_of
from modhifi.evaluation import count_cost
from modhifi.models import fingerprint
from modhifi.plan import GroupPlan, Settings
from modhifi.specs import InputSpec
from modhifi.surgery import verified

# What makes a family's member small: fewer of its blocks, all of their kinds among them, and fewer classes. Then the input size,
# and how many groups of each kind there must be.
FAMILIES = {
    "resnet18": ({"layers": (2, 1, 1, 1)}, 64, {"channels": 5, "stream": 4}),
    "resnet50": ({"layers": (2, 1, 1, 1)}, 64, {"channels": 11, "stream": 4}),
    "vgg16_bn": ({"mlp_ratio": 0.125}, 32, {"channels": 10}),
    "mobilenetv2_100": ({"depth_multiplier": 0.4}, 64, {"channels": 9, "stream": 1}),
    "mobilenetv3_small_100": ({"depth_multiplier": 0.4}, 64, {"channels": 11, "stream": 2}),
    "efficientnet_b0": ({}, 64, {"channels": 15, "stream": 2}),
    "tf_efficientnet_lite0": ({}, 64, {"channels": 9, "stream": 2}),
    "densenet121": ({"block_config": (2, 3)}, 64, {"channels": 12}),
    "convnext_tiny": ({"depths": (1, 2, 1, 1), "dims": (24, 48, 96, 192)}, 64, {"neurons": 5}),
    "regnety_004": ({}, 64, {"channels": 15, "stream": 4}),
    "vit_tiny_patch16_224": ({"depth": 2, "img_size": 64}, 64, {"heads": 2, "neurons": 2}),
    "swin_tiny_patch4_window7_224": (
        {"depths": (2, 2), "embed_dim": 48, "num_heads": (2, 4), "img_size": 112},
        112,
        {"heads": 4, "neurons": 4},
    ),
    "mixer_b16_224": ({"img_size": 64}, 64, {"neurons": 4}),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """`timm.create_model` gives the small members of `FAMILIES`, also to whoever opens an export of one again."""
    create, mixer = timm.create_model, timm.models.mlp_mixer._create_mixer

    def one(name: str, **given: Any) -> nn.Module:
        return create(name, **({"num_classes": 10} | FAMILIES[name][0] | given))

    def few(variant: str, **given: Any) -> nn.Module:
        return mixer(variant, **(given | {"num_blocks": 2, "embed_dim": 96}))

    monkeypatch.setattr(timm, "create_model", one)
    # These have no argument for it. Of the mobile ones' stages, the first and the last, in between two with residual connections.
    monkeypatch.setattr(timm.models.mlp_mixer, "_create_mixer", few)
    for module in (timm.models.efficientnet, timm.models.mobilenetv3):
        whole = module.decode_arch_def
        monkeypatch.setattr(
            module, "decode_arch_def", lambda stages, *a, whole=whole, **k: whole([*stages[:3], stages[-1]], *a, **k)
        )
    monkeypatch.setitem(timm.models.vgg.cfgs, "vgg16", [16, 16, "M", 32, "M", 32, 32, 32, "M", 64, "M", 64, "M"])
    shape = timm.models.regnet.model_cfgs
    monkeypatch.setitem(shape, "regnety_004", dataclasses.replace(shape["regnety_004"], depth=7, wa=65.0))


def build(name: str, size: int) -> Model:
    """Random weights that leave no path at zero, as timm's own do."""
    model = modhifi.load_model(f"timm:{name}", device="cpu")
    generator = torch.Generator().manual_seed(0)
    for module in model.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.3, generator=generator)
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    for key, value in model.module.named_parameters():
        if key.endswith("relative_position_bias_table"):
            value.normal_(0, 1, generator=generator)
        if key.endswith("gamma"):
            value.fill_(1.0)
        if not bool(value.any()):
            value.normal_(0, 0.1, generator=generator)
    model.input = InputSpec(size=(size, size), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    model.fingerprint = fingerprint(model.module)
    return model


def half(structure: Structure) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(1)
    return {
        group.name: sorted(torch.randperm(group.size, generator=generator)[: (group.size + 1) // 2].tolist())
        for group in structure.groups
    }


def plan_for(model: Model, structure: Structure, keep: dict[str, list[int]]) -> Plan:
    return Plan(
        kind="prune",
        model=model.ref,
        calibration=modhifi.load_data("digits").ref,
        settings=Settings(budget="manual", compensate="none"),
        groups={group.name: GroupPlan(total=group.size, keep=keep[group.name]) for group in structure.groups},
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_half_of_everything_removed(small: None, name: str, tmp_path: Path) -> None:
    _, size, kinds = FAMILIES[name]
    model = build(name, size)
    structure = structure_of(model)
    assert {kind: sum(group.kind == kind for group in structure.groups) for kind in kinds} == kinds
    assert len(structure.groups) == sum(kinds.values())
    assert verified(structure, model.module, model.example(2)).groups == structure.groups
    before = count_cost(model)
    assert structure.cost() == before

    keep = half(structure)
    plan = plan_for(model, structure, keep)
    masked, removed = modhifi.apply(plan, model, masked=True), modhifi.apply(plan, model)
    example = model.example(2)
    with torch.inference_mode():
        dense, expected, found = model.module(example), masked.module(example), removed.module(example)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert float((expected - dense).abs().max()) > 1e-2  # half of it is really gone
    assert count_cost(removed) == structure.cost({group: len(kept) for group, kept in keep.items()})
    assert count_cost(removed).params < before.params

    with torch.inference_mode():
        wide = model.example(2).double()
        exact = [copy.deepcopy(net.module).double()(wide) for net in (masked, removed)]
    torch.testing.assert_close(exact[1], exact[0], atol=1e-10, rtol=1e-10)
    del exact, masked

    folder = modhifi.export(removed, tmp_path / "out", ["safetensors", "onnx"])
    again = modhifi.load_model(str(folder), device="cpu")
    with torch.inference_mode():
        torch.testing.assert_close(again.module(example), found, atol=1e-4, rtol=1e-4)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": example.numpy()})
    torch.testing.assert_close(torch.from_numpy(np.asarray(logits)), found, atol=1e-4, rtol=1e-4)
    on_disk = (folder / "model.safetensors").stat().st_size
    assert on_disk < 4.2 * count_cost(removed).params + 4 * sum(b.numel() for b in removed.module.buffers()) + 200_000
