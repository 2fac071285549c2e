"""Calibration images that need no data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import modhifi
from modhifi import Data, Model, Study, UserError
from modhifi.data import identify, prepare
from modhifi.errors import Cancelled
from modhifi.specs import InputSpec
from modhifi.surgery import calibration_data, recalibrated

PLAIN = InputSpec(size=(64, 64), mean=(0, 0, 0), std=(1, 1, 1))
DRAWN = ("noise", "dead-leaves")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where made images are kept."""
    monkeypatch.setenv("MODHIFI_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "inversion"


def pixels(data: Data, spec: InputSpec = PLAIN) -> np.ndarray:
    """(N, 3, H, W) in [0, 1]."""
    return torch.cat([images for images, _ in data.batches(spec)]).numpy()


def neighbours(images: np.ndarray) -> float:
    """Correlation of pixels that lie side by side."""
    return float(np.corrcoef(images[..., 1:].ravel(), images[..., :-1].ravel())[0, 1])


@pytest.mark.parametrize("name", DRAWN)
def test_an_image_depends_on_its_number_alone(name: str) -> None:
    many, few = modhifi.load_data(name, samples=300, seed=1), modhifi.load_data(name, samples=300, seed=2)
    again = modhifi.load_data(name, split="test", samples=300, seed=1)
    assert again.ref.fingerprint == many.ref.fingerprint != few.ref.fingerprint
    common = sorted(set(many.order) & set(few.order))[:2]
    assert common
    numbers = torch.tensor(many.order), torch.tensor(few.order)
    first, second = (
        pixels(data.where(torch.isin(order, torch.tensor(common))))
        for data, order in zip((many, few), numbers, strict=True)
    )
    assert np.array_equal(first, second)
    two = pixels(many.part(0, 2))
    assert not np.array_equal(two[0], two[1])
    assert np.array_equal(np.asarray(many.read(many.order[1])).transpose(2, 0, 1), np.rint(two[1] * 255))


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("size", [(32, 32), (40, 24), (5, 96), (1, 1)])
def test_drawn_at_the_size_of_the_network(name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.Image.resize", None)
    data = modhifi.load_data(name, samples=3)
    assert pixels(data, PLAIN.model_copy(update={"size": size, "crop": 0.875})).shape == (3, 3, *size)
    assert data.labels is None
    assert data.classes is None


def test_pixels_of_noise_are_independent() -> None:
    images = pixels(modhifi.load_data("noise", samples=30))
    assert images.mean() == pytest.approx(0.45, abs=0.01)
    assert images.std() == pytest.approx(0.24, abs=0.01)  # 0.25 before the clipping
    assert abs(neighbours(images)) < 0.01
    assert abs(np.corrcoef(images.swapaxes(0, 1).reshape(3, -1))[0, 1]) < 0.01


def test_dead_leaves_are_like_photographs() -> None:
    images = pixels(modhifi.load_data("dead-leaves", samples=60))
    assert images.mean() == pytest.approx(0.45, abs=0.04)
    assert 0.18 < images.std() < 0.28
    assert neighbours(images) > 0.85
    colours = np.corrcoef(images.swapaxes(0, 1).reshape(3, -1))
    assert 0.7 < colours[0, 2] < colours[0, 1] < 0.97
    # The amplitude of waves falls like one over their frequency, up to where the lens takes over.
    window = np.hanning(64)[:, None] * np.hanning(64)
    grey = images.mean(1)
    power = (np.abs(np.fft.fft2((grey - grey.mean((1, 2), keepdims=True)) * window)) ** 2).mean(0)
    frequency = np.fft.fftfreq(64, 1 / 64)
    ring = np.rint(np.hypot(frequency[:, None], frequency)).astype(int).ravel()
    radial = np.bincount(ring, power.ravel()) / np.bincount(ring)
    slope = np.polyfit(np.log(np.arange(2, 16)), np.log(radial[2:16]), 1)[0]
    assert -2.8 < slope < -1.4


@pytest.mark.parametrize("name", [*DRAWN, "inversion"])
def test_no_root_and_no_such_split(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="omit the data root"):
        modhifi.load_data(name, tmp_path)
    with pytest.raises(UserError, match="no split 'dev'"):
        modhifi.load_data(name, split="dev")


def gap(model: Model, data: Data) -> float:
    """The sum over the BatchNorm layers of how far mean and variance of their inputs are from the stored ones."""
    found: list[float] = []

    def compare(norm: nn.Module, args: tuple[torch.Tensor]) -> None:
        values = args[0].transpose(0, 1).flatten(1)
        found.append(float((values.mean(1) - norm.running_mean).norm()))
        found.append(float((values.var(1, unbiased=False) - norm.running_var).norm()))

    hooks = [m.register_forward_pre_hook(compare) for m in model.module.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        model.module(next(data.batches(model.input))[0])
    for hook in hooks:
        hook.remove()
    return sum(found)


def test_made_images_have_the_statistics_that_the_network_remembers(digits_model: Model, home: Path) -> None:
    data = modhifi.load_data("inversion", samples=16)
    before = modhifi.models.fingerprint(digits_model.module)
    steps: list[tuple[int, int]] = []
    with torch.inference_mode():
        made = prepare(data, digits_model, lambda *step: steps.append(step[:2]))
    noise, leaves = (gap(digits_model, modhifi.load_data(name, samples=16)) for name in DRAWN)
    reached = gap(digits_model, made)
    assert reached < leaves / 3
    assert reached < noise / 3
    assert steps == [(step, 60) for step in range(61)]
    assert modhifi.models.fingerprint(digits_model.module) == before == digits_model.fingerprint
    assert not any(p.requires_grad or p.grad is not None for p in digits_model.module.parameters())
    assert not any(m._forward_pre_hooks for m in digits_model.module.modules())
    assert made.ref.fingerprint == identify(data, digits_model).ref.fingerprint != data.ref.fingerprint
    # They are found again: by the same network only, whatever else was loaded in between.
    steps.clear()
    again = prepare(data, digits_model, lambda *step: steps.append(step[:2]))
    assert steps == []
    assert np.array_equal(pixels(again, digits_model.input), pixels(made, digits_model.input))
    assert len(list(home.iterdir())) == 1
    other = dataclasses.replace(digits_model, fingerprint="other")
    assert identify(data, other).source != made.source
    assert prepare(made, other) is made


def test_a_study_of_made_images(chain: Model, home: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    data = modhifi.load_data("inversion")
    study = modhifi.analyze(
        chain, data, 140, seed=3, out=tmp_path / "study", progress=lambda *step: steps.append(step[2])
    )
    assert any("gradients of the input only" in what for what in steps)
    [file] = home.iterdir()
    images = pixels(calibration_data(study.data, chain), chain.input)
    assert images.shape == (140, 3, 8, 8)
    for damage in (file.unlink, lambda: file.write_bytes(file.read_bytes()[:-1])):
        damage()
        again = calibration_data(Study.load(tmp_path / "study").data, chain)
        assert again.ref == study.data
        assert np.array_equal(pixels(again, chain.input), images)
    file.unlink()
    steps.clear()
    known = modhifi.analyze(
        chain, data, 140, seed=3, out=tmp_path / "study", progress=lambda *step: steps.append(step[2])
    )
    assert known.key == study.key
    assert steps == ["opening the existing study"]
    assert not file.exists()
    plan = modhifi.prune(study, flops=0.7, model=chain)
    assert set(recalibrated(plan, chain)) == {"norm.running_mean", "norm.running_var"}
    report = modhifi.bounds.measure(study, plan, data, samples=4, model=chain)
    assert 0 < report.measured <= report.bound
    with pytest.raises(UserError, match="must be generated for a network first"):
        calibration_data(study.data)
    other = dataclasses.replace(chain, fingerprint="other")
    with pytest.raises(UserError, match="have changed since the study"):
        calibration_data(study.data, other)


def test_cancelled_half_way(chain: Model, home: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if done > total // 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        prepare(modhifi.load_data("inversion", samples=4), chain, stop)
    assert list(home.iterdir()) == []


def test_images_that_cannot_be_made(chain: Model, home: Path) -> None:
    data = modhifi.load_data("inversion", samples=4)
    with pytest.raises(UserError, match="must be generated for a network first"):
        next(data.batches(chain.input))
    chain.module.norm = nn.Identity()
    with pytest.raises(UserError, match=r"chain has no BatchNorm statistics .* dead-leaves"):
        prepare(data, chain)
    home.rmdir()
    home.write_text("in the way")
    with pytest.raises(UserError, match="MODHIFI_HOME"):
        prepare(data, chain)
