"""The dashboard with one more data source: ``held`` gives half of its images, and the others when a file is there.

A test that looks at work that is half done cannot rely on how long the work takes.
"""

import dataclasses
import itertools
import os
import runpy
import sys
import time
from pathlib import Path

GO = "MODHIFI_TEST_GO"
"""Names, in the environment, the file whose presence lets go."""

_AT_ONCE = 256


def _register() -> None:
    from PIL import Image

    import modhifi
    from modhifi.data import Data, DataSource, register_source

    go = Path(os.environ[GO])

    def held(spec: str, root: Path | None, split: str) -> Data:
        data, reads = modhifi.load_data("digits", root, split=split), itertools.count()

        def read(index: int) -> Image.Image:
            if next(reads) >= _AT_ONCE:
                while not go.exists():
                    time.sleep(0.02)
            return data.read(index)

        # Six times the same few, so that an analysis has several batches.
        return dataclasses.replace(data, spec=spec, read=read, source=spec, order=data.order * 6)

    register_source(DataSource("held", "digits that wait", lambda spec: spec == "held", held, example="held"))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])
    from tests.few import few_digits

    _register()
    with few_digits():
        runpy.run_module("streamlit", run_name="__main__", alter_sys=True)
