"""What fitting in sequence does not depend on, and how a run goes on that was stopped."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import modhifi
from modhifi import Model, Study
from modhifi.errors import Cancelled, UserError
from modhifi.layers import Edit
from modhifi.progress import silent
from modhifi.pruning import _sequential
from modhifi.pruning._fits import Fits
from modhifi.pruning._sequential import sequential
from modhifi.statistics import InSequence
from modhifi.surgery import calibration_data


@pytest.fixture(scope="module")
def images(digits_study: Study, digits_model: Model) -> torch.Tensor:
    return torch.cat([b for b, _ in calibration_data(digits_study.data).take(96, 0).batches(digits_model.input)])


@pytest.fixture(scope="module")
def keep(digits_study: Study) -> dict[str, list[int]]:
    return {group.name: list(range(0, group.size, 2)) for group in digits_study.groups}


@pytest.fixture(scope="module")
def edits(
    digits_study: Study, digits_model: Model, images: torch.Tensor, keep: dict[str, list[int]]
) -> dict[str, Edit]:
    return sequential(digits_study, keep, digits_model.module, lambda: [images], len(images))[0]


def apart(one: dict[str, Edit], other: dict[str, Edit]) -> float:
    """The largest relative distance of two weights."""
    assert list(one) == list(other)
    return max(float((one[name].weight - other[name].weight).norm() / one[name].weight.norm()) for name in one)


@pytest.mark.parametrize("size", [7, 32])
def test_the_size_of_batches_changes_nothing(digits_study, digits_model, images, keep, edits, size) -> None:
    found, _ = sequential(digits_study, keep, digits_model.module, lambda: images.split(size), len(images))
    assert apart(edits, found) <= 1e-5


@pytest.mark.parametrize("budget", [0, 1 << 18])
def test_half_precision_and_files_change_little(
    digits_study, digits_model, images, keep, edits, budget: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("modhifi.statistics._kept.IN_MEMORY", budget)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen = []
    monkeypatch.setattr(
        "modhifi.statistics._kept.save_file",
        lambda values, path: seen.append(path.parent) or save_file(values, path),
    )
    found, _ = sequential(digits_study, keep, digits_model.module, lambda: images.split(32), len(images))
    assert seen
    assert 0 < apart(edits, found) <= 0.02
    assert not list(tmp_path.iterdir())


def test_passes_and_samples(digits_model: Model, images: torch.Tensor, digits_study: Study) -> None:
    """Every sample is used; up to each layer the network runs once, and each part of it twice more."""
    engine = InSequence(digits_model.module, digits_study.structure.readers, lambda: images.split(32), len(images))
    seen: dict[str, torch.Tensor] = {}

    def fit(site) -> Edit:
        seen[site.name] = site.sample.unique()
        return Edit(site.layer.weight.flatten(1), torch.zeros(len(site.layer.weight)))

    engine.fit(fit, engine.order)
    assert list(seen) == engine.order
    assert all(torch.equal(numbers, torch.arange(len(images))) for numbers in seen.values())
    assert engine.passes <= 4


def stopping(after: int) -> Callable[[int, int, str], None]:
    calls = 0

    def progress(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise Cancelled

    return progress


def test_a_stopped_run_goes_on(
    digits_study, digits_model, images, keep, edits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "plan.json.partial"
    fitted: list[int] = []
    plain = _sequential.fit_rows
    monkeypatch.setattr(_sequential, "fit_rows", lambda *args, **kwargs: fitted.append(1) or plain(*args, **kwargs))

    def run(progress, key: str = "this") -> dict[str, Edit]:
        fits = Fits(folder, key)
        batches = lambda: images.split(32)  # noqa: E731
        found, _ = sequential(
            digits_study, keep, digits_model.module, batches, len(images), fits=fits, progress=progress
        )
        return found

    with pytest.raises(Cancelled):
        run(stopping(60))
    done = len(list(folder.iterdir()))
    assert 0 < done < len(edits)
    sorted(folder.iterdir())[0].write_bytes(b"damaged")
    (folder / "note.txt").write_text("not ours")
    fitted.clear()
    found = run(silent)
    assert len(fitted) == len(edits) - done + 1
    for name, edit in edits.items():
        torch.testing.assert_close(found[name].weight, edit.weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[name].shift, edit.shift, rtol=1e-4, atol=1e-4)
    fitted.clear()
    run(silent, key="something else")
    assert len(fitted) == len(edits)
    Fits(folder, "something else").delete()
    assert [path.name for path in folder.iterdir()] == ["note.txt"]


def test_a_plan_says_what_its_partial_results_are_for(
    digits_study: Study, digits_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Fits] = []

    def stopped(*_: object, fits: Fits, **__: object) -> None:
        seen.append(fits)
        raise Cancelled

    monkeypatch.setattr("modhifi.pruning._prune.sequential", stopped)
    for budget in (0.5, 0.5, 0.6):
        with pytest.raises(Cancelled):
            modhifi.prune(digits_study, flops=budget, model=digits_model, partial=tmp_path)
    first, same, other = seen
    assert (first.folder, first.key) == (tmp_path, same.key)
    assert first.key != other.key


def test_a_file_in_the_place_of_partial_results_is_told(
    digits_study: Study, digits_model: Model, tmp_path: Path
) -> None:
    way = tmp_path / "plan.json.partial"
    way.write_text("mine")
    with pytest.raises(UserError, match=r"plan\.json\.partial is a file where a folder"):
        modhifi.prune(digits_study, flops=0.5, model=digits_model, partial=way)
    assert way.read_text() == "mine"
