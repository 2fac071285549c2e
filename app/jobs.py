"""Background jobs. The script of a page never computes: it submits a job and draws the job's progress.

Two pages that hook the same network at the same time would corrupt each other's statistics. Therefore every *lane* has
one worker, and the lane of a job is the network it uses. The key of a job identifies what it computes: submitting a
key again, while the job runs or after it is done, returns the same job. Nothing is computed twice, and a reloaded page
finds its job. This module does not depend on Streamlit, and a worker never draws.

Sessions share jobs, so a job knows the owners (`app.session.owner`) that asked for it. *Cancel* withdraws one of them; the job
stops when nobody is left.
"""

from __future__ import annotations

import gc
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from modhifi.errors import Cancelled, user_error
from modhifi.progress import Progress

__all__ = ["Job", "Jobs", "State", "Work"]

State = Literal["running", "done", "error", "cancelled"]
Work = Callable[[Progress], Any]

_log = logging.getLogger(__name__)
# Seconds that a cancelled job is given to stop by itself.
_PATIENCE = 0.8
_FAULT = "this is a bug, not a mistake in your input; see the server's log for details"


@dataclass
class Job:
    """One piece of work and its progress. Read by any thread, written by its worker only."""

    key: str
    title: str
    lane: str
    state: State = "running"
    step: str = "waiting for another job"
    done: int = 0
    total: int = 0
    result: Any = None
    error: str | None = None
    """One line for the user, only in state ``error``."""
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    ended: float | None = None
    _step_started: float = field(default_factory=time.monotonic, repr=False)
    _owners: set[str] = field(default_factory=set, repr=False)
    _withdrawn: set[str] = field(default_factory=set, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)
    _left: threading.Event = field(default_factory=threading.Event, repr=False)
    _ended_event: threading.Event = field(default_factory=threading.Event, repr=False)

    def cancel(self, owner: str | None = None) -> None:
        """Withdraws ``owner`` (None: everybody); nothing happens unless that owner asked for the job.

        Without owners it stops: at once while it waits in the queue, otherwise at the next report of progress. If that does not
        come within `_PATIENCE`, as in a large factorisation or the exporter of ONNX, the job is cancelled all the same: its
        worker goes on until the next report, and what it computes is dropped.
        """
        with self._lock:
            if owner is not None and owner not in self._owners:
                return
            left = set(self._owners) if owner is None else {owner}
            self._withdrawn |= left
            self._owners -= left
            if self._owners or self.state != "running":
                return
            self._stop.set()
            if self.started is None:
                self._end("cancelled")
                return
        abandon = threading.Timer(_PATIENCE, self._end, ("cancelled",))
        abandon.daemon = True
        abandon.start()

    def asked_by(self, owner: str) -> bool:
        """Whether this owner asked for the job, and has not withdrawn."""
        with self._lock:
            return owner in self._owners

    def left_by(self, owner: str) -> bool:
        """Whether this owner has withdrawn from the job."""
        with self._lock:
            return owner in self._withdrawn

    def _join(self, owner: str) -> bool:
        """Adds an owner; False if the job ends or has ended without a result."""
        with self._lock:
            if self._stop.is_set() or self.state not in ("running", "done"):
                return False
            self._owners.add(owner)
            self._withdrawn.discard(owner)
            return True

    def _start(self) -> bool:
        """Called by the worker; False if the job was cancelled while it waited."""
        with self._lock:
            if self.state != "running":
                return False
            self.started = time.monotonic()
            return True

    @property
    def working(self) -> bool:
        """Whether it waits, runs, or was cancelled and its worker has not come back from it."""
        return self.state == "running" or (self.started is not None and not self._left.is_set())

    @property
    def stopping(self) -> bool:
        return self._stop.is_set() and self.state == "running"

    @property
    def fraction(self) -> float:
        """Completed fraction of the current step, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total > 0 else 0.0

    @property
    def seconds(self) -> float:
        """Run time so far, or in total, without the time in the queue."""
        if self.started is None:
            return 0.0
        return (self.ended if self.ended is not None else time.monotonic()) - self.started

    @property
    def remaining(self) -> float | None:
        """Estimated seconds left in the current step; None while there is no basis for an estimate."""
        elapsed = time.monotonic() - self._step_started
        if self.state != "running" or self.fraction <= 0.0 or elapsed < 0.5:
            return None
        return elapsed * (1.0 - self.fraction) / self.fraction

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks until the job has ended; False after ``timeout`` seconds."""
        return self._ended_event.wait(timeout)

    def _report(self, done: int, total: int, what: str) -> None:
        if self._stop.is_set():
            raise Cancelled
        if what != self.step:
            self.step, self._step_started = what, time.monotonic()
        self.done, self.total = done, total

    def _end(self, state: State, result: Any = None, error: str | None = None) -> None:
        """The first end counts."""
        with self._lock:
            if self._ended_event.is_set():
                return
            self.result, self.error, self.ended = result, error, time.monotonic()
            self.state = state  # after the result, so that a reader of the state finds it
            self._ended_event.set()


class Jobs:
    """The registry: at most one live job per key, one worker per lane, first come, first served."""

    def __init__(self, keep: int = 64) -> None:
        self._keep = keep
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lanes: dict[str, queue.SimpleQueue[tuple[Job, Work]]] = {}

    def get(self, key: str) -> Job | None:
        with self._lock:
            return self._jobs.get(key)

    def latest(self, prefix: str) -> Job | None:
        """The job submitted last among those whose key starts with ``prefix``."""
        with self._lock:
            return next((job for key, job in reversed(self._jobs.items()) if key.startswith(prefix)), None)

    def running(self, prefix: str) -> list[Job]:
        """Jobs that run or wait and whose key starts with ``prefix``, in order of submission."""
        with self._lock:
            return [job for key, job in self._jobs.items() if key.startswith(prefix) and job.state == "running"]

    def submit(self, key: str, title: str, lane: str, work: Work, owner: str = "") -> Job:
        """The job for ``key``: the one that runs or is done, otherwise a new one, queued in ``lane``. ``owner`` asks for it.

        ``work(progress)`` returns the result. `Cancelled` ends the job as ``cancelled``; what `modhifi.errors.user_error`
        knows as ``error`` with its message, and any other exception with one that calls it a bug; the traceback is logged.
        """
        with self._lock:
            job = self._jobs.get(key)
            if job is not None and job._join(owner):
                return job
            job = self._jobs[key] = Job(key, title, lane)
            job._join(owner)
            self._jobs.move_to_end(key)
            self._drop_old()
            if lane not in self._lanes:
                self._lanes[lane] = queue.SimpleQueue()
                threading.Thread(
                    target=self._serve, args=(self._lanes[lane],), name=f"jobs {lane}", daemon=True
                ).start()
            self._lanes[lane].put((job, work))
        return job

    def discard(self, key: str) -> None:
        """Drops a job that has ended, so that the next `submit` starts it again; a running job is kept."""
        with self._lock:
            job = self._jobs.get(key)
            if job is not None and job.state != "running":
                del self._jobs[key]

    def while_idle(self, words: Collection[str], action: Callable[[], None]) -> bool:
        """Calls ``action`` while no job can be submitted, and drops the results of jobs with one of ``words`` in their key;
        False, and nothing happens, if such a job runs or waits.
        """
        with self._lock:
            found = [job for key, job in self._jobs.items() if not set(words).isdisjoint(key.split())]
            if any(job.working for job in found):
                return False
            action()
            for job in found:
                del self._jobs[job.key]
            return True

    def _drop_old(self) -> None:
        ended = [key for key, job in self._jobs.items() if job.state != "running"]
        for key in ended[: max(0, len(self._jobs) - self._keep)]:
            del self._jobs[key]

    @staticmethod
    def _serve(lane: queue.SimpleQueue[tuple[Job, Work]]) -> None:
        while True:
            job, work = lane.get()
            if not job._start():
                del job, work
                continue
            try:
                job._report(0, 0, "starting")
                job._end("done", work(job._report))
            except Cancelled:
                job._end("cancelled")
            except BaseException as error:
                known = user_error(error)
                if known is None:
                    _log.exception("job %r failed", job.title)
                fault = f"{job.title}: {type(error).__name__}: {_one_line(error)} ({_FAULT})"
                job._end("error", error=fault if known is None else str(known))
            job._left.set()
            # Otherwise this frame keeps the last network and its data in memory while the lane is idle.
            del job, work
            # Exports and some networks are cycles, which hold their weights; pages do not collect (see .streamlit/config.toml).
            gc.collect()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:199] + "…"
