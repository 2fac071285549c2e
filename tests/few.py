"""A small part of the digits, for tests of what surrounds the computation: pages, documents, commands.

Run as a script it is ``python -m streamlit`` on such digits.
"""

import contextlib
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

CALIBRATION, TEST = 96, 60


@contextlib.contextmanager
def few_digits() -> Iterator[None]:
    """Within the context there are 96 calibration images and 60 test images; the others are for training."""
    from modhifi.data import _digits

    before = _digits.CALIBRATION_SIZE, _digits.TEST_SIZE
    _digits.CALIBRATION_SIZE, _digits.TEST_SIZE = CALIBRATION, TEST
    try:
        yield
    finally:
        _digits.CALIBRATION_SIZE, _digits.TEST_SIZE = before


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    with few_digits():
        runpy.run_module("streamlit", run_name="__main__", alter_sys=True)
