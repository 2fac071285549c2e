"""Response times of the dashboard, and whether its memory grows with use.

    python benchmarks/dashboard [--models digits-resnet20,timm:resnet50,timm:densenet169] [--moves 100]
        [--interactions 200] [--sessions 10] [--home FOLDER]

Prints the tables of docs/results/dashboard.md: the server time of a whole run of the page's script, in process (Streamlit's
AppTest, no browser), for the first page of a new session, a change of page, and a move of the *Prune* page's slider; then the
memory of the process after many interactions and with many sessions. Studies are made once on dead-leaves (digits for
digits-resnet20) and kept in ``--home``; the study of resnet50 takes several minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

PAGES = ("model", "importance", "bounds", "prune", "forget", "export")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", default="digits-resnet20,timm:resnet50,timm:densenet169", help="comma-separated specs"
    )
    parser.add_argument("--moves", type=int, default=100, help="timed slider moves per model")
    parser.add_argument("--interactions", type=int, default=200, help="slider moves between memory readings")
    parser.add_argument("--sessions", type=int, default=10, help="additional sessions for the memory reading")
    parser.add_argument("--home", help="folder for the studies (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MODHIFI_HOME"] = args.home or folder
        bench(args)


def bench(args: argparse.Namespace) -> None:
    from app.selection import Source
    from app.session import library, studies

    print("| network, groups | slider, ms: median (95%) | change of page, ms: median (largest) | first page, ms |")
    print("|---|---|---|---|", flush=True)
    opened = None
    for name in args.models.split(","):
        digits = name.startswith("digits")
        source = Source(model=name, data="digits" if digits else "dead-leaves", samples=512 if digits else 64)
        job = library().tasks.analyse(source)
        job.wait(3600)
        assert job.state == "done", job.error
        study = library().queries.study(source)
        assert study is not None
        words = next(words for words, known in studies(library()).items() if known == source)
        opened = Visit(words)
        moves = opened.moves(args.moves)
        changes = [opened.go(page) for _ in range(3) for page in PAGES]
        firsts = [Visit(words).first for _ in range(3)]
        print(
            f"| {name}, {len(study.groups)} | {np.median(moves):.0f} ({np.quantile(moves, 0.95):.0f}) |"
            f" {np.median(changes):.0f} ({max(changes):.0f}) | {np.median(firsts):.0f} |",
            flush=True,
        )
    assert opened is not None
    opened.go("prune")
    opened.moves(20)
    before = resident()
    opened.moves(args.interactions)
    after = resident()
    others = [Visit(opened.words) for _ in range(args.sessions)]
    for other in others:
        other.moves(5)
    many = resident()
    print(f"\nmemory: {before:.0f} MB; after {args.interactions} more slider moves {after:.0f} MB;", end=" ")
    print(f"with {args.sessions} more sessions {many:.0f} MB")


class Visit:
    """One session of the dashboard."""

    def __init__(self, words: str) -> None:
        from streamlit.testing.v1 import AppTest

        self.words = words
        self.app = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=600)
        self.app.query_params["study"] = words
        self.first = self.run()

    def run(self) -> float:
        """Runs the page's script; milliseconds."""
        began = time.perf_counter()
        self.app.run()
        took = 1000 * (time.perf_counter() - began)
        assert not self.app.exception, self.app.exception
        return took

    def go(self, page: str) -> float:
        self.app.switch_page(f"../pages/{page}.py")
        return self.run()

    def moves(self, count: int) -> list[float]:
        self.go("prune")
        self.run()
        found = []
        values = np.random.default_rng(0).integers(40, 100, count)
        for value in values.tolist():
            self.app.slider(key="remain").set_value(value)
            found.append(self.run())
        return found


def resident() -> float:
    """Resident memory of the process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
