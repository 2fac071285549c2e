"""``multimodal train`` and ``multimodal report`` as people and scripts use them."""

import json
from pathlib import Path

import pytest

from modhifi.cli import main

from .test_cli import ask, refused

TINY = ["--seeds", "2", "--epochs", "1", "--pairs", "64"]


def test_train_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    asked = ["multimodal", "train", "--data", "digits", "--fusion", "late", "--method", "all", *TINY, "--out", out]
    value = ask(capsys, *asked, "--degrade", "left=0.5")
    assert list(value["methods"]) == ["joint", "agm", "ogm-ge", "mslr", "mses"]
    assert value["settings"]["degrade"] == {"left": 0.5}
    agm = value["methods"]["agm"]
    assert len(agm["accuracy"]["values"]) == 2
    assert set(agm["competition"]) == set(agm["mono"]) == set(value["alone"]) == {"left", "right"}
    assert ask(capsys, "multimodal", "report", out) == value
    assert main(["multimodal", "--json", "report", str(out)]) == 0
    assert json.loads(capsys.readouterr().out) == value, "the flag may stand before the second word too"
    assert main(["multimodal", "report", str(out)]) == 0
    text = capsys.readouterr().out
    assert "two real views, no recordings" in text
    assert "left keeps 50% of its PCA energy" in text
    assert text.index("left alone") < text.index("Joint") < text.index("OGM-GE")


def test_one_method_without_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["multimodal", "train", "--fusion", "early", "--method", "agm", *TINY, "--seeds", "1"]) == 0
    assert "written to run" in capsys.readouterr().out
    assert (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "--method", "sgd"], "methods.0: "),
        (["train", "--fusion", "early", "--method", "ogm-ge"], "late fusion"),
        (["train", "--seeds", "0"], "seeds: "),
        (["train", "--degrade", "left"], "MODALITY=SHARE"),
        (["train", "--degrade", "audio=0.5", "--seeds", "1"], "the modalities are left, right"),
        (["train", "--data", "/nowhere"], "no /nowhere/train.parquet"),
        (["train", "--device", "toaster"], "not available"),
        (["report", "/nowhere"], "does not exist"),
        ([], "train|report"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert line in refused(capsys, "multimodal", *arguments)
    assert list(tmp_path.iterdir()) == []
