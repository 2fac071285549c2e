"""The families that people use: half of everything removed at random, in float32 and float64, exported and opened again."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
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

# Input size, and how many groups of each kind there must be.
FAMILIES = {
    "resnet18": (64, {"channels": 8, "stream": 4}),
    "resnet50": (64, {"channels": 33, "stream": 4}),
    "vgg16_bn": (32, {"channels": 15}),
    "mobilenetv2_100": (64, {"channels": 20, "stream": 5}),
    "mobilenetv3_small_100": (64, {"channels": 23, "stream": 4}),
    "efficientnet_b0": (64, {"channels": 35, "stream": 5}),
    "tf_efficientnet_lite0": (64, {"channels": 19, "stream": 5}),
    "densenet121": (64, {"channels": 120}),
    "convnext_tiny": (64, {"neurons": 18}),
    "regnety_004": (64, {"channels": 33, "stream": 4}),
    "vit_tiny_patch16_224": (224, {"heads": 12, "neurons": 12}),
    "deit_tiny_patch16_224": (224, {"heads": 12, "neurons": 12}),
    "swin_tiny_patch4_window7_224": (224, {"heads": 12, "neurons": 12}),
    "mixer_b16_224": (224, {"neurons": 24}),
}


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
def test_half_of_everything_removed(name: str, tmp_path: Path) -> None:
    size, kinds = FAMILIES[name]
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
