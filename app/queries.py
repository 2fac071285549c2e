"""What the pages can show at once: from the study's closed forms, from memory, or from disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import modhifi
from modhifi.devices import choose_device
from modhifi.errors import UserError
from modhifi.pruning import Allocation, LatencyKey, LatencyTable

from .caches import Caches
from .jobs import Job, Jobs
from .selection import Choice, Source
from .store import Point, Store

__all__ = ["NO_STUDY", "Queries", "archive_path", "exemplars_key"]

NO_STUDY = "this network has no study yet; run the analysis on the Model page first"


class Queries:
    """Fast queries; none of them runs a network."""

    def __init__(self, store: Store, jobs: Jobs, caches: Caches) -> None:
        self._store, self._jobs, self._caches = store, jobs, caches

    def study(self, source: Source) -> modhifi.Study | None:
        """The study of ``source`` if it exists. Raises `UserError` if it is damaged."""
        return self._caches.study(source)

    def analysis_job(self, source: Source) -> Job | None:
        return self._jobs.get(f"analyse {source.id}")

    def exemplars_job(self, source: Source, group: str, component: int) -> Job | None:
        return self._jobs.get(exemplars_key(source, group, component))

    def latencies(self, source: Source) -> LatencyTable | None:
        """The layer timings of this network; None unless measured on this machine and device with this thread count."""
        path, study = self._store.latency_path(source.id), self.study(source)
        if study is None or not path.is_file():
            return None
        key = LatencyKey.here(study.model.fingerprint, choose_device())
        return self._caches.result(
            ("latencies", path, path.stat().st_mtime_ns, key), lambda: LatencyTable.kept(path, key, study.structure)
        )

    def allocation(self, source: Source, choice: Choice) -> Allocation:
        """What a plan would keep and cost; takes milliseconds. Raises `UserError` if the budget cannot be met."""
        study = self._needed(source)
        table = self.latencies(source)
        # A study is immutable under its key, and so is the choice; a new timing table changes the predicted latency.
        timed = None if table is None else self._store.latency_path(source.id).stat().st_mtime_ns
        key = ("allocation", source.id, study.key, study.estimators, choice, timed)
        return self._caches.result(key, lambda: modhifi.pruning.allocate(study, choice.spec, latencies=table))

    def sensitivity(self, source: Source, choice: Choice) -> np.ndarray:
        """(groups, `modhifi.pruning.SHARES`): see `modhifi.pruning.sensitivity`; independent of the budget."""
        study = self._needed(source)
        score, level = choice.spec.score, choice.spec.level
        key = ("sensitivity", source.id, study.key, study.estimators, score, level)
        return self._caches.result(
            key,
            lambda: np.array(list(modhifi.pruning.sensitivity(study, score=score, compensate=level).values())),
        )

    def archive(self, source: Source, point: Point, formats: Sequence[str]) -> Path | None:
        """The export folder as a .zip, or None if it was not built."""
        path = archive_path(self._store, source, point, formats)
        return path if path.is_file() else None

    def plan_zip(self, source: Source, point: Point) -> bytes:
        return self._store.plan(source.id, point.id).to_zip()

    def _needed(self, source: Source) -> modhifi.Study:
        study = self.study(source)
        if study is None:
            raise UserError(NO_STUDY)
        return study


def archive_path(store: Store, source: Source, point: Point, formats: Sequence[str]) -> Path:
    """The path of a measured plan's export."""
    return store.point_folder(source.id, point.id) / f"{'-'.join(formats)}.zip"


def exemplars_key(source: Source, group: str, component: int) -> str:
    """The key of the job that finds a component's top-activating images."""
    return f"exemplars {source.id} {group} {component}"
