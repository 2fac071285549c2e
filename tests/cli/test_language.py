"""A language model's way through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modhifi.cli import main


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language") / "study"
    call = ["analyze", "text-llama", "--context", "64", "--samples", "40", "--constant-samples", "2", "--device", "cpu"]
    assert main([*call, "--out", str(folder)]) == 0
    return folder


def asked(capsys: pytest.CaptureFixture[str], *call: object) -> Any:
    capsys.readouterr()
    assert main([*map(str, call), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_round_trip(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    shown = asked(capsys, "show", study)
    assert {row["kind"] for row in shown["groups"]} == {"heads", "neurons"}
    made = asked(capsys, "prune", study, "--params", 0.8, "--compensate", "full", "--out", plan)
    assert made["settings"]["allocation"] == "width"
    assert not made["settings"]["centred"]
    measured = asked(capsys, "evaluate", plan, "--samples", 6, "--stride", 32, "--device", "cpu")
    assert measured["context"] == 64
    assert measured["stride"] == 32
    assert measured["perplexity_before"] < 4
    assert measured["perplexity"] > 0
    assert "accuracy" not in measured
    bound = asked(
        capsys, "bound", study, plan, "--data", "text:kjv", "--split", "test", "--samples", 3, "--no-held-out"
    )
    assert bound["measured"] <= bound["bound"] * 1.001
    assert len(bound["rows"]) >= 5
    files = asked(capsys, "export", plan, "--out", out)["files"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "plan.json", "manifest.json"} <= set(files)
    again = asked(
        capsys, "analyze", out, "--context", 64, "--samples", 8, "--constants", "none", "--out", tmp_path / "again"
    )
    assert again["params"] == measured["params"]
    assert main(["show", str(tmp_path / "again")]) == 0
    assert "–" in capsys.readouterr().out
    assert main(["evaluate", str(plan), "--samples", "2", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "2 windows of 64 tokens, stride 32" in text
    assert "perplexity" in text
    assert "decode throughput, tokens/s" in text


def test_methods_side_by_side(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["width-one-shot", "free-one-shot", "cholesky", "magnitude", "chance"]
    call = ["compare", study, "--params", "0.8", "--methods", ",".join(names), "--samples", 4, "--device", "cpu"]
    value = asked(capsys, *call)
    by = {row["method"]: row["perplexity"] for row in value["rows"]}
    assert list(by) == names
    assert by["width-one-shot"] < 1.3 * value["perplexity_before"]
    assert by["width-one-shot"] < min(by["cholesky"], by["magnitude"], by["chance"])
    assert main([*map(str, call)]) == 0
    assert "perplexity" in capsys.readouterr().out


def test_what_does_not_fit_is_one_line(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = (
        (["prune", study, "--latency", "0.5"], "no latency budget"),
        (["prune", study, "--params", "0.9", "--published"], "--score cholesky"),
        (["unlearn", study, "--forget", "a", "--data", "text:kjv"], "no classes to forget"),
        (["analyze", "text-llama", "--data", "digits"], "use --data text:FILE"),
        (["analyze", "digits-resnet20", "--data", "text:kjv"], "text is for language models"),
        (["analyze", "hf:no/such/name/anywhere", "--data", "text:kjv"], "could not be loaded"),
    )
    for call, words in calls:
        assert main([*map(str, call), "--out", str(tmp_path / "x.json")]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1, error
