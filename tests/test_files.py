"""Files and folders: whose they are, what is swept, what is refused."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import modhifi
from modhifi import Model, Study, UserError, files
from modhifi.files import FolderKind, atomic_file, atomic_folder, check_regular, locked, read_json, recover, sweep
from modhifi.multimodal import Settings, train

KIND = FolderKind("a thing", "thing.json", lambda manifest: manifest["files"], extra=("later.txt",))


def write(path: Path, text: str = "new") -> None:
    with atomic_folder(path, KIND) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "thing.json").write_text(json.dumps({"files": ["a.txt"]}))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_whole(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    write(tmp_path / "x", "old")
    (tmp_path / "x" / "later.txt").write_text("beside")
    write(tmp_path / "x")
    assert (tmp_path / "x" / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["x"]
    assert names(tmp_path / "x") == ["a.txt", "thing.json"]


@pytest.mark.parametrize(
    "manifest",
    ['{"name": "a browser extension", "version": "1"}', "[]", "not JSON", "null", '{"files": 3}', "[" * 100_000],
)
def test_a_folder_with_somebody_elses_manifest_is_left_alone(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "thing.json").write_text(manifest)
    (tmp_path / "web" / "index.html").write_text("precious")
    with pytest.raises(UserError, match="is not that of a thing"):
        write(tmp_path / "web")
    assert names(tmp_path / "web") == ["index.html", "thing.json"]
    assert names(tmp_path) == ["web"]


def test_a_folder_of_ours_with_a_file_of_theirs_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "x")
    (tmp_path / "x" / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match=r"also contains 'notes\.txt'; move that file"):
        write(tmp_path / "x")
    assert (tmp_path / "x" / "notes.txt").read_text() == "precious"


def test_what_somebody_puts_there_during_the_work_is_left_alone(tmp_path: Path) -> None:
    def work() -> None:
        with atomic_folder(tmp_path / "x", KIND) as folder:
            (folder / "a.txt").write_text("new")
            (tmp_path / "x").mkdir()
            (tmp_path / "x" / "mine").write_text("precious")

    with pytest.raises(UserError, match="contains other files"):
        work()
    assert names(tmp_path / "x") == ["mine"]
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize(
    ("marker", "content"),
    [("manifest.json", {"name": "extension", "version": "3"}), ("study.json", {"a": 1}), ("run.json", {"b": 2})],
)
def test_the_three_kinds_of_folder(
    marker: str, content: dict, digits_study: Study, digits_model: Model, tmp_path: Path
) -> None:
    """Foreign folders that happen to hold a file of this name, for export, studies and runs."""
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / marker).write_text(json.dumps(content))
    (folder / "index.html").write_text("precious")
    writes = {
        "study.json": lambda: digits_study.save(folder),
        "run.json": lambda: train(Settings(epochs=1, seeds=1, pairs=40), out=folder),
        "manifest.json": lambda: modhifi.export(digits_model, folder),
    }
    with pytest.raises(UserError, match="contains other files"):
        writes[marker]()
    assert names(folder) == sorted([marker, "index.html"])


def test_what_a_dead_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    dead = tmp_path / ".x.0123456789abcdef.tmp"
    dead.mkdir()
    (dead / "half").write_text("")
    others = [tmp_path / ".y.0123456789abcdef.tmp", tmp_path / ".x.mine.tmp", tmp_path / "x.0123456789abcdef.tmp"]
    for other in others:
        other.write_text("precious")
    with atomic_file(tmp_path / "x") as first:
        first.write_text("first")
        assert not dead.exists()
        with atomic_file(tmp_path / "x") as second:
            second.write_text("second")
            assert first.exists()
        assert (tmp_path / "x").read_text() == "second"
    assert (tmp_path / "x").read_text() == "first"
    assert names(tmp_path) == sorted(["x", *(other.name for other in others)])


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    held = tmp_path / ".x.0123456789abcdef.tmp"
    held.touch()
    hold = (
        "import sys, pathlib; from modhifi.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])) as mine: print(mine, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(held)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "True"
        with locked(held) as mine:
            assert not mine
        sweep(tmp_path / "x")
        assert held.exists()
        other.kill()
    sweep(tmp_path / "x")
    assert not held.exists()


def test_a_folder_that_was_moved_away_comes_back(tmp_path: Path) -> None:
    """Killed between two renames, where the system cannot exchange folders."""
    write(tmp_path / ".x.0123456789abcdef.old", "old")
    recover(tmp_path / "x")
    assert (tmp_path / "x" / "a.txt").read_text() == "old"
    write(tmp_path / ".x.0123456789abcdef.old", "older")
    recover(tmp_path / "x")
    assert (tmp_path / "x" / "a.txt").read_text() == "old", "it never replaces what is there"
    sweep(tmp_path / "x")
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("name", ["", ".", "..", "/"])
def test_no_name_of_its_own(name: str, digits_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        digits_study.save(name)
    assert names(tmp_path) == []


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in (pipe, tmp_path / "socket", Path("/dev/zero")):
            with pytest.raises(UserError, match="is not a regular file"):
                check_regular(path, "a plan")
            with pytest.raises(UserError, match="is not a regular file"):
                read_json(path, "a plan")
    (tmp_path / "large").write_bytes(b"12345")
    with pytest.raises(UserError, match="too large for a plan"):
        check_regular(tmp_path / "large", "a plan", 4)
    for path in (tmp_path / "none", tmp_path / "large" / "below", Path("\0"), tmp_path / ("x" * 5000)):
        with pytest.raises(UserError):
            check_regular(path, "a plan")


@pytest.mark.parametrize(
    "text", ["{", "\xff", "NaN", '{"a": Infinity}', "[" * 50_000, "1" * 5000, ""], ids=lambda text: repr(text[:12])
)
def test_json_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match="does not parse"):
        read_json(tmp_path / "plan.json", "a plan")
