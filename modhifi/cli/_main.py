"""Run a call, print what it returns, and turn what goes wrong into an exit status."""

from __future__ import annotations

import argparse
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
from . import _calls, _processes
from ._parser import build_parser

__all__ = ["main"]


class _Bar:
    """Progress on standard error, where a person looks at it; silent in a pipe, and in all processes but the first."""

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
        """The first Ctrl-C stops the work where it can be taken up again, the second one at once."""
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
    """The command ``modhifi``: 0, 2 for a mistake of the caller's (one line on standard error), 1 for a fault of ours."""
    first = _processes.first()
    logging.basicConfig(
        level=logging.WARNING if first else logging.ERROR, format="modhifi: %(message)s", stream=sys.stderr
    )
    bar = _Bar()
    try:
        asked = build_parser().parse_args(arguments)
        with bar.stoppable():
            value, text = _run(asked, bar)
    except UserError as error:
        bar.close()
        print(f"modhifi: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Cancelled):
        bar.close()
        print("modhifi: stopped", file=sys.stderr)
        return 130
    except OSError as error:
        # A full disk, a folder without permission: the caller's to mend, and the system says which file.
        bar.close()
        print(f"modhifi: {error}", file=sys.stderr)
        return 2
    except Exception:
        bar.close()
        traceback.print_exc()
        print("modhifi: this is a fault of the program; please report it with the lines above", file=sys.stderr)
        return 1
    bar.close()
    if first:
        print(json.dumps(value, allow_nan=False) if asked.json else text)
    return 0


def _run(asked: argparse.Namespace, bar: _Bar) -> tuple[object, str]:
    return getattr(_calls, asked.call)(asked, bar)  # type: ignore[no-any-return]
