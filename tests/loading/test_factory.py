"""``FILE.py:FACTORY``: a person's own code, run where it is theirs, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import modhifi
from modhifi import UserError
from modhifi.loading import reload
from modhifi.models import _factory, restrict_factories
from modhifi.specs import ArraySpec, InputSpec

SOURCE = """
from dataclasses import dataclass

import torch
from torch import nn

from sizes import WIDTH


@dataclass
class Answer:
    logits: torch.Tensor


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, row):
        print("a line of the network's own")
        return Answer(self.c(self.drop(torch.relu(self.b(torch.relu(self.a(row)))))))


def build():
    return Net()


def with_examples():
    return Net(), {"row": torch.rand(4, 6)}


def image():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(8, 4))


def needs(width, *, depth=3):
    return Net()


def raises():
    raise KeyError("no such weights")


def leaves():
    raise SystemExit(3)


def nothing():
    Net()


def number():
    return 3


not_callable = 5
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "net.py").write_text(SOURCE)
    (tmp_path / "sizes.py").write_text("WIDTH = 24\n")
    (tmp_path / "broken.py").write_text("import torch\nraise RuntimeError('early')\n")
    (tmp_path / "lacks.py").write_text("import no_such_package_anywhere\n")
    (tmp_path / "syntax.py").write_text("def build(:\n")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", row=rng.normal(size=(64, 6)).astype(np.float32), labels=rng.integers(0, 3, 64))
    monkeypatch.setattr(_factory, "_folders", None)  # pages that were tested in this process restrict it
    yield tmp_path
    sys.modules.pop("sizes", None)


def test_a_factory_and_its_reload(folder: Path) -> None:
    model = modhifi.load_model(f"{folder}/net.py:with_examples")
    assert isinstance(model.input, ArraySpec)
    assert [(one.name, one.keyword, one.shape) for one in model.input.inputs] == [("row", True, (6,))]
    assert model.spec == f"{folder}/net.py:with_examples"
    again = reload(model.ref)
    assert again.fingerprint == model.fingerprint, "random weights are the same every time"
    assert again.input == model.input
    x = model.example(3)
    assert torch.equal(model.module(x), again.module(x))


def test_shapes_from_the_command_line(folder: Path) -> None:
    model = modhifi.load_model(f"{folder}/net.py:image", input="1x12x12", mean=[0.5], std=[0.25], classes=list("abcd"))
    assert model.input == InputSpec(size=(12, 12), mean=(0.5,), std=(0.25,))
    assert model.classes == tuple("abcd")
    digits, _ = next(modhifi.load_data("digits").batches(model.input, 4))
    assert digits.shape == (4, 1, 12, 12)
    with pytest.raises(UserError, match=r"'3x' is not the shape of an input; write sizes joined by x"):
        modhifi.load_model(f"{folder}/net.py:image", input="3x")
    with pytest.raises(UserError, match=r"omit --input and --output"):
        modhifi.load_model("digits-resnet20", input="3x8x8")


def test_weights_of_its_own(folder: Path) -> None:
    state = {
        name: value + 1
        for name, value in modhifi.load_model(f"{folder}/net.py:with_examples").module.state_dict().items()
    }
    torch.save(state, folder / "weights.pt")
    model = modhifi.load_model(f"{folder}/net.py:with_examples", folder / "weights.pt")
    assert all(torch.equal(value, state[name]) for name, value in model.module.state_dict().items())
    assert reload(model.ref).fingerprint == model.fingerprint


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("missing.py:build", r"missing\.py was not found"),
        ("net.py:absent", r"has no absent; its functions and classes: .*build"),
        ("net.py:not_callable", "is not callable"),
        ("net.py:needs", r"needs arguments \(width\)"),
        ("net.py:raises", r"raised KeyError when it was called \('no such weights'\)"),
        ("net.py:leaves", r"raised SystemExit when it was called"),
        ("net.py:nothing", "returned nothing; it must return a torch.nn.Module"),
        ("net.py:number", "returned a int"),
        ("net.py:build", r"needs example inputs; return them with the network, or say --input"),
        ("broken.py:build", r"raised RuntimeError while it was imported \(early\)"),
        ("lacks.py:build", "the module 'no_such_package_anywhere' that it imports is missing"),
        ("syntax.py:build", "raised SyntaxError while it was imported"),
    ],
)
def test_factories_that_cannot_be_used(folder: Path, spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        modhifi.load_model(f"{folder}/{spec}")
    assert "\n" not in str(caught.value)


def test_a_module_that_python_can_import(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "own_package_of_mine").mkdir()
    (folder / "own_package_of_mine" / "deep.py").write_text(SOURCE.replace("from sizes import WIDTH", "WIDTH = 9"))
    monkeypatch.chdir(folder)
    model = modhifi.load_model("own_package_of_mine.deep:with_examples")
    assert model.module.a.weight.shape == (9, 6)
    with pytest.raises(UserError, match="unknown model 'no_such_module:build': there is no Python module"):
        modhifi.load_model("no_such_module:build")


def test_training_mode_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = modhifi.load_model(f"{folder}/net.py:with_examples")
    assert "came in training mode; it is used in evaluation mode" in caplog.text
    assert not model.module.training


def test_only_files_of_the_folder(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the dashboard does: it runs no code, or that of one folder."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    mark = elsewhere / "ran"
    (elsewhere / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    (folder / "link.py").symlink_to(elsewhere / "evil.py")
    ref = modhifi.load_model(f"{folder}/net.py:with_examples").ref
    restrict_factories()
    for spec in (f"{folder}/net.py:with_examples", f"{elsewhere}/evil.py:build", "os:getcwd"):
        with pytest.raises(UserError, match="is Python code, which this server does not run"):
            modhifi.load_model(spec)
    with pytest.raises(UserError, match="is Python code, which this server does not run"):
        reload(ref)
    restrict_factories(folder)
    assert modhifi.load_model("net.py:with_examples").fingerprint == ref.fingerprint
    for spec in (f"{elsewhere}/evil.py:build", "link.py:build", f"../{elsewhere.name}/evil.py:build", "os:getcwd"):
        with pytest.raises(UserError, match="is Python code, which this server does not run"):
            modhifi.load_model(spec)
    assert not mark.exists()


def test_the_command_line(folder: Path) -> None:
    def run(*arguments: str, status: int = 0) -> str:
        environment = os.environ | {"PYTHONPATH": str(Path(modhifi.__file__).parents[1])}
        done = subprocess.run(
            [sys.executable, "-m", "modhifi", *arguments], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == status, done.stderr
        return done.stdout if not status else done.stderr

    model = ["net.py:build", "--input", "6", "--output", "logits"]
    run("analyze", *model, status=2)
    assert "groups" in run("analyze", *model, "--data", "data.npz", "--out", "study", "--json")
    run("prune", "study", "--params", "0.6", "--out", "plan.json")
    printed = run("evaluate", "plan.json", "--data", "data.npz", "--json")
    assert printed.startswith("{"), "nothing but the answer is on standard output"
    run("export", "plan.json", "--out", "small", "--format", "safetensors,onnx,pt2")
    smaller = modhifi.load_model(str(folder / "small"))
    assert sum(value.numel() for value in smaller.module.parameters()) < 0.6 * 861
    run("analyze", "small", "--data", "data.npz", "--out", "again")
    (folder / "net.py").write_text(SOURCE + "\n")
    for call in (
        ["evaluate", "plan.json", "--data", "data.npz"],
        ["analyze", "small", "--data", "data.npz", "--out", "b"],
    ):
        said = run(*call, status=2)
        assert "net.py has changed since build was used from it" in said
        assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"source": None}, "nothing says which version"),
        ({"spec": "net.py:with_examples"}, "relative path to Python code"),
    ],
)
def test_what_somebody_else_wrote_runs_no_other_code(
    folder: Path, update: dict[str, str | None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan, study or export may come from anybody: it runs only the file, by its full path, whose sha256 it has."""
    monkeypatch.chdir(folder)
    ref = modhifi.load_model("net.py:with_examples").ref
    assert reload(ref).fingerprint == ref.fingerprint
    (folder / "net.py").write_text("raise SystemExit('this ran')\n" + SOURCE)
    with pytest.raises(UserError, match=message):
        reload(ref.model_copy(update=update))
