"""The recipes give checkpoints that load, and the shipped cards tell the truth about the shipped checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

import modhifi
from assets import cifar10_vgg8, digits_vit, training
from assets import digits_resnet20 as recipe
from modhifi import Model

ASSETS = Path(__file__).resolve().parents[2] / "assets"


@pytest.fixture(scope="module")
def card() -> dict[str, object]:
    return json.loads((ASSETS / "digits-resnet20.json").read_text())


def test_one_epoch_gives_a_card_and_a_checkpoint_that_loads(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    made = recipe.make(tmp_path / "a", seed=3, epochs=1, samples=16)
    assert torch.equal(before, torch.get_rng_state())
    checkpoint = tmp_path / "a" / "digits-resnet20.safetensors"
    assert json.loads((tmp_path / "a" / "digits-resnet20.json").read_text()) == made
    model = modhifi.load_model("digits-resnet20", checkpoint, device="cpu")
    assert model.fingerprint == made["fingerprint"]
    assert recipe.make(tmp_path / "b", seed=3, epochs=1, samples=16)["fingerprint"] == made["fingerprint"]
    assert recipe.make(tmp_path / "c", seed=4, epochs=1, samples=16)["fingerprint"] != made["fingerprint"]


def test_shipped_card_is_about_the_shipped_checkpoint(card: dict[str, object], digits_model: Model) -> None:
    assert card["fingerprint"] == digits_model.fingerprint
    right = training.correct(digits_model.module, modhifi.load_data("digits", split="test"), recipe.INPUT)
    assert right == card["test_correct"]
    assert card["test_accuracy"] == right / 500
    assert right / 500 >= 0.98
    assert card["splits"] == {s: len(modhifi.load_data(split=s)) for s in ("train", "calibration", "test")}
    assert digits_model.input == recipe.INPUT


def test_the_recipe_of_the_larger_network_too(tmp_path: Path, shared: Path) -> None:
    made = cifar10_vgg8.make(shared / "data" / "cifar10", tmp_path, seed=1, epochs=1, samples=64)
    model = modhifi.load_model("cifar10-vgg8", tmp_path / "cifar10-vgg8.safetensors", device="cpu")
    assert model.fingerprint == made["fingerprint"]
    assert model.input == cifar10_vgg8.INPUT


def test_the_larger_network_s_card(shared: Path) -> None:
    model = modhifi.load_model("cifar10-vgg8", device="cpu")
    card = json.loads((ASSETS / "cifar10-vgg8.json").read_text())
    assert card["fingerprint"] == model.fingerprint
    data = modhifi.load_data("cifar10", shared / "data" / "cifar10", "test", samples=500)
    right = training.correct(model.module, data, model.input)
    # 500 of the 5,000: within three standard deviations of the whole.
    share = card["test_accuracy"]
    assert abs(right / 500 - share) <= 3 * (share * (1 - share) / 500) ** 0.5


def test_the_transformer_s_recipe_and_card(tmp_path: Path) -> None:
    made = digits_vit.make(tmp_path, seed=1, epochs=1, samples=64)
    assert modhifi.load_model("digits-vit", tmp_path / "digits-vit.safetensors").fingerprint == made["fingerprint"]
    model = modhifi.load_model("digits-vit", device="cpu")
    card = json.loads((ASSETS / "digits-vit.json").read_text())
    assert card["fingerprint"] == model.fingerprint
    right = training.correct(model.module, modhifi.load_data("digits", split="test"), model.input)
    assert right / 500 == card["test_accuracy"] > 0.98


@pytest.mark.parametrize(("name", "limit"), [("digits-resnet20", 1.5e6), ("cifar10-vgg8", 5e6), ("digits-vit", 1.5e6)])
def test_shipped_files_are_small_tensors(name: str, limit: float) -> None:
    path = ASSETS / f"{name}.safetensors"
    assert path.stat().st_size <= limit
    assert all(torch.isfinite(value).all() for value in safetensors.torch.load_file(path).values())


@pytest.mark.parametrize("name", ["digits_resnet20", "cifar10_vgg8", "digits_vit"])
def test_recipe_is_a_command(name: str) -> None:
    result = subprocess.run(
        [sys.executable, str(ASSETS / f"{name}.py"), "--help"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0
    assert "--seed" in result.stdout
