"""Runs a command, prints its result, and turns errors into exit statuses."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

from tqdm import tqdm

from ..errors import Cancelled, UserError, user_error
from ..text import duration
from . import _processes
from ._parser import CALLS, build_parser

__all__ = ["main"]

_HEARTBEAT = 30.0


class _Bar:
    """Progress on standard error, from the first process alone: a bar on a terminal, elsewhere a line every half minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.bars = sys.stderr is not None and sys.stderr.isatty()
        self.stopped = False
        self.bar: tqdm[None] | None = None
        self.what = ""
        self.clock = clock
        self.told = self.began = clock()

    def __call__(self, done: int, total: int, what: str) -> None:
        if self.stopped:
            raise Cancelled
        if not _processes.first():
            return
        if not self.bars:
            self._tell(done, total, what)
            return
        if self.bar is None or what != self.what:
            self.close()
            self.bar, self.what = tqdm(total=total, desc=what, leave=False), what
        self.bar.total = total
        self.bar.n = done
        self.bar.refresh()

    def _tell(self, done: int, total: int, what: str) -> None:
        now = self.clock()
        if what != self.what:
            self.what, self.began = what, now
        if now - self.told < _HEARTBEAT:
            return
        self.told = now
        share = min(1.0, done / total) if total > 0 else 0.0
        left = (
            f", about {duration((now - self.began) * (1 - share) / share)} left" if share and now > self.began else ""
        )
        _say(f"{what}: {done} of {total} ({share:.0%}){left}" if total > 0 else what)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """The first Ctrl-C stops at the next point from which the work can resume, the second one immediately."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(*_: object) -> None:
            self.stopped = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``modhifi``. Returns 0, 2 for a user error (one line on standard error), 1 for an internal error, 130 if stopped."""
    first = _processes.first()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows its code; nothing is lost and nothing fails.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(
        level=logging.WARNING if first else logging.ERROR, format="modhifi: %(message)s", stream=sys.stderr
    )
    bar = _Bar()
    try:
        with _printing():
            given = list(sys.argv[1:] if arguments is None else arguments)
            _check_names(given)
            asked = build_parser().parse_args(given)
            # What a network of the caller's own prints is no part of the answer.
            with bar.stoppable(), contextlib.redirect_stdout(sys.stderr):
                value, text = CALLS[asked.call].run(asked, bar)
            bar.close()
            if first:
                print(json.dumps(value, allow_nan=False) if asked.json else text)
    except (KeyboardInterrupt, Cancelled):
        bar.close()
        _say("stopped")
        return 130
    except Exception as error:
        bar.close()
        known = user_error(error)
        if known is not None:
            _say(str(known))
            return 2
        _say("".join(traceback.format_exception(error)).rstrip(), begin="")
        _say("internal error; please report it together with the lines above")
        return 1
    return 0


def _check_names(given: Sequence[str]) -> None:
    """Raises `UserError` for a name that is not valid in the system's encoding: it could not be written down in a study."""
    for name in given:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{name!r} is not valid UTF-8; rename the file or folder") from error


@contextlib.contextmanager
def _printing() -> Iterator[None]:
    """Standard output is written within the context, so that a full disk is an error there. A reader that has left, as ``head``
    does, is none.
    """
    try:
        try:
            yield
        except SystemExit:  # --help and --version
            _flush()
            raise
        _flush()
    except BrokenPipeError:
        # Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _say(text: str, begin: str = "modhifi: ") -> None:
    """A line on standard error, if it can be written to at all."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(f"{begin}{text}", file=sys.stderr, flush=True)
