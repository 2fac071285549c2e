from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision

import modhifi
from modhifi import Cancelled, Model, UserError
from modhifi.loading import list_models
from modhifi.models import fingerprint
from modhifi.models.cifar_resnet import cifar_resnet


@pytest.fixture
def cifar_weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(cifar_resnet(20).state_dict(), path)
    return path


def test_default_model(digits_model: Model) -> None:
    assert digits_model.classes == tuple("0123456789")
    assert digits_model.weights is None
    assert not digits_model.module.training
    assert not any(p.requires_grad for p in digits_model.module.parameters())
    assert digits_model.fingerprint == fingerprint(digits_model.module)
    assert digits_model.module(digits_model.example(2)).shape == (2, 10)


def test_cifar_checkpoint(cifar_weights: Path) -> None:
    model = modhifi.load_model("cifar10-resnet20", cifar_weights, device="cpu")
    assert model.weights == str(cifar_weights.resolve())
    assert model.classes[3] == "cat"
    assert model.input.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", ["resnet20-12fca82f.th", "resnet56-4bfd9763.th"])
def test_published_checkpoints(shared: Path, name: str) -> None:
    depth = name.partition("-")[0]
    model = modhifi.load_model(f"cifar10-{depth}", shared / "models" / name, device="cpu")
    data = modhifi.load_data("cifar10", shared / "data" / "cifar10", split="test", samples=200)
    images, labels = next(data.batches(model.input, 200))
    with torch.no_grad():
        right = (model.module(images).argmax(1) == labels).float().mean().item()
    assert right > 0.7


def test_published_checkpoint_of_another_depth(shared: Path) -> None:
    with pytest.raises(UserError, match=r"not a checkpoint of cifar10-resnet20: \d+ unexpected"):
        modhifi.load_model("cifar10-resnet20", shared / "models" / "resnet56-4bfd9763.th")


@pytest.mark.parametrize(
    "spec",
    ["", "resnet", "cifar10-resnet21", "timm:", "hf:", "./no-such-folder", "torchvision", "timm:no_such_model"],
)
def test_unknown_spec(spec: str) -> None:
    with pytest.raises(UserError) as caught:
        modhifi.load_model(spec)
    assert "digits-resnet20" in str(caught.value) or "no_such_model" in str(caught.value)


def test_cifar_without_weights() -> None:
    with pytest.raises(UserError, match="--weights"):
        modhifi.load_model("cifar10-resnet56")


def test_overrides(cifar_weights: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"thing {i}" for i in range(10)) + "\n\n")
    model = modhifi.load_model(
        "cifar10-resnet20", cifar_weights, mean=(0.5, 0.5, 0.5), std=[0.25, 0.25, 0.25], classes=names, device="cpu"
    )
    assert model.input.mean == (0.5, 0.5, 0.5)
    assert model.input.std == (0.25, 0.25, 0.25)
    assert model.classes[9] == "thing 9"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"mean": (0.5,)}, "mean must be three"),
        ({"mean": (0.5, float("nan"), 0.5)}, "mean must be three finite"),
        ({"std": (0.5, 0, 0.5)}, "std must be positive"),
        ({"classes": ["a", "b"]}, "has 2 names, but the network has 10 classes"),
        ({"classes": ["a"] * 10}, "'a' more than once"),
        ({"classes": "no-such-file.txt"}, r"no-such-file\.txt does not exist"),
        ({"classes": ["a", " a", *"bcdefghi"]}, "'a' more than once"),
        ({"classes": ["", *"abcdefghi"]}, "a class name is empty"),
        ({"classes": "/dev/zero"}, "not a regular file"),
        ({"classes": "/"}, "is a folder, not the class names"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_bad_overrides(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(UserError, match=match):
        modhifi.load_model(**arguments)


def test_progress_can_cancel() -> None:
    def stop(done: int, total: int, what: str) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        modhifi.load_model(progress=stop)


@pytest.mark.parametrize("spec", ["timm:resnet10t", "torchvision:squeezenet1_1"])
def test_random_weights_are_the_same_every_time(spec: str, caplog: pytest.LogCaptureFixture) -> None:
    before = torch.get_rng_state()
    first = modhifi.load_model(spec, device="cpu")
    assert "random" in caplog.text
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    assert modhifi.load_model(spec, device="cpu").fingerprint == first.fingerprint
    assert len(set(first.classes)) == 1000
    assert first.module(first.example()).shape == (1, 1000)


@pytest.mark.parametrize(
    ("spec", "build"),
    [
        ("timm:resnet10t", lambda: timm.create_model("resnet10t", num_classes=7)),
        ("torchvision:mobilenet_v3_small", lambda: torchvision.models.mobilenet_v3_small(num_classes=7)),
        ("torchvision:squeezenet1_1", lambda: torchvision.models.squeezenet1_1(num_classes=7)),
    ],
)
def test_head_is_built_for_the_classes_of_the_checkpoint(
    spec: str, build: Callable[[], torch.nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = build()
    torch.save(module.state_dict(), tmp_path / "own.pt")
    model = modhifi.load_model(spec, tmp_path / "own.pt", device="cpu", classes=list("abcdefg"))
    assert model.module(model.example()).shape == (1, 7)
    assert model.fingerprint == fingerprint(module)
    assert not caplog.text


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("timm:resnet18.no_such_tag", r"available: resnet18\.a1_in1k"),
        ("torchvision:resnet18@NONE", "available: IMAGENET1K_V1"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no classification model"),
    ],
)
def test_unknown_names_of_the_libraries(spec: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        modhifi.load_model(spec)


@pytest.mark.parametrize("spec", ["timm:resnet18.a1_in1k", "torchvision:resnet18@DEFAULT"])
def test_hub_out_of_reach(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no network here")

    monkeypatch.setattr("timm.create_model", refuse)
    monkeypatch.setattr("torchvision.models.get_model", refuse)
    with pytest.raises(UserError, match=r"could not be downloaded \(ConnectionError\).*as weights"):
        modhifi.load_model(spec)


def test_network_without_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    headless = functools.partial(timm.create_model, num_classes=0)
    monkeypatch.setattr("timm.create_model", headless)
    with pytest.raises(UserError, match="only computes features"):
        modhifi.load_model("timm:resnet10t")


def test_list_models_names_every_form() -> None:
    forms = " ".join(form for form, _ in list_models())
    assert all(part in forms for part in ("digits-resnet20", "cifar10-resnetN", "timm:", "torchvision:", "FOLDER"))


def test_a_byte_order_mark_is_no_part_of_a_class_name(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join("abcdefghij").encode())
    assert modhifi.load_model(classes=tmp_path / "names.txt", device="cpu").classes == tuple("abcdefghij")
