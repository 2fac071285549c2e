"""Background jobs. The script of a page never computes: it asks for a job and draws where that job has got to.

Two pages that hook one network at the same time would spoil each other's statistics, so there is one worker for each
*lane*, and the lane of a job is the network it touches. A job has a key that says what it computes; asking for a key
again while it runs, or after it is done, gives the same job, so nothing is computed twice and a reloaded page finds its
job again. Nothing in here knows of Streamlit, and a worker never draws.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from modhifi.errors import Cancelled, UserError
from modhifi.progress import Progress

__all__ = ["Job", "Jobs", "State", "Work"]

State = Literal["running", "done", "error", "cancelled"]
Work = Callable[[Progress], Any]

_log = logging.getLogger(__name__)
_FAULT = "this is a fault of the program, not of your input; the server's log has the details"


@dataclass
class Job:
    """One piece of work and where it has got to. Read by any thread, written by its worker alone."""

    key: str
    title: str
    lane: str
    state: State = "running"
    step: str = "waiting for its turn"
    done: int = 0
    total: int = 0
    result: Any = None
    error: str | None = None
    """One line for a person, only in state ``error``."""
    asked: float = field(default_factory=time.monotonic)
    started: float | None = None
    ended: float | None = None
    _step_started: float = field(default_factory=time.monotonic, repr=False)
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)
    _over: threading.Event = field(default_factory=threading.Event, repr=False)

    def cancel(self) -> None:
        """Asks the work to stop; it does so at its next report of progress."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set() and self.state == "running"

    @property
    def fraction(self) -> float:
        """How much of the present step is done, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total > 0 else 0.0

    @property
    def seconds(self) -> float:
        """How long it has worked so far, or worked in all; the wait for its turn is not counted."""
        if self.started is None:
            return 0.0
        return (self.ended if self.ended is not None else time.monotonic()) - self.started

    @property
    def remaining(self) -> float | None:
        """Seconds left in the present step if it goes on as it did; None while there is nothing to go by."""
        elapsed = time.monotonic() - self._step_started
        if self.state != "running" or self.fraction <= 0.0 or elapsed < 0.5:
            return None
        return elapsed * (1.0 - self.fraction) / self.fraction

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks until it is over; False if ``timeout`` seconds passed first."""
        return self._over.wait(timeout)

    def _report(self, done: int, total: int, what: str) -> None:
        if self._stop.is_set():
            raise Cancelled
        if what != self.step:
            self.step, self._step_started = what, time.monotonic()
        self.done, self.total = done, total

    def _end(self, state: State) -> None:
        self.ended = time.monotonic()
        self.state = state  # written last but for the event: whoever sees the state sees the result
        self._over.set()


class Jobs:
    """The registry: at most one live job for each key, one worker for each lane, first come first served."""

    def __init__(self, keep: int = 64) -> None:
        self._keep = keep
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lanes: dict[str, queue.SimpleQueue[tuple[Job, Work]]] = {}

    def get(self, key: str) -> Job | None:
        with self._lock:
            return self._jobs.get(key)

    def latest(self, prefix: str) -> Job | None:
        """The job asked for last among those whose key starts with ``prefix``: how a page finds its own again."""
        with self._lock:
            return next((job for key, job in reversed(self._jobs.items()) if key.startswith(prefix)), None)

    def running(self, prefix: str) -> list[Job]:
        """Those that run or wait whose key starts with ``prefix``, in the order in which they were asked for."""
        with self._lock:
            return [job for key, job in self._jobs.items() if key.startswith(prefix) and job.state == "running"]

    def submit(self, key: str, title: str, lane: str, work: Work) -> Job:
        """The job for ``key``: the one that runs or is done, else a new one, which then waits for its lane.

        ``work(progress)`` gives the result. `UserError` ends it as ``error`` with that line, `Cancelled` as
        ``cancelled``, anything else as ``error`` with a line that says whose fault it is; the log has the traceback.
        """
        with self._lock:
            job = self._jobs.get(key)
            if job is not None and job.state in ("running", "done") and not job.stopping:
                return job
            job = self._jobs[key] = Job(key, title, lane)
            self._jobs.move_to_end(key)
            self._forget_old()
            if lane not in self._lanes:
                self._lanes[lane] = queue.SimpleQueue()
                threading.Thread(
                    target=self._serve, args=(self._lanes[lane],), name=f"jobs {lane}", daemon=True
                ).start()
            self._lanes[lane].put((job, work))
        return job

    def forget(self, key: str) -> None:
        """Drops a job that is over, so that the next `submit` computes anew; a running one stays."""
        with self._lock:
            job = self._jobs.get(key)
            if job is not None and job.state != "running":
                del self._jobs[key]

    def _forget_old(self) -> None:
        over = [key for key, job in self._jobs.items() if job.state != "running"]
        for key in over[: max(0, len(self._jobs) - self._keep)]:
            del self._jobs[key]

    @staticmethod
    def _serve(lane: queue.SimpleQueue[tuple[Job, Work]]) -> None:
        while True:
            job, work = lane.get()
            job.started = time.monotonic()
            try:
                job._report(0, 0, "starting")
                job.result = work(job._report)
                job._end("done")
            except Cancelled:
                job._end("cancelled")
            except UserError as error:
                job.error = str(error)
                job._end("error")
            except BaseException as error:
                _log.exception("job %r failed", job.title)
                job.error = f"{job.title}: {type(error).__name__}: {_one_line(error)} ({_FAULT})"
                job._end("error")
            # The frame would otherwise keep the last network and its data alive while the lane is idle.
            del job, work


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:199] + "…"
