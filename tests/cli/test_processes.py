"""Analyses that several processes share, and one that is killed: the same study as one process that nobody disturbs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import modhifi
from modhifi.cli import main
from modhifi.cli._main import _Bar

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow

# Keeps its sums after every batch, and ends as a machine that loses its power would: in the middle, without a word.
KILLED = """
import functools, os, signal, sys
from modhifi.cli import main
from modhifi.cli._main import _Bar
from modhifi.study import _analyze

_analyze.Partial = functools.partial(_analyze.Partial, seconds=0.0)

def report(bar, done, total, what):
    if what == "collecting statistics" and done >= total // 2:
        os.kill(os.getpid(), signal.SIGKILL)

_Bar.__call__ = report
main(sys.argv[1:])
"""


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # As many threads as here, so that sums are added up in the same order.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("samples", "processes"), [(75, 2), (2, 3)])
def test_several_processes_give_the_study_of_one(
    tmp_path: Path, digits_model: modhifi.Model, samples: int, processes: int
) -> None:
    """Also where there is nothing left to do for one of them."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "modhifi"]
    asked = ["analyze", "digits-resnet20", "--samples", str(samples), "--device", "cpu", "--out", "study"]
    done = run(*torchrun, *asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to study") == 1, "the first process alone speaks"
    assert [path.name for path in tmp_path.iterdir()] == ["study"], "no sums are left over"
    shared = modhifi.Study.load(tmp_path / "study")
    alone = modhifi.analyze(digits_model, modhifi.load_data("digits"), samples=samples)
    assert shared.key == alone.key
    for name, layer in alone.layers.items():
        moments = shared.layers[name].moments
        assert moments.count == layer.moments.count
        for ours, theirs in ((moments.second, layer.moments.second), (moments.mean, layer.moments.mean)):
            assert float((ours - theirs).norm()) <= 1e-6 * float(theirs.norm()), name
    for group in alone.groups:
        ours, theirs = shared.scores(group.name)["fidelity"], alone.scores(group.name)["fidelity"]
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6), group.name
        (seen, table), (also_seen, also_table) = shared.class_fidelity(group.name), alone.class_fidelity(group.name)
        assert seen.tolist() == also_seen.tolist()
        assert table == pytest.approx(also_table, rel=1e-3, abs=1e-5)


def test_killed_half_way_and_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["analyze", "digits-resnet20", "--device", "cpu", "--out"]
    done = run("-c", KILLED, *asked, "study", cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (partial,) = tmp_path.iterdir()
    assert partial.name == ".study.partial", "there is no study yet"
    begun: list[int] = []

    def report(bar: _Bar, done: int, total: int, what: str) -> None:
        if what == "collecting statistics":
            begun.append(done)

    monkeypatch.setattr(_Bar, "__call__", report)
    assert main([*asked, str(tmp_path / "study")]) == 0
    assert begun[0] == 256, "the first half was not run again"
    assert not partial.exists()
    assert main([*asked, str(tmp_path / "whole")]) == 0
    again, whole = modhifi.Study.load(tmp_path / "study"), modhifi.Study.load(tmp_path / "whole")
    for name, layer in whole.layers.items():
        assert torch.equal(again.layers[name].moments.second, layer.moments.second), name
        assert torch.equal(again.layers[name].moments.mean, layer.moments.mean), name
    assert again.tables.keys() == whole.tables.keys()
    assert all(torch.equal(again.tables[name], table) for name, table in whole.tables.items())
    begun.clear()
    assert main([*asked, str(tmp_path / "whole")]) == 0
    assert not begun, "the same study is not made twice"


def test_interrupted_by_hand_and_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Ctrl-C while statistics are collected: one line, and what was collected is kept."""
    report = _Bar.__call__
    begun: list[int] = []

    def interrupt(bar: _Bar, done: int, total: int, what: str) -> None:
        if what == "collecting statistics":
            begun.append(done)
            if done == 128:
                signal.raise_signal(signal.SIGINT)
        report(bar, done, total, what)

    monkeypatch.setattr(_Bar, "__call__", interrupt)
    asked = ["analyze", "digits-resnet20", "--device", "cpu", "--out", str(tmp_path / "study")]
    before = signal.getsignal(signal.SIGINT)
    assert main(asked) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "modhifi: stopped"
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(_Bar, "__call__", lambda *told: begun.append(told[1]) if "coll" in told[3] else None)
    begun.clear()
    assert main(asked) == 0
    assert begun[0] == 128
    assert [path.name for path in tmp_path.iterdir()] == ["study"]
