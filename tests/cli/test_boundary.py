"""Between a command and the terminal, the pipe or the disk that it writes to."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modhifi import Study
from modhifi.cli import main
from modhifi.cli._main import _Bar

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study(digits_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_study.save(tmp_path_factory.mktemp("boundary") / "study")


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """``line`` in a shell, where ``$modhifi`` is the command."""
    command = f"{sys.executable} -m modhifi"
    around = os.environ | {"PYTHONPATH": str(ROOT), "modhifi": command} | environment
    return subprocess.run(["bash", "-c", line], cwd=folder, env=around, capture_output=True, check=False)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("modhifi: ")
    assert captured.err.count("\n") == 1
    assert len(captured.err) <= 310
    return captured.err


def test_a_reader_that_leaves_and_a_disk_that_is_full(study: Path, tmp_path: Path) -> None:
    left = shell(f"$modhifi show {study} | head -1; echo ${{PIPESTATUS[0]}}", tmp_path)
    assert left.stderr == b""
    assert left.stdout.splitlines()[-1] == b"0"
    full = shell(f"$modhifi show {study} > /dev/full; echo $?", tmp_path)
    assert full.stdout == b"2\n"
    assert full.stderr == b"modhifi: no space left on the disk; free space or write elsewhere\n"
    mute = shell("$modhifi show nothing 2> /dev/full; echo $?; $modhifi --help | head -1 > /dev/null", tmp_path)
    assert (mute.stdout, mute.stderr) == (b"2\n", b"")


def test_a_terminal_that_knows_ascii_only(study: Path, tmp_path: Path) -> None:
    shown = shell(f"$modhifi show {study}", tmp_path, PYTHONIOENCODING="ascii")
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert b"HiFi set (\\u03b7 = 0.8)" in shown.stdout
    odd = shell("$modhifi analyze digits-resnet20 --out $'caf\\xe9'; ls", tmp_path)
    assert odd.stdout == b"", "nothing was written"
    assert odd.stderr.endswith(b"is not valid UTF-8; rename the file or folder\n")
    assert odd.stderr.count(b"\n") == 1


def test_a_name_that_is_not_utf_8(capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not valid UTF-8; rename the file or folder\n" in refused(capsys, "show", os.fsdecode(b"\xff"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--seed", -1], "'-1' is not a whole number from 0 to 4294967295"),
        (["--seed", 2**32], "is not a whole number"),
        (["--seed", "9" * 5000], "is not a whole number"),
        (["--samples", 0], "is not a whole number from 1"),
        (["--samples", 10**30], "is not a whole number"),
        (["--constant-samples", 0], "is not a whole number from 1"),
        (["--mean", "a,b,c"], "--mean"),
        (["--weights", "/dev/zero"], ""),
        (["--weights", "~nobody-of-this-name/x.pt"], ""),
        (["--out", ""], "does not name a new file or folder"),
        (["--out", "."], "does not name a new file or folder"),
        (["--out", ".."], ""),
        (["--out", "/"], ""),
    ],
)
def test_values_that_no_command_takes(
    arguments: list, line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "mine").write_text("precious")
    monkeypatch.chdir(here)
    monkeypatch.setattr("modhifi.study._analyze.structure_of", lambda _: pytest.fail("the work was begun"))
    assert line in refused(capsys, "analyze", "digits-resnet20", "--out", tmp_path / "study", *arguments)
    assert [path.name for path in here.iterdir()] == ["mine"]
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_where_results_go_is_checked_before_the_work(
    study: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "l2-0.5.json").write_text("{}")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "package.json").write_text("{}")
    for name in ("pruning.compare", "multimodal._train.network", "export"):
        monkeypatch.setattr(f"modhifi.{name}", lambda *_, **__: pytest.fail("the work was begun"))
    compare = ["compare", study, "--flops", 0.5, "--out"]
    for out in ("", tmp_path / "file", tmp_path / "file" / "below"):
        refused(capsys, *compare, out)
    assert "not a plan and was not replaced" in refused(capsys, *compare, tmp_path / "plans")
    with pytest.raises(pytest.fail.Exception, match="the work was begun"):  # nothing there is in its way
        main([str(argument) for argument in (*compare, tmp_path / "others")])
    assert "is a file" in refused(capsys, "export", "nothing.json", "--out", tmp_path / "file")
    assert "contains other files" in refused(capsys, "multimodal", "train", "--out", tmp_path)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RecursionError(), OverflowError("too large"), PermissionError(13, "Permission denied", "x")],
)
def test_what_lies_outside_is_one_line(
    error: Exception, study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("modhifi.cli._show.run", fail)
    refused(capsys, "show", study)


def test_without_a_terminal_a_line_every_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    bar = _Bar(clock=lambda: now[0])
    for second in range(0, 91, 5):
        now[0] = float(second)
        bar(second, 120, "collecting statistics")
    assert said.getvalue().splitlines() == [
        "modhifi: collecting statistics: 30 of 120 (25%), about 2 min left",
        "modhifi: collecting statistics: 60 of 120 (50%), about 60 s left",
        "modhifi: collecting statistics: 90 of 120 (75%), about 30 s left",
    ]
    now[0] = 130.0
    bar(0, 0, "deriving scores")
    assert said.getvalue().splitlines()[-1] == "modhifi: deriving scores"
