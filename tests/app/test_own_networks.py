"""Every page with a network of one's own, from a file of the folder that the server was started for."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app.selection import Choice, LabelledData, Source
from app.session import library
from modhifi.pruning import pruning_methods
from tests.app.paging import MAIN, PAGES, open_page, settled, words

SOURCE = """
import torch
from torch import nn


def regression():
    return nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0)), torch.rand(2, 3, 8, 8)


def segmenter():
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(),
                         nn.Conv2d(12, 4, 1)).eval(), torch.rand(2, 3, 8, 8)


def grey():
    return nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(12, 3)), torch.rand(2, 1, 8, 8)


def table():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(9, 6)
"""


@pytest.fixture
def models(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "own.py").write_text(SOURCE)
    monkeypatch.setenv("MODHIFI_MODELS", str(folder))
    return folder


@pytest.mark.parametrize("kind", ["regression", "segmenter", "grey", "table"])
def test_every_page(kind: str, models: Path) -> None:
    source = Source(model=f"{models}/own.py:{kind}", data="noise", samples=32)
    app = AppTest.from_file(str(MAIN), default_timeout=60)
    app.run()
    job = library().tasks.analyse(source)
    assert job.wait(120)
    assert job.state == "done", job.error
    study = library().queries.study(source)
    choice = Choice.of(pruning_methods()["one-shot"], study, "params", 0.7)
    job = library().tasks.measure(source, choice, LabelledData(data="noise", split="test", samples=16))
    assert job.wait(120)
    assert job.state == "done", job.error
    text = {}
    for page in PAGES:
        app = settled(open_page(page, study=source.label))
        assert not app.error, (page, app.error)
        text[page] = words(app)
    without = kind in ("regression", "segmenter")
    assert ("no classes to forget" in text["forget"]) == without
    assert ("have no classes" in text["importance"]) == without
    assert ("Top-activating images" in text["importance"]) == (kind == "grey")


def test_no_code_without_a_folder(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODHIFI_MODELS")
    app = AppTest.from_file(str(MAIN), default_timeout=60)
    app.run()
    job = library().tasks.analyse(Source(model=f"{models}/own.py:regression", data="noise", samples=32))
    assert job.wait(60)
    assert job.state == "error"
    assert "is Python code, which this server does not run; start it with modhifi ui --models FOLDER" in str(job.error)
