"""The dashboard's files: studies, measured plans, bounds and uploads. They survive a restart and are safe to delete.

Contents of ``$MODHIFI_HOME`` (default ``~/.cache/modhifi``):

    studies/ID/source.json           network, data and settings (`app.selection.Source`)
    studies/ID/latency.json          layer timings on this machine
    studies/ID/study/                the study, as `modhifi.Study.save` writes it
    studies/ID/points/ID/plan.json   a plan, as `modhifi.Plan.save` writes it
    studies/ID/points/ID/point.json  its label, its request, and its measurement
    studies/ID/points/ID/*.zip       exports of the modified network
    studies/ID/bounds/ID.json        one measured bound
    uploads/DIGEST/                  an uploaded checkpoint or images
"""

from __future__ import annotations

import re
import shutil
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from modhifi.bounds import BoundReport
from modhifi.errors import UserError
from modhifi.files import read_json, write_json
from modhifi.plan import Plan
from modhifi.specs import Value

from .home import home
from .selection import Choice, Forgetting, LabelledData, Source

__all__ = ["BoundPoint", "Point", "Store", "home"]

_Record = TypeVar("_Record", bound=BaseModel)
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,100}")


class Point(Value):
    """A plan that was applied and measured."""

    id: str
    kind: Literal["prune", "unlearn"]
    label: str
    measured_on: LabelledData
    decided_on: LabelledData | None = None
    evaluation: dict[str, Any]
    choice: Choice | None = None
    forget: tuple[str, ...] = ()
    forgetting: Forgetting | None = None
    predicted: dict[str, float] = Field(default_factory=dict)
    strength: float | None = None
    """Unlearning: the selected strength."""
    curve: list[dict[str, float]] = Field(default_factory=list)
    """Unlearning: every strength tried in the search."""
    note: str = ""
    """The user's note, also stored in the plan."""
    made: float = Field(default_factory=time.time)


class BoundPoint(Value):
    """Bound and measured error of a plan, in total and per layer."""

    id: str
    label: str
    choice: Choice
    measured_on: LabelledData
    report: BoundReport
    made: float = Field(default_factory=time.time)


class Store:
    """Reads and writes the folder. Has no state, so any number of sessions may share it."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or home()

    @property
    def uploads(self) -> Path:
        """The folder of uploads, by the digest of their content."""
        return self.root / "uploads"

    # Studies

    def folder(self, study: str) -> Path:
        if not _ID.fullmatch(study):
            raise UserError(
                f"invalid study name {study!r}; use lower-case letters, digits, dots, dashes and underscores"
            )
        return self.root / "studies" / study

    def study_path(self, study: str) -> Path:
        return self.folder(study) / "study"

    def latency_path(self, study: str) -> Path:
        return self.folder(study) / "latency.json"

    def has_study(self, study: str) -> bool:
        return self.study_path(study).is_dir()

    def remember(self, source: Source) -> str:
        """Stores a source; returns the name of its study."""
        path = self.folder(source.id) / "source.json"
        if _read_record(Source, path) is None:  # missing or damaged
            write_json(path, source.model_dump())
        return source.id

    def sources(self) -> dict[str, Source]:
        """Every source that was ever analysed, newest first; damaged entries are omitted."""
        found: list[tuple[float, str, Source]] = []
        for path in (self.root / "studies").glob("*/source.json"):
            try:
                found.append(
                    (path.stat().st_mtime, path.parent.name, Source.model_validate(read_json(path, "a source")))
                )
            except (UserError, ValidationError, OSError):
                continue
        return {name: source for _, name, source in sorted(found, key=lambda entry: (-entry[0], entry[1]))}

    def delete_study(self, study: str) -> None:
        """Deletes a study and everything made from it."""
        folder = self.folder(study)
        (folder / "source.json").unlink(missing_ok=True)  # first, so that what is half deleted is not listed
        if folder.is_dir():
            shutil.rmtree(folder)

    # Uploads

    def uploaded(self) -> dict[str, int]:
        """Every upload as ``DIGEST/NAME``, with its size in bytes."""
        found = {}
        for path in sorted(self.uploads.glob("[0-9a-f]*/[!.]*")):
            files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
            found[f"{path.parent.name}/{path.name}"] = sum(file.stat().st_size for file in files)
        return found

    def uses(self, source: Source, upload: str) -> bool:
        """Whether the network or the samples come from this upload."""
        folder = self.uploads / upload
        return any(Path(path).is_relative_to(folder) for path in (source.weights, source.data, source.root) if path)

    def delete_upload(self, upload: str) -> None:
        if upload not in self.uploaded():
            raise UserError(f"no upload {upload!r}; it may have been deleted already")
        shutil.rmtree(self.uploads / upload.split("/")[0])

    # Measured plans

    def point_folder(self, study: str, point: str) -> Path:
        if not _ID.fullmatch(point):
            raise UserError(
                f"invalid plan name {point!r}; use lower-case letters, digits, dots, dashes and underscores"
            )
        return self.folder(study) / "points" / point

    def add_point(self, study: str, point: Point, plan: Plan) -> None:
        """Stores a measured plan. One of the same name is replaced, and its note kept."""
        folder = self.point_folder(study, point.id)
        before = _read_record(Point, folder / "point.json")
        if before is not None and not point.note:
            point = point.model_copy(update={"note": before.note})
            plan.note = before.note
        plan.save(folder / "plan.json")
        write_json(folder / "point.json", point.model_dump(mode="json"))
        self._drop_archives(folder)

    def points(self, study: str, kind: Literal["prune", "unlearn"] | None = None) -> list[Point]:
        """Measured plans, oldest first; damaged ones are omitted."""
        read = [_read_record(Point, path) for path in self.folder(study).glob("points/*/point.json")]
        return sorted((p for p in read if p is not None and kind in (None, p.kind)), key=lambda p: (p.made, p.id))

    def plan(self, study: str, point: str) -> Plan:
        return Plan.load(self.point_folder(study, point) / "plan.json")

    def note(self, study: str, point: str, text: str) -> None:
        """Stores a note in the plan and in its record."""
        folder = self.point_folder(study, point)
        plan = Plan.load(folder / "plan.json")
        plan.note = text
        plan.save(folder / "plan.json")
        known = Point.model_validate(read_json(folder / "point.json", "a record"))
        write_json(folder / "point.json", known.model_copy(update={"note": text}).model_dump(mode="json"))
        self._drop_archives(folder)

    @staticmethod
    def _drop_archives(folder: Path) -> None:
        """Deletes exports that were built from an older version of the plan."""
        for built in folder.glob("*.zip"):
            built.unlink()

    def delete_point(self, study: str, point: str) -> None:
        shutil.rmtree(self.point_folder(study, point), ignore_errors=True)

    # Bounds

    def add_bound(self, study: str, bound: BoundPoint) -> None:
        write_json(self.folder(study) / "bounds" / f"{bound.id}.json", bound.model_dump(mode="json"))

    def bounds(self, study: str) -> list[BoundPoint]:
        """Measured bounds, largest remaining fraction first; damaged ones are omitted."""
        read = [_read_record(BoundPoint, path) for path in self.folder(study).glob("bounds/*.json")]
        return sorted((b for b in read if b is not None), key=lambda b: (-b.choice.remain, b.made))


def _read_record(kind: type[_Record], path: Path) -> _Record | None:
    """The record in this file; None if it is missing or damaged."""
    try:
        return _read(kind, path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return None


@lru_cache(maxsize=512)
def _read(kind: type[_Record], path: Path, changed: int) -> _Record | None:  # noqa: ARG001 - ``changed`` is in the key
    try:
        return kind.model_validate(read_json(path, "a record"))
    except (UserError, ValidationError):
        return None
