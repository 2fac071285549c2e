"""Kills commands before each of their disk operations. Run by `test_killed.py` in a process of its own, which forks: a process
that has already computed gradients could not.

    python -m tests.killing FOLDER

prints one JSON object per point: the command, whether there was an earlier result, the number of the operation, what it was,
the state that was left (``old``, ``new``, ``absent`` or what is wrong with it) and the names left over after the next call.
Operation 0 is a disk that is full.

What a killed process leaves is what is on the disk at that moment. So each command runs once and the folder is copied before
each operation; one process per command is really killed, in the middle, and has to leave what was copied there.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

import modhifi
from modhifi import Data, Plan, Study
from modhifi.cli import main
from modhifi.data import DataSource, register_source
from modhifi.models import Family, register_family
from modhifi.multimodal import Run
from modhifi.specs import InputSpec

from .conftest import Chain

_SPEC = InputSpec(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
# Bytes of a file for which there is room on a full disk.
_ROOM = 600
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.chmod", "shutil.rmtree")


def _register() -> None:
    def build(spec: str, state: object) -> Any:
        torch.manual_seed(3)
        return Chain(), _SPEC, ("a", "b", "c", "d")

    def pictures(spec: str, root: Path | None, split: str) -> Data:
        pixels = np.random.default_rng(0).integers(0, 256, (48, 8, 8, 3), dtype=np.uint8)
        labels, order = torch.arange(48) % 4, tuple(range(48))
        return Data(
            spec, None, split, lambda i: Image.fromarray(pixels[i]), order, labels, ("a", "b", "c", "d"), "pictures"
        )

    register_family(Family("tiny", "two convolutions", lambda spec: spec == "tiny", build))
    register_source(DataSource("pictures", "noise", lambda spec: spec == "pictures", pictures))


@dataclass(frozen=True)
class Case:
    """A command: its arguments in two variants, which leave results that ``read`` tells apart, and the name that it writes."""

    name: str
    arguments: Callable[[Path, int], list[str]]
    read: Callable[[Path], object]
    result: str


def _cases(plans: Path) -> list[Case]:
    def analyze(out: Path, variant: int) -> list[str]:
        return f"analyze tiny --data pictures --samples 32 --constants none --seed {variant} --out {out}".split()

    def prune(out: Path, variant: int) -> list[str]:
        how = "--constants none --compensate full"
        return f"prune {plans / 'study'} --flops 0.{8 - variant} {how} --device cpu --out {out}".split()

    def unlearn(out: Path, variant: int) -> list[str]:
        return f"unlearn {plans / 'study'} --forget {'ab'[variant]} --method mask --samples 48 --out {out}".split()

    def export(out: Path, variant: int) -> list[str]:
        return f"export {plans / f'{variant}.json'} --out {out}".split()

    def multimodal(out: Path, variant: int) -> list[str]:
        size = f"--epochs 1 --seeds 1 --pairs {40 + variant} --batch 20 --method joint"
        return f"multimodal train --data digits {size} --out {out}".split()

    return [
        Case("analyze", analyze, lambda path: Study.load(path).data.seed, "study"),
        Case("prune", prune, lambda path: (Plan.load(path).settings.remain, len(Plan.load(path).tensors)), "plan.json"),
        Case("prune", prune, lambda path: (Plan.load(path).settings.remain, len(Plan.load(path).tensors)), "plan.zip"),
        Case("unlearn", unlearn, lambda path: (Plan.load(path).forget, len(Plan.load(path).tensors)), "plan.json"),
        Case("export", export, lambda path: modhifi.load_model(str(path), device="cpu").fingerprint, "web"),
        Case("multimodal", multimodal, _trained, "run"),
    ]


def _trained(path: Path) -> object:
    run = Run.load(path)
    return run.samples["train"], sum(p.numel() for p in run.network(path, "joint", 0).parameters())


class _Counter:
    """Counts the operations that change something in ``folder``. Before each of them it copies the folder to ``copies``, and
    before the operation of number ``last`` it ends the process.
    """

    def __init__(self, folder: Path, last: int, copies: Path | None) -> None:
        self.folder, self.last, self.copies, self.seen = str(folder), last, copies, 0

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = given
            changes = (isinstance(mode, str) and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR)
            if changes and str(path).startswith(self.folder):
                self.count(f"open {path}")
        elif event == "ctypes.dlsym":  # two folders exchange their names
            self.count("exchange") if given[1] == "renameat2" else None
        elif event in _CHANGES and any(str(one).startswith(self.folder) for one in given):
            self.count(f"{event} {given[0]}")

    def count(self, what: str) -> Path | None:
        """Where the folder was copied to, if it was."""
        self.seen += 1
        if self.seen == self.last:
            os._exit(9)
        if self.copies is None:
            return None
        place = self.copies / str(self.seen)
        shutil.copytree(self.folder, place, symlinks=True)
        place.with_suffix(".what").write_text(what)
        return place


def _half_written(counter: _Counter) -> None:
    """safetensors writes outside of Python's sight: the process also ends when half of such a file is on the disk."""
    whole = safetensors.torch.save_file

    def save(tensors: Any, file: Any, *rest: Any, **more: Any) -> None:
        counter.count(f"write {file}")
        whole(tensors, file, *rest, **more)
        half = Path(file).stat().st_size // 2
        if counter.seen + 1 == counter.last:
            os.truncate(file, half)
        place = counter.count(f"write half of {file}")
        if place is not None and str(file).startswith(counter.folder):
            os.truncate(place / Path(file).relative_to(counter.folder), half)

    safetensors.torch.save_file = save
    for name in ("modhifi.multimodal._train", "modhifi.export._formats"):
        if hasattr(sys.modules.get(name), "save_file"):
            sys.modules[name].save_file = save  # type: ignore[attr-defined]


def _run(
    arguments: list[str], folder: Path, last: int = 0, copies: Path | None = None, room: int | None = None
) -> tuple[int, str]:
    """The exit status of the command in a process of its own, killed before the operation ``last``, and the modules that it
    imported; if no file may have more than ``room`` bytes, what it said.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - ends with the process
        counter = _Counter(folder, last, copies)
        _half_written(counter)
        sys.addaudithook(counter)
        status = 70
        if room is not None:
            sys.stderr = io.StringIO()
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        with contextlib.suppress(BaseException):
            status = main(arguments)
        said = sys.stderr.getvalue() if isinstance(sys.stderr, io.StringIO) else " ".join(sys.modules)
        os.write(writing, said.encode())
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        what = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), what


def _state(case: Case, path: Path, old: object, new: object) -> str:
    if not path.exists():
        return "absent"
    try:
        found = case.read(path)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "old" if found == old else "new" if found == new else f"neither: {found}"


def _tree(place: Path) -> dict[str, bytes | None]:
    """Every file's content (folders: None) by its path, with the random part of temporary names taken out."""
    return {
        re.sub(r"\.[0-9a-f]{16}\.", ".*.", path.relative_to(place).as_posix()): path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(place.rglob("*"))
    }


def _whole(case: Case, work: Path) -> None:
    """Both variants, from beginning to end."""
    for variant in (0, 1):
        out = work / str(variant) / case.result
        out.parent.mkdir(parents=True)
        status, modules = _run(case.arguments(out, variant), work)
        assert status == 0, case.name
        for module in modules.split():  # once, instead of in every process
            with contextlib.suppress(Exception):
                importlib.import_module(module)
    gc.freeze()  # memory that no process writes to is not copied


def _points(case: Case, work: Path, whole: Path, earlier: bool) -> Iterator[dict[str, object]]:
    old, new = (case.read(whole / str(variant) / case.result) for variant in (0, 1))
    assert old != new, "the two variants cannot be told apart"
    expected = sorted(path.name for path in (whole / "1").iterdir())
    place, copies = work / "place", work / "copies"

    def begin() -> None:
        shutil.rmtree(place, ignore_errors=True)
        if earlier:
            shutil.copytree(whole / "0", place)
        else:
            place.mkdir()

    def point(operation: int, what: str, status: int) -> dict[str, object]:
        return {
            "command": case.name,
            "result": case.result,
            "earlier": earlier,
            "operation": operation,
            "what": what,
            "status": status,
            "left": _state(case, place / case.result, old, new),
        }

    def beyond(usual: Iterable[str]) -> list[str]:
        return sorted({path.name for path in place.iterdir()} - set(usual))

    begin()
    status, what = _run(case.arguments(place / case.result, 1), place, room=_ROOM)
    yield point(0, what, status) | {"debris": beyond(path.name for path in (whole / "0").iterdir())}

    begin()
    copies.mkdir()
    status, _ = _run(case.arguments(place / case.result, 1), place, copies=copies)
    assert (status, beyond(expected)) == (0, []), case.name
    last = len(list(copies.glob("*.what")))
    middle = last // 2 + 1
    begin()
    assert _run(case.arguments(place / case.result, 1), place, last=middle)[0] == 9, case.name
    left, copied = (
        {name: content and len(content) for name, content in _tree(there).items()}
        for there in (place, copies / str(middle))
    )
    # Seconds that are written down may take a byte more or less.
    alike = left.keys() == copied.keys() and all(abs((left[n] or 0) - (copied[n] or 0)) < 16 for n in left)
    assert alike, f"{case.name}: a killed process leaves {left}, copied were {copied}"

    seen: dict[object, dict[str, object]] = {}
    for operation in range(1, last + 1):
        shutil.rmtree(place)
        (copies / str(operation)).rename(place)
        same = tuple(_tree(place).items())
        found = point(operation, (copies / f"{operation}.what").read_text().replace(str(place), ""), 9)
        if same not in seen:
            # Where the result is whole and alone there is nothing that the next call could put right.
            if found["left"] != "new" or beyond(expected):
                again, _ = _run(case.arguments(place / case.result, 1), place)
                assert again == 0, case.name
            seen[same] = {"after": _state(case, place / case.result, old, new), "debris": beyond(expected)}
        yield found | seen[same]


def kill(folder: Path) -> None:
    torch.set_num_threads(1)
    _register()
    for line in (
        f"analyze tiny --data pictures --samples 32 --constants none --out {folder / 'study'}",
        f"prune {folder / 'study'} --flops 0.8 --constants none --compensate full --out {folder / '0.json'}",
        f"prune {folder / 'study'} --flops 0.6 --constants none --compensate full --out {folder / '1.json'}",
    ):
        assert _run(line.split(), folder)[0] == 0, line
    for number, case in enumerate(_cases(folder)):
        _whole(case, folder / f"whole{number}")
        for earlier in (True, False):
            work = folder / f"work{number}"
            work.mkdir()
            for point in _points(case, work, folder / f"whole{number}", earlier):
                sys.stdout.write(json.dumps(point) + "\n")
            shutil.rmtree(work)


if __name__ == "__main__":
    kill(Path(sys.argv[1]))
