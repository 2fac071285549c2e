"""What the server keeps in memory: recently used networks and studies, and results that widgets request repeatedly."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import TypeVar

from cachetools import LRUCache

import modhifi
from modhifi.models import Model
from modhifi.progress import Progress

from .selection import Source
from .store import Store

__all__ = ["Caches"]

_Result = TypeVar("_Result")


class Caches:
    """Shared by all sessions and jobs. Every access takes the lock; nothing but loading a study happens under it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._models: LRUCache[str, Model] = LRUCache(2)
        self._studies: LRUCache[str, modhifi.Study] = LRUCache(3)
        self._results: LRUCache[Hashable, object] = LRUCache(512)

    def study(self, source: Source) -> modhifi.Study | None:
        """The study of ``source`` if it exists, from memory or from disk. Raises `UserError` if it is damaged."""
        with self._lock:
            study = self._studies.get(source.id)
            if study is None and self._store.has_study(source.id):
                study = self._studies[source.id] = modhifi.Study.load(self._store.study_path(source.id))
            return study

    def keep_study(self, source: Source, study: modhifi.Study) -> None:
        """Replaces the copy that the pages use."""
        with self._lock:
            self._studies[source.id] = study

    def forget(self, source: Source) -> None:
        """Drops the study of ``source``."""
        with self._lock:
            self._studies.pop(source.id, None)

    def model(self, source: Source, progress: Progress) -> Model:
        """The network of ``source``, loaded if it is not in memory. Only for jobs, because loading is slow."""
        source.permitted()  # it may have been stored when the server was started otherwise
        key = f"{source.lane} {source.stamp}"
        with self._lock:
            model = self._models.get(key)
        if model is None:
            progress(0, 0, "loading the network")
            model = modhifi.load_model(
                source.model, source.weights, mean=source.mean, std=source.std, classes=source.classes
            )
            with self._lock:
                self._models[key] = model
        return model

    def result(self, key: Hashable, compute: Callable[[], _Result]) -> _Result:
        """The result of ``compute()``, or the one kept for this key."""
        with self._lock:
            if key in self._results:
                return self._results[key]  # type: ignore[return-value]
        found = compute()
        with self._lock:
            self._results[key] = found
        return found
