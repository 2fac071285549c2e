"""How long work reports itself and is stopped, without knowing who watches.

Every long computation takes ``progress: Progress | None``. It calls ``progress(done, total, what)`` often (at least once
a second where it can), and the callable may raise `modhifi.errors.Cancelled` to stop the work. Hooks are removed and
half-written files are deleted on the way out, so that the command line, the dashboard and a notebook drive the same code.
"""

from typing import Protocol

__all__ = ["Progress", "prefixed", "silent"]


class Progress(Protocol):
    """``done`` of ``total`` units of the step called ``what`` are finished."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


def silent(done: int, total: int, what: str) -> None:
    """The default: nobody watches."""


def prefixed(progress: Progress, prefix: str) -> Progress:
    """The same, with ``prefix`` before the name of every step."""

    def report(done: int, total: int, what: str) -> None:
        progress(done, total, prefix + what)

    return report
