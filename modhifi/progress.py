"""How long computations report their progress and are cancelled, whoever is watching.

Every long computation takes ``progress: Progress | None``. It calls ``progress(done, total, what)`` often (at least once
per second where possible), and the callable may raise `modhifi.errors.Cancelled` to stop it. Hooks are then removed and
partial files deleted, so that the command line, the dashboard and a notebook can drive the same code.
"""

from typing import Protocol

__all__ = ["Progress", "prefixed", "silent"]


class Progress(Protocol):
    """Receives reports that ``done`` of ``total`` units of the step named ``what`` are finished."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


def silent(done: int, total: int, what: str) -> None:
    """The default: ignores every report."""


def prefixed(progress: Progress, prefix: str) -> Progress:
    """``progress`` with ``prefix`` before the name of every step."""

    def report(done: int, total: int, what: str) -> None:
        progress(done, total, prefix + what)

    return report
