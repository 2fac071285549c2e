"""The library of a server: storage, jobs, caches, queries and tasks in one object."""

from __future__ import annotations

import copy

from .caches import Caches
from .jobs import Jobs
from .queries import Queries
from .store import Store
from .tasks import Tasks

__all__ = ["Library"]


class Library:
    """Shared by all sessions: ``store`` is on disk, ``jobs`` run, ``queries`` return at once, ``tasks`` start jobs."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = store or Store()
        self.jobs = Jobs()
        self._caches = Caches(self.store)
        self.queries = Queries(self.store, self.jobs, self._caches)
        self.tasks = Tasks(self.store, self.jobs, self._caches, self.queries)

    def of(self, owner: str) -> Library:
        """The same library, whose ``tasks`` ask for jobs on behalf of ``owner``."""
        mine = copy.copy(self)
        mine.tasks = Tasks(self.store, self.jobs, self._caches, self.queries, owner)
        return mine
