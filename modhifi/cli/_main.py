"""Runs a command, prints its result, and turns errors into exit statuses."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from ..errors import Cancelled, UserError
from . import _processes
from ._parser import CALLS, build_parser

__all__ = ["main"]


class _Bar:
    """A progress bar on standard error; silent unless that is a terminal, and in all processes but the first."""

    def __init__(self) -> None:
        self.seen = sys.stderr.isatty() and _processes.first()
        self.stopped = False
        self.bar: tqdm[None] | None = None
        self.what = ""

    def __call__(self, done: int, total: int, what: str) -> None:
        if self.stopped:
            raise Cancelled
        if not self.seen:
            return
        if self.bar is None or what != self.what:
            self.close()
            self.bar, self.what = tqdm(total=total, desc=what, leave=False), what
        self.bar.total = total
        self.bar.n = done
        self.bar.refresh()

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
    logging.basicConfig(
        level=logging.WARNING if first else logging.ERROR, format="modhifi: %(message)s", stream=sys.stderr
    )
    bar = _Bar()
    try:
        asked = build_parser().parse_args(arguments)
        with bar.stoppable():
            value, text = CALLS[asked.call].run(asked, bar)
    except UserError as error:
        bar.close()
        print(f"modhifi: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Cancelled):
        bar.close()
        print("modhifi: stopped", file=sys.stderr)
        return 130
    except OSError as error:
        # A full disk or a missing permission is for the user to fix; the message names the file.
        bar.close()
        print(f"modhifi: {error}", file=sys.stderr)
        return 2
    except Exception:
        bar.close()
        traceback.print_exc()
        print("modhifi: internal error; please report it together with the lines above", file=sys.stderr)
        return 1
    bar.close()
    if first:
        print(json.dumps(value, allow_nan=False) if asked.json else text)
    return 0
