"""The command line with networks whose answer is no single class: a regression, and a segmenter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modhifi.cli import main
from modhifi.models import _factory

SOURCE = """
import torch
from torch import nn


class Length(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.f = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 5)

    def forward(self, x):
        y = torch.relu(self.a(x)).reshape(len(x), self.a.out_channels, 10, 10)
        return self.f(torch.relu(self.b(y)).mean((2, 3)))


def regression():
    return nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0))


def segmenter():
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
                         nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 4, 1)).eval()


def length():
    return Length()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_factory, "_folders", None)  # pages that were tested in this process restrict it
    (tmp_path / "own.py").write_text(SOURCE)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3, 12, 12)).astype(np.float32)
    np.savez("regression.npz", x=x, y=rng.normal(size=40))
    np.savez("segmenter.npz", x=x, labels=rng.integers(0, 4, (40, 12, 12)))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", ["regression", "segmenter"])
def test_the_whole_job(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--data", f"{kind}.npz")
    run(capsys, "analyze", f"own.py:{kind}", "--input", "3x12x12", *data, "--out", "study")
    groups = run(capsys, "show", "study")["groups"]
    assert sum(group["components"] for group in groups) == 24
    plan = run(capsys, "prune", "study", "--flops", "0.6", "--out", "plan.json")
    assert plan["predicted"]["relative_error"] > 0
    found = run(capsys, "evaluate", "plan.json", *data)
    assert found["flops"] <= 0.6 * found["flops_before"]
    assert found["relative_error"] > 0
    compared = run(capsys, "compare", "study", "--flops", "0.6", "--methods", "studio,l2,l2+full", *data)
    assert all(row["relative_error"] > 0 for row in compared["rows"])
    if kind == "regression":
        assert found["agreement"] is None
        assert found["kl"] is None
        assert "accuracy" not in found
    else:
        assert 0 < found["agreement"] <= 1
        assert {"accuracy", "accuracy_before", "mean_iou", "mean_iou_before"} <= found.keys()
    for call in (["evaluate", "plan.json"], ["compare", "study", "--flops", "0.6", "--methods", "studio,l2"]):
        assert main([*call, *data]) == 0
        text = capsys.readouterr().out
        assert "40 samples" in text
        assert ("relative error of the answer" in text) == (kind == "regression")
    assert run(capsys, "bound", "study", "plan.json", *data, "--samples", "8")
    for call, said in (
        (["unlearn", "study", "--forget", "1", *data, "--out", "x.json"], "has no classes to forget"),
        (["analyze", "own.py:regression", "--input", "3x12x12", "--out", "other"], "say what"),
    ):
        assert main(call) == 2
        assert said in capsys.readouterr().err


def test_onnx_of_a_network_that_counts_its_samples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``len(x)`` is a number for the exporter: a file for batches of two is not kept."""
    run(
        capsys, "analyze", "own.py:length", "--input", "3x12x12", "--data", "noise", "--samples", "16", "--out", "study"
    )
    run(capsys, "prune", "study", "--params", "0.8", "--compensate", "none", "--out", "plan.json")
    assert main(["export", "plan.json", "--out", "out", "--format", "onnx"]) == 2
    assert "takes only batches of the size it was traced with" in capsys.readouterr().err
    assert not (folder / "out").exists()
