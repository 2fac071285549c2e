"""The recipe: what it measures is measured, the same seed gives the same run, and what fails or is stopped leaves nothing."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modhifi import Cancelled, UserError
from modhifi.multimodal import (
    BALANCING_METHODS,
    MeanSpread,
    MultimodalData,
    Pairs,
    Run,
    Settings,
    load_multimodal,
    report,
    rows,
    train,
)
from modhifi.multimodal._train import accuracy

TINY = Settings(methods=BALANCING_METHODS, seeds=2, epochs=2, pairs=96)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path, list[Run]]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    seen: list[Run] = []
    return train(TINY, out=folder, watch=seen.append), folder, seen


def test_a_run_is_whole(made: tuple[Run, Path, list[Run]]) -> None:
    run, folder, _ = made
    assert run.finished
    assert Run.load(folder) == Run.load(folder / "run.json") == run
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["run.json", *(f"{method}-{seed}.safetensors" for method in BALANCING_METHODS for seed in (0, 1))]
    )
    assert run.samples == {"train": 96, "validation": 512, "test": 500}
    assert {(one.modality, one.seed) for one in run.alone} == {(m, s) for m in ("left", "right") for s in (0, 1)}
    assert {(one.method, one.seed) for one in run.outcomes} == {(m, s) for m in BALANCING_METHODS for s in (0, 1)}
    assert set(run.rates) == {"left", "right"}
    for one in run.outcomes:
        assert len(one.history) == 2
        for epoch in one.history:
            assert set(epoch.coefficients) == {"left", "right"}
            if one.method == "joint":
                assert set(epoch.coefficients.values()) == {1.0}
        assert all(d > 0 for d in one.competition.values())
    assert any(k != 1.0 for one in run.of("agm") for e in one.history for k in e.coefficients.values())


def test_the_accuracy_is_that_of_the_network_that_was_written(made: tuple[Run, Path, list[Run]]) -> None:
    run, folder, _ = made
    for one in run.outcomes:
        test = load_multimodal(pairs=96, seed=one.seed).test  # standardised by the seed's training pairs
        net = run.network(folder, one.method, one.seed)
        with torch.no_grad():
            assert accuracy(net(test.inputs), test.targets) == one.accuracy


def test_each_epoch_is_watched(made: tuple[Run, Path, list[Run]]) -> None:
    run, _, seen = made
    assert len(seen) > 2 * (2 * 2 + 2 * len(BALANCING_METHODS))
    assert not seen[0].finished
    assert seen[0].alone[0].accuracy is None
    assert seen[-1] == run
    lengths = [sum(len(one.history) for one in (*s.alone, *s.outcomes)) for s in seen]
    assert lengths == sorted(lengths), "what was seen stays"


def test_the_same_seed_gives_the_same(made: tuple[Run, Path, list[Run]]) -> None:
    run, _, _ = made
    again = train(TINY.model_copy(update={"methods": ("agm",), "seeds": 1}))
    ours, theirs = again.of("agm")[0], run.of("agm")[0]
    assert ours.model_copy(update={"seconds": 0.0}) == theirs.model_copy(update={"seconds": 0.0})


def test_the_summary_is_mean_and_deviation(made: tuple[Run, Path, list[Run]]) -> None:
    run, _, _ = made
    told = report(run)
    first, second = (one.accuracy for one in run.of("agm"))
    agm = told["methods"]["agm"]["accuracy"]
    assert agm["values"] == [first, second]
    assert agm["mean"] == pytest.approx((first + second) / 2)
    assert agm["spread"] == pytest.approx(abs(first - second) / 2**0.5)
    assert json.loads(json.dumps(told)) == told
    head, table = rows(run)
    assert [row[0] for row in table] == ["left alone", "right alone", "Joint", "AGM", "OGM-GE", "MSLR", "MSES"]
    assert all(len(row) == len(head) for row in table)
    assert MeanSpread.of([0.5]).spread is None


# Nothing half-written


def refused(tmp_path: Path, change: Callable[[MultimodalData], MultimodalData]) -> str:
    with pytest.raises(UserError) as caught:
        train(TINY, out=tmp_path / "run", load=lambda seed: change(load_multimodal(pairs=96, seed=seed)))
    assert list(tmp_path.iterdir()) == [], "no half-written run"
    return str(caught.value)


def changed(pairs: Pairs, **inputs: torch.Tensor) -> Pairs:
    return Pairs(pairs.inputs | inputs, pairs.targets)


def test_data_that_nothing_can_be_learned_from(tmp_path: Path) -> None:
    def nan(data: MultimodalData) -> MultimodalData:
        left = data.validation.inputs["left"].clone()
        left[3, 0, 2, 2] = float("nan")
        return dataclasses.replace(data, validation=changed(data.validation, left=left))

    def missing(data: MultimodalData) -> MultimodalData:
        return dataclasses.replace(data, test=Pairs({"left": data.test.inputs["left"]}, data.test.targets))

    def shorter(data: MultimodalData) -> MultimodalData:
        return dataclasses.replace(data, train=changed(data.train, right=data.train.inputs["right"][:-1]))

    def one_class(data: MultimodalData) -> MultimodalData:
        return dataclasses.replace(data, train=data.train.take(data.train.targets == 3))

    assert "validation data: modality left has NaN" in refused(tmp_path, nan)
    assert "test data: this batch is missing right" in refused(tmp_path, missing)
    assert "train data: batch sizes differ: 96 of left, 95 of right, 96 targets" in refused(tmp_path, shorter)
    assert "all training pairs belong to one class" in refused(tmp_path, one_class)


def test_nan_in_a_later_seed_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NaN"):
        train(
            Settings(methods=("joint",), seeds=2, epochs=1, pairs=32),
            out=tmp_path / "run",
            load=lambda seed: _spoiled(load_multimodal(pairs=32, seed=seed), seed),
        )
    assert list(tmp_path.iterdir()) == []


def _spoiled(data: MultimodalData, seed: int) -> MultimodalData:
    if seed:
        data.train.inputs["left"][0] = float("nan")
    return data


def test_stopped_in_the_middle(tmp_path: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if what.startswith("AGM"):
            raise Cancelled

    with pytest.raises(Cancelled):
        train(Settings(seeds=1, epochs=1, pairs=32), out=tmp_path / "run", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_training_whose_last_step_diverges_is_one_line() -> None:
    settings = Settings(seeds=1, epochs=1, pairs=32, methods=("joint",), rate=1e15)
    with pytest.raises(UserError, match=r"alone, seed 1 of 1: training diverged"):
        train(settings)


def test_a_method_that_is_named_twice_is_trained_once() -> None:
    assert Settings(methods=("agm", "joint", "agm")).methods == ("agm", "joint")


def test_a_training_that_diverges_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="diverged"):
        train(Settings(seeds=1, epochs=3, pairs=64, rate=1e6), out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    (tmp_path / "precious.txt").chmod(0o444)
    for out, line in (
        (tmp_path, "contains other files"),
        (tmp_path / "precious.txt", "is a file"),
        (tmp_path / "precious.txt" / "run", "cannot be created"),
    ):
        with pytest.raises(UserError, match=line):
            train(
                Settings(seeds=1, epochs=1, pairs=32, methods=("joint",)),
                out=out,
                watch=lambda _: pytest.fail("trained"),
            )
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"seeds": 0}, "seeds: "),
        ({"fusion": "middle"}, "fusion: "),
        ({"methods": ("sgd",)}, "methods\\.0: "),
        ({"methods": ()}, "at least one method"),
        ({"fusion": "early", "methods": ("ogm-ge",)}, "OGM-GE needs late fusion"),
        ({"alpha": -1}, "alpha: "),
        ({"rate": float("nan")}, "rate: "),
    ],
)
def test_settings_that_make_no_sense(asked: dict, line: str) -> None:
    with pytest.raises(UserError, match=line):
        Settings.of(**asked)


def test_damaged_runs_are_one_line(made: tuple[Run, Path, list[Run]], tmp_path: Path) -> None:
    run, folder, _ = made
    with pytest.raises(UserError, match="does not exist"):
        Run.load(tmp_path / "none")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="schema None"):
        Run.load(tmp_path)
    content = json.loads((folder / "run.json").read_text())
    content["outcomes"][0]["accuracy"] = "high"
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"damaged: outcomes\.0\.accuracy"):
        Run.load(tmp_path)
    with pytest.raises(UserError, match="methods are"):
        run.network(tmp_path, "joint", 7)
    (tmp_path / "joint-0.safetensors").write_bytes(b"12345678")
    with pytest.raises(UserError, match="damaged"):
        run.network(tmp_path, "joint", 0)
