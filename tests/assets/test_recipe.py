"""The recipe gives a checkpoint that loads, and the shipped card tells the truth about the shipped checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

import modhifi
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
    right = recipe.correct(digits_model.module, modhifi.load_data("digits", split="test"))
    assert right == card["test_correct"]
    assert card["test_accuracy"] == right / 500
    assert right / 500 >= 0.98
    assert card["splits"] == {s: len(modhifi.load_data(split=s)) for s in ("train", "calibration", "test")}
    assert digits_model.input == recipe.INPUT


def test_shipped_files_are_small_tensors() -> None:
    path = ASSETS / "digits-resnet20.safetensors"
    assert path.stat().st_size <= 1.5e6
    assert all(torch.isfinite(value).all() for value in safetensors.torch.load_file(path).values())


def test_recipe_is_a_command() -> None:
    result = subprocess.run(
        [sys.executable, str(ASSETS / "digits_resnet20.py"), "--help"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0
    assert "--seed" in result.stdout
