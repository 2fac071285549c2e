"""What is written can be read back, runs elsewhere, and gives the same answers."""

import html
import json
import re

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import timm
import torch

import modhifi
from modhifi import Data, Model, Plan, Study, UserError
from modhifi.components import enumerate_components
from modhifi.evaluation import tensor_bytes
from modhifi.plan import Settings
from modhifi.unlearning import unlearning_methods


@pytest.fixture(scope="module")
def smaller(digits_study: Study, digits_model: Model) -> Model:
    return modhifi.apply(modhifi.prune(digits_study, flops=0.5, compensate="full"), digits_model)


def test_every_format_gives_the_same_logits(smaller: Model, digits_model: Model, digits_test: Data, tmp_path) -> None:
    folder = modhifi.export(smaller, tmp_path / "out", formats=["safetensors", "onnx", "pt2"])
    images, _ = next(iter(digits_test.batches(smaller.input, 7)))
    with torch.inference_mode():
        own = smaller.module(images)
        read = modhifi.load_model(str(folder), device="cpu")
        assert torch.equal(read.module(images), own)
        assert torch.allclose(torch.export.load(folder / "model.pt2").module()(images), own, atol=1e-4)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(logits, own, atol=1e-4)
    assert read.fingerprint == smaller.fingerprint
    assert read.plan is not None
    assert read.plan.groups == smaller.plan.groups
    assert read.classes == smaller.classes
    size = (folder / "model.safetensors").stat().st_size
    assert tensor_bytes(smaller.module) <= size < 0.55 * tensor_bytes(digits_model.module)
    assert json.loads((folder / "manifest.json").read_text())["bytes"]["model.safetensors"] == size
    (tensors,) = folder.glob("plan.*.safetensors")
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json", "model.safetensors", "model.onnx", "model.pt2", "plan.json", tensors.name,
    }  # fmt: skip


def test_an_exported_network_can_be_pruned_and_exported_again(smaller: Model, tmp_path) -> None:
    first = modhifi.load_model(str(modhifi.export(smaller, tmp_path / "one")), device="cpu")
    study = modhifi.analyze(first, modhifi.load_data("digits"), samples=128)
    second = modhifi.apply(modhifi.prune(study, flops=0.7, compensate="full"), first)
    again = modhifi.load_model(str(modhifi.export(second, tmp_path / "two")), device="cpu")
    with torch.inference_mode():
        assert torch.equal(again.module(again.example(3)), second.module(again.example(3)))
    assert len(again.steps) == 2


def test_an_added_bias_is_read_back(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer without bias and without BatchNorm behind it gets one; the folder says so. Few of the network's many layers."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **given: create(name, block_config=(2, 2), **given))
    model = modhifi.load_model("timm:densenet121", device="cpu")
    model.input = model.input.model_copy(update={"size": (32, 32)})
    structure = enumerate_components(model.module, model.example())
    layer = next(name for name, read in structure.readers.items() if read[0][1].shift is None)
    plan = Plan(
        kind="prune", model=model.ref, calibration=modhifi.load_data("digits").ref, settings=Settings(budget="manual")
    ).with_tensors({f"{layer}.shift": torch.full((model.module.get_submodule(layer).out_channels,), 0.5)})
    changed = modhifi.apply(plan, model)
    assert changed.steps[0].added_biases
    again = modhifi.load_model(str(modhifi.export(changed, tmp_path / "out")), device="cpu")
    with torch.inference_mode():
        assert torch.equal(again.module(again.example(2)), changed.module(again.example(2)))


def test_refusals(smaller: Model, tmp_path) -> None:
    with pytest.raises(UserError, match="unknown format 'pickle'"):
        modhifi.export(smaller, tmp_path / "out", formats=["pickle"])
    with pytest.raises(UserError, match="unknown format 'none'"):
        modhifi.export(smaller, tmp_path / "out", formats=[])
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        modhifi.export(smaller, tmp_path / "file")


def test_a_damaged_folder_is_refused(smaller: Model, tmp_path) -> None:
    folder = modhifi.export(smaller, tmp_path / "out")
    weights, manifest = folder / "model.safetensors", folder / "manifest.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + b"\x00\x00\x00\x41")
    with pytest.raises(UserError, match="other weights than the manifest"):
        modhifi.load_model(str(folder))
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated"):
        modhifi.load_model(str(folder))
    state = safetensors.torch.load(whole)
    (scalar,) = [name for name in state if name == "bn1.num_batches_tracked"]
    weights.write_bytes(safetensors.torch.save(state | {scalar: state[scalar].reshape(1)}))
    with pytest.raises(UserError, match="with another shape"):
        modhifi.load_model(str(folder))
    weights.write_bytes(whole)
    content = json.loads(manifest.read_text())
    huge, tokens = content["input"] | {"size": [16384, 16384]}, {"context": 8, "vocabulary": 9, "head_counts": [1]}
    for change, message in [
        ({"schema_version": 9}, "schema 9"),
        ({"classes": 3}, "damaged"),
        ({"classes": content["classes"][:9]}, "names 9 classes, and the network has 10"),
        ({"input": huge}, "takes images of about"),
        ({"input": tokens}, "takes images of about"),
        ({"architecture": "transformers"}, "a language model takes tokens"),
    ]:
        manifest.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=message):
            modhifi.load_model(str(folder))
    content["steps"][0]["keep"]["layer1.0.conv1"] = [0, 1, 99]
    manifest.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"layer1\.0\.conv1"):
        modhifi.load_model(str(folder))
    manifest.unlink()
    with pytest.raises(UserError, match=r"no manifest\.json"):
        modhifi.load_model(str(folder))


def test_the_report_stands_alone(smaller: Model, digits_study: Study, digits_test: Data) -> None:
    plan = smaller.plan.model_copy(update={"note": "<script>alert(1)</script>"})
    result = modhifi.evaluate(smaller, digits_test, latency=False)
    page = modhifi.export_report(plan, result, digits_study)
    assert "<script" not in page
    assert not re.search(r"""(src|href)\s*=""", page)
    assert f"{result.accuracy:.2%}" in page
    assert plan.model.fingerprint in page
    for group in digits_study.groups:
        assert group.name in page
    assert "Accuracy" not in modhifi.export_report(plan)


# What the strength of each method is, in words of this test; `mask` has none.
UNITS = {
    "erase": "weight λ of the forget set in the classifier's fit: 0.25",
    "published": "fraction of the slices: 0.25",
    "contrastive": "fraction of the slices: 0.25",
    "ridge": "weight λ of the forget set: 0.25",
    "subspace": "1/α: how little of the retain space is protected: 0.25",
    "ascent": "steps: 0.25",
    "finetune": "epochs: 0.25",
}


@pytest.mark.parametrize("method", [*UNITS, "mask"])
def test_the_report_says_what_the_strength_is(smaller: Model, method: str) -> None:
    settings = Settings(
        method=method, strength=0.25, strength_unit=unlearning_methods()[method].strength, layers=["layer3.2.conv2"]
    )
    plan = smaller.plan.model_copy(update={"kind": "unlearn", "settings": settings, "forget": ["3"]})
    page = html.unescape(modhifi.export_report(plan))
    expected = f"{method}, {UNITS[method]}, in layer3.2.conv2" if method in UNITS else "mask, in layer3.2.conv2"
    assert expected in page
