"""Kills commands before each of their disk operations. Run by `test_killed.py` in a process of its own, which forks: a process
that has already computed gradients could not.

    python -m tests.killing FOLDER

prints one JSON object per point: the command, whether there was an earlier result, the number of the operation, what it was,
the state that was left (``old``, ``new``, ``absent`` or what is wrong with it) and the names left over after the next call.
Operation 0 is a disk that is full.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
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
    """Ends the process before the operation of this number that changes something in ``folder``."""

    def __init__(self, folder: Path, last: int, report: int) -> None:
        self.folder, self.last, self.report, self.seen = str(folder), last, report, 0

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

    def count(self, what: str) -> None:
        self.seen += 1
        if self.seen == self.last:
            os.write(self.report, what.encode())
            os._exit(9)


def _half_written(counter: _Counter) -> None:
    """safetensors writes outside of Python's sight: the process also ends when half of such a file is on the disk."""
    whole = safetensors.torch.save_file

    def save(tensors: Any, file: Any, *rest: Any, **more: Any) -> None:
        counter.count(f"write {file}")
        whole(tensors, file, *rest, **more)
        content = Path(file).read_bytes()
        if counter.seen + 1 == counter.last:
            os.truncate(file, len(content) // 2)
        counter.count(f"write half of {file}")

    safetensors.torch.save_file = save
    for name in ("modhifi.multimodal._train", "modhifi.export._formats"):
        if hasattr(sys.modules.get(name), "save_file"):
            sys.modules[name].save_file = save  # type: ignore[attr-defined]


def _run(arguments: list[str], folder: Path, last: int = 0, room: int | None = None) -> tuple[int, str]:
    """The exit status of the command in a process of its own, and the operation before which it was killed; if it is not to be
    killed, the modules that it imported; if no file may have more than ``room`` bytes, what it said.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - ends with the process
        counter = _Counter(folder, last, writing)
        _half_written(counter)
        sys.addaudithook(counter)
        status = 70
        if room is not None:
            sys.stderr = io.StringIO()
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        with contextlib.suppress(BaseException):
            status = main(arguments)
        if isinstance(sys.stderr, io.StringIO):
            os.write(writing, sys.stderr.getvalue().encode())
        elif not last:
            os.write(writing, " ".join(sys.modules).encode())
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


def _points(case: Case, work: Path, earlier: bool) -> Iterator[dict[str, object]]:
    whole = work / "whole"
    for variant in (0, 1):
        out = whole / str(variant) / case.result
        out.parent.mkdir(parents=True)
        status, modules = _run(case.arguments(out, variant), work)
        assert status == 0, case.name
        for module in modules.split():  # once, instead of in every process
            with contextlib.suppress(Exception):
                importlib.import_module(module)
    old, new = (case.read(whole / str(variant) / case.result) for variant in (0, 1))
    assert old != new, "the two variants cannot be told apart"
    expected = sorted(path.name for path in (whole / "1").iterdir())
    for last in itertools.count(0):
        place = work / f"{last}"
        if earlier:
            shutil.copytree(whole / "0", place)
        else:
            place.mkdir()
        if not last:
            status, what = _run(case.arguments(place / case.result, 1), place, room=_ROOM)
            names = sorted(path.name for path in place.iterdir())
            yield {
                "command": case.name,
                "result": case.result,
                "earlier": earlier,
                "operation": 0,
                "what": what,
                "status": status,
                "left": _state(case, place / case.result, old, new),
                "debris": sorted(set(names) - {path.name for path in (whole / "0").iterdir()}),
            }
            shutil.rmtree(place)
            continue
        status, what = _run(case.arguments(place / case.result, 1), place, last)
        left = _state(case, place / case.result, old, new)
        names = sorted(path.name for path in place.iterdir())
        if left != "new" or names != expected:  # otherwise there is nothing that the next call could put right
            again, _ = _run(case.arguments(place / case.result, 1), place)
            assert again == 0, case.name
        yield {
            "command": case.name,
            "result": case.result,
            "earlier": earlier,
            "operation": last,
            "what": what.replace(str(place), ""),
            "status": status,
            "left": left,
            "after": _state(case, place / case.result, old, new),
            "debris": sorted({path.name for path in place.iterdir()} - set(expected)),
        }
        shutil.rmtree(place)
        if status != 9:
            return


def kill(folder: Path) -> None:
    torch.set_num_threads(1)
    _register()
    for line in (
        f"analyze tiny --data pictures --samples 32 --constants none --out {folder / 'study'}",
        f"prune {folder / 'study'} --flops 0.8 --constants none --compensate full --out {folder / '0.json'}",
        f"prune {folder / 'study'} --flops 0.6 --constants none --compensate full --out {folder / '1.json'}",
    ):
        assert _run(line.split(), folder)[0] == 0, line
    for number, (case, earlier) in enumerate(itertools.product(_cases(folder), (True, False))):
        for point in _points(case, folder / f"work{number}", earlier):
            sys.stdout.write(json.dumps(point) + "\n")
        shutil.rmtree(folder / f"work{number}")


if __name__ == "__main__":
    kill(Path(sys.argv[1]))
