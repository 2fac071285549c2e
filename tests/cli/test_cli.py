"""The command line as people and scripts use it: the whole job, and every mistake in one line."""

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import modhifi
from modhifi.cli import main
from tests.few import CALIBRATION, TEST, few_digits

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study and a plan made by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    analyze = ["analyze", "digits-resnet20", "--data", "digits", "--samples", "96"]
    assert main([*analyze, "--out", str(folder / "study")]) == 0
    assert main(["prune", str(folder / "study"), "--flops", "0.5", "--out", str(folder / "plan.json")]) == 0
    return folder


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    """The JSON that a call prints; nothing else may be on standard output."""
    status = main([str(argument) for argument in arguments] + ["--json"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return json.loads(captured.out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on standard error of a call that must end with status 2."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("modhifi: ")
    return captured.err


def test_sequential_compensation_and_its_settings(
    work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ["prune", work / "study", "--flops", 0.3]
    settings = [
        ask(capsys, *asked, *more, "--out", tmp_path / f"{number}.json")["settings"]
        for number, more in enumerate(([], ["--no-drift"]))
    ]
    assert [(one["compensate"], one["drift"]) for one in settings] == [("sequential", True), ("sequential", False)]
    assert all(0 < ridge <= 1.001 for one in settings for ridge in one["ridges"].values())
    with_drift, without = (load_file(next(tmp_path.glob(f"{number}.*.safetensors"))) for number in (0, 1))
    assert with_drift.keys() == without.keys()
    assert any(not torch.equal(with_drift[name], without[name]) for name in with_drift)


def test_latency_is_measured_and_its_table_kept(work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(work / "study", study)
    # Several images at once: with one, a network as small as this hardly gets faster by being narrower.
    asked = ["prune", study, "--latency", 0.8, "--latency-batch", 16, "--compensate", "none"]
    asked += ["--multiple", 8, "--floor", "layer1.0.conv1=9"]
    found = ask(capsys, *asked, "--out", tmp_path / "plan.json")
    assert found["kept"]["layer1.0.conv1"] == 16
    assert 0 < found["predicted"]["latency_ms"] < 2 * found["predicted"]["latency_ms_before"]
    stamp = (study / "latency.json").stat().st_mtime_ns
    ask(capsys, *asked, "--out", tmp_path / "plan.json")
    assert (study / "latency.json").stat().st_mtime_ns == stamp, "timed once"


def test_methods_are_compared_and_every_row_is_a_plan(
    work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ["compare", work / "study", "--flops", "0.7", "--data", "digits", "--split", "test", "--samples", 60]
    found = ask(capsys, *asked, "--methods", "one-shot,l2+full", "--out", tmp_path)
    assert [row["method"] for row in found["rows"]] == ["one-shot", "l2+full"]
    for row in found["rows"]:
        assert row["flops"] <= 0.7 * found["flops_before"]
        result = ask(capsys, "evaluate", row["plan"], "--data", "digits", "--split", "test", "--samples", 60)
        assert result["accuracy"] == row["accuracy"]
    assert "unknown method 'luck'" in refused(capsys, *asked, "--methods", "luck")
    assert "one budget" in refused(capsys, "compare", work / "study", "--data", "digits")


def test_images_without_labels_are_compared_by_agreement(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leaves = ["--data", "dead-leaves", "--samples", 12]
    result = ask(capsys, "evaluate", work / "plan.json", *leaves)
    assert "accuracy" not in result
    assert 0 <= result["agreement"] <= 1
    assert result["relative_error"] > 0
    asked = ["compare", work / "study", "--flops", "0.7", *leaves, "--methods", "l2,one-shot"]
    found = ask(capsys, *asked)
    assert "accuracy_before" not in found
    assert all("accuracy" not in row and row["kl"] >= 0 for row in found["rows"])
    assert main([str(argument) for argument in asked]) == 0
    text = capsys.readouterr().out
    assert "same answer as the original (higher is better)" in text
    assert "accuracy" not in text


def test_what_each_group_alone_would_cost(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = ask(capsys, "show", work / "study", "--sensitivity")
    assert len(found["groups"]) == 12
    assert all(len(errors) == len(found["shares"]) for errors in found["groups"].values())


def test_constants_and_what_they_bound(work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    study, plan = tmp_path / "study", tmp_path / "plan.json"
    ask(
        capsys, "analyze", "digits-vit", "--samples", 128, "--constants", "jacobian,certified",
        "--constant-samples", 24, "--out", study,
    )  # fmt: skip
    found = ask(capsys, "show", study, "--constants")
    assert found["claims"] == {"directional": "lower", "jacobian": "lower", "certified": "upper"}
    assert len(found["layers"]) == 8
    for row in found["layers"].values():
        assert row["jacobian"]["samples"] == 24
        assert row["jacobian"]["rms"] <= row["jacobian"]["maximum"] <= row["certified"]["value"]
        assert row["certified"]["ranges"] or row["certified"]["value"] < 1.01
    assert set(found["smallest_norms"]) >= {"blocks.0.norm1", "norm"}
    assert main(["show", str(study), "--constants"]) == 0
    text = capsys.readouterr().out
    for part in ("jacobian ≥", "certified ≤", "smallest norm seen", "jacobian: Lower bound", "stay in the ranges seen"):
        assert part in text
    pruned = ask(
        capsys, "prune", study, "--flops", 0.6, "--constants", "jacobian", "--compensate", "full", "--out", plan
    )
    assert pruned["settings"]["constants"] == "jacobian"
    bound = ["bound", study, plan, "--data", "digits", "--split", "test", "--samples", 24]
    found = ask(capsys, *bound)
    assert found["held_out"]["samples"] == 24
    assert set(found["grains"]) == {"block", "stage"}
    assert found["tightness"] == pytest.approx(found["slack_maximum"] * found["slack_sum"])
    assert ask(capsys, *bound, "--no-held-out")["held_out"] is None
    assert main([str(word) for word in bound]) == 0
    text = capsys.readouterr().out
    for part in ("granularity", "stage", "predicted before anything is run", "24 calibration samples instead"):
        assert part in text
    assert "unknown estimator 'most'" in refused(capsys, "analyze", "digits-vit", "--constants", "most", "--out", study)
    no = refused(capsys, "prune", study, "--flops", 0.6, "--constants", "pairs", "--out", plan)
    assert "analyze with --constants pairs too" in no


@pytest.fixture
def few() -> Iterator[None]:
    with few_digits():
        yield


def test_the_whole_job(few: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert any(row["spec"] == "digits-resnet20" for row in ask(capsys, "models")["models"])
    study, plan = tmp_path / "study", tmp_path / "plan.zip"
    analysed = ask(capsys, "analyze", "digits-resnet20", "--out", study)
    assert (analysed["groups"], analysed["samples"], analysed["params"]) == (12, CALIBRATION, 269_722)
    shown = ask(capsys, "show", study, "--eta", 0.9)
    assert len(shown["groups"]) == 12
    assert {row["kind"] for row in shown["groups"]} == {"channels", "stream"}
    assert all(0 <= row["hifi_size"] <= row["components"] for row in shown["groups"])
    assert sum(row["components"] for row in shown["groups"]) == analysed["components"]
    one = ask(capsys, "show", study, "--group", "layer1.0.conv1")
    assert len(one["scores"]["fidelity"]) == 16
    assert one["read_by"] == ["layer1.0.conv2"]
    assert one["hifi_size"] <= one["hifi_size_scalar"] <= 16
    pruned = ask(capsys, "prune", study, "--flops", 0.5, "--note", "half", "--out", plan)
    assert pruned["predicted"]["flops"] <= 0.5 * pruned["predicted"]["flops_before"]
    result = ask(capsys, "evaluate", plan, "--data", "digits", "--split", "test")
    for name in ("accuracy", "params", "flops", "latency_ms"):
        assert result[name] is not None
        assert result[f"{name}_before"] is not None
    assert result["samples"] == TEST
    assert set(result["per_class"]["3"]) == {"before", "after", "samples"}
    assert result["accuracy"] >= 0.9
    assert result["flops"] == pruned["predicted"]["flops"]
    assert result["params"] == pruned["predicted"]["params"]
    bound = ask(capsys, "bound", study, plan, "--data", "digits", "--samples", 32)
    assert bound["bound"] >= bound["measured"]
    exported = ask(capsys, "export", plan, "--out", tmp_path / "out", "--format", "safetensors,onnx")
    assert {"manifest.json", "model.safetensors", "model.onnx", "plan.json"} <= set(exported["files"])
    model = modhifi.load_model(str(tmp_path / "out"))
    again = modhifi.evaluate(model, modhifi.load_data("digits", split="test"), latency=False)
    assert again.accuracy == result["accuracy"]
    assert again.params == result["params"]


def test_unlearning(work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plan = tmp_path / "without.json"
    few = ["--data", "digits", "--samples", 200]
    asked = ask(capsys, "unlearn", work / "study", "--forget", "3", *few, "--out", plan)
    assert asked["forget"] == ["3"]
    result = ask(capsys, "evaluate", plan, *few, "--split", "test")
    for name in ("forget_accuracy", "retain_accuracy", "probe_accuracy", "mia"):
        assert {name, f"{name}_before"} <= set(result)
    assert result["bn_recall_accuracy"] is not None
    assert result["forget_accuracy"] <= 0.1
    assert result["forget_accuracy_mask"] == 0
    assert asked["curve"][0]["strength"] == 0
    by = ["--method", "ridge", "--target", "chance", "--depth", "1", "--towards", "zero", "--predicted-labels"]
    asked = ask(capsys, "unlearn", work / "study", "--forget", "3,8", *few, *by, "--out", plan)
    assert asked["forget"] == ["3", "8"]
    assert asked["settings"]["method"] == "ridge, towards zero"
    assert asked["settings"]["layers"] == ["linear"]


def test_text_for_people(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in [
        (["models"], "timm:NAME"),
        (["show", work / "study"], "10 layers"),
        (["show", work / "study", "--group", "conv1"], "read by 10 layers: layer1.0.conv1, layer1.1.conv1"),
        (["show", work / "study", "--group", "layer1.0.conv1"], "elimination cost"),
        (["evaluate", work / "plan.json", "--samples", 50], "accuracy"),
        (["evaluate", work / "plan.json", "--samples", 50], "KL divergence from the original, nats (lower is better)"),
        (
            ["evaluate", work / "plan.json", "--split", "calibration", "--samples", 50],
            "are among those that the plan was made from",
        ),
        (["bound", work / "study", work / "plan.json", "--samples", 16], "lower bounds of the Lipschitz constants"),
    ]:
        assert main([str(argument) for argument in arguments]) == 0
        assert words in capsys.readouterr().out


def test_what_is_left_whole_is_said_once_for_each_reason(
    digits_study: modhifi.Study, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    names = [group.name for group in digits_study.groups]
    reasons = dict.fromkeys(names[:5], "its channels are reshaped") | {names[5]: "a custom operation"}
    structure = digits_study.structure.without(reasons)
    readers = {name: digits_study.layers[name] for name in structure.readers}
    study = dataclasses.replace(digits_study, structure=structure, layers=readers, tables=dict(digits_study.tables))
    study.save(tmp_path / "study")
    assert main(["show", str(tmp_path / "study")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        f"not prunable, 5 layers: {', '.join(names[:3])} and 2 more: its channels are reshaped",
        f"not prunable: {names[5]}: a custom operation",
    ]
    assert len(lines) == 1 + len(names) - 6 + 1 + 2
    assert len(ask(capsys, "show", tmp_path / "study")["skipped"]) == 6


@pytest.mark.parametrize("ratio", ["0", "1.5", "nan", "-1", "half", "0.001"])
def test_ratios_that_are_none(work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, ratio: str) -> None:
    refused(capsys, "prune", work / "study", f"--flops={ratio}", "--out", tmp_path / "plan.json")
    assert not list(tmp_path.iterdir())


def test_mistakes_with_files(work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = tmp_path / "nothing"
    out = tmp_path / "out"
    net = ["analyze", "cifar10-resnet20", "--out", out, "--weights"]
    assert "does not exist" in refused(capsys, *net, missing.with_suffix(".pt"))
    assert "--weights FILE" in refused(capsys, "analyze", "cifar10-resnet20", "--out", out)
    assert "unknown model" in refused(capsys, "analyze", "resnet", "--out", out)

    whole = (ROOT / "assets" / "digits-resnet20.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:5000])
    assert "truncated" in refused(capsys, *net, tmp_path / "cut.safetensors")
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, tmp_path / "other.pt")
    assert "missing" in refused(capsys, *net, tmp_path / "other.pt")
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:300])
    assert "truncated" in refused(capsys, *net, tmp_path / "cut.pt")

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "trap.pt").write_bytes(pickle.dumps({"state_dict": Trap()}))
    torch.save({"state_dict": Trap()}, tmp_path / "trap2.pt")
    for name in ("trap.pt", "trap2.pt"):
        refused(capsys, *net, tmp_path / name)
        assert not (tmp_path / "ran").exists()

    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jpg").write_text("not an image")
    for data in (tmp_path / "empty", tmp_path / "texts", missing):
        refused(capsys, "analyze", "digits-resnet20", "--data", data, "--out", out)
    assert not out.exists()


def test_mistakes_with_plans_and_studies(work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "not a study" in refused(capsys, "show", tmp_path)
    assert "no group" in refused(capsys, "show", work / "study", "--group", "x")
    assert "does not exist" in refused(capsys, "evaluate", tmp_path / "plan.json", "--data", "digits")
    unlearn = ["unlearn", work / "study", "--data", "digits", "--out", tmp_path / "u.json", "--forget"]
    assert "no class 'eleven'" in refused(capsys, *unlearn, "eleven")
    assert "all classes" in refused(capsys, *unlearn, ",".join("0123456789"))
    assert "name at least one class" in refused(capsys, *unlearn, "")
    assert "--flops" in refused(capsys, "prune", work / "study", "--out", tmp_path / "p.json")
    assert "not allowed with" in refused(
        capsys, "prune", work / "study", "--flops", 0.5, "--params", 0.5, "--out", tmp_path / "p.json"
    )
    published = ["prune", work / "study", "--published", "--flops", 0.5, "--out", tmp_path / "p.json"]
    assert "omit --multiple" in refused(capsys, *published, "--multiple", 8)
    assert "unknown format" in refused(capsys, "export", work / "plan.json", "--out", tmp_path / "o", "--format", "exe")
    assert "invalid choice" in refused(capsys, "dance")
    assert "split" in refused(capsys, "evaluate", work / "plan.json", "--split", "second")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_told_before_the_work(
    work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    monkeypatch.setattr("modhifi.study._analyze.structure_of", lambda _: pytest.fail("the work was begun"))
    for name in ("prune", "unlearn"):
        monkeypatch.setattr(f"modhifi.{name}", lambda *_, **__: pytest.fail("the work was begun"))
    assert "contains other files" in refused(capsys, "analyze", "digits-resnet20", "--out", tmp_path)
    assert "is a file" in refused(capsys, "analyze", "digits-resnet20", "--out", tmp_path / "mine.txt")
    prune, unlearn = (
        ["prune", work / "study", "--flops", 0.5, "--out"],
        ["unlearn", work / "study", "--forget", 3, "--out"],
    )
    for command in (prune, unlearn):
        assert "is a folder; name a file" in refused(capsys, *command, tmp_path)
        assert "as .json or .zip" in refused(capsys, *command, tmp_path / "plan")
        assert "cannot be created" in refused(capsys, *command, tmp_path / "mine.txt" / "plan.json")


def test_a_plan_for_other_weights(work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    state = load_file(ROOT / "assets" / "digits-resnet20.safetensors")
    state["linear.bias"] = state["linear.bias"] + 1
    save_file(state, tmp_path / "other.safetensors")
    line = refused(capsys, "evaluate", work / "plan.json", "--weights", tmp_path / "other.safetensors")
    assert "other weights" in line


def test_as_a_process_from_anywhere(work: Path, tmp_path: Path) -> None:
    """Status, standard output and standard error as a script sees them, with nothing around them."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "modhifi", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    shown = run("show", str(work / "study"), "--json")
    assert shown.returncode == 0
    assert json.loads(shown.stdout)["model"] == "digits-resnet20"
    wrong = run("prune", str(work / "study"), "--flops", "1.5", "--out", "plan.json")
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert wrong.stderr.count("\n") == 1
    assert "Traceback" not in wrong.stderr


def test_a_fault_of_ours_is_told_from_a_mistake(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modhifi.cli._show.run", lambda *_: 1 / 0)
    assert main(["show", str(work / "study")]) == 1
    captured = capsys.readouterr()
    assert "ZeroDivisionError" in captured.err
    assert "please report" in captured.err


def test_a_published_checkpoint(shared: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """ResNet-56 on real images; a part of them, so that it takes seconds (docs/results has the whole test split)."""
    data = ["--data", "cifar10", "--data-root", shared / "data" / "cifar10"]
    weights = shared / "models" / "resnet56-4bfd9763.th"
    study, plan = tmp_path / "study", tmp_path / "plan.json"
    analysed = ask(capsys, "analyze", "cifar10-resnet56", "--weights", weights, *data, "--samples", 96, "--out", study)
    assert analysed["groups"] == 30
    ask(capsys, "prune", study, "--flops", 0.75, "--out", plan)
    result = ask(capsys, "evaluate", plan, "--split", "test", "--samples", 200)
    assert result["accuracy_before"] >= 0.78
    assert result["accuracy"] >= result["accuracy_before"] - 0.06
    assert set(result["per_class"]) >= {"airplane", "truck"}
