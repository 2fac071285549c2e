"""Several people at once, whose server is killed and started again twice: no exception, nothing lost, memory flat.

``MODHIFI_SESSIONS`` and ``MODHIFI_MOVES`` set how many and how much each does; ``make stress`` asks for 10 and 20.
"""

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser

from app.selection import DEFAULT
from app.store import Store

from .conftest import ROOT, Server, Visitor, serving

SESSIONS, MOVES = int(os.environ.get("MODHIFI_SESSIONS", 2)), int(os.environ.get("MODHIFI_MOVES", 6))
PAGES = ["Model", "Importance", "Bounds", "Prune", "Forget", "Modalities", "Export"]


def test_sessions_survive_one_another_and_the_server(chromium: Browser, default_home: Path, tmp_path: Path) -> None:
    shutil.copytree(default_home, tmp_path / "home")
    chance = random.Random(0)
    kept: dict[str, bytes] = {}
    for life in range(3):
        with serving(tmp_path, [str(ROOT / "tests" / "few.py")]) as server:
            contexts = [chromium.new_context(viewport={"width": 1280, "height": 720}) for _ in range(SESSIONS)]
            visitors = [Visitor(context.new_page(), server.url).ready() for context in contexts]
            if not life:
                measure(visitors[0])
                kept = files(tmp_path)
                assert any(name.endswith("point.json") for name in kept)
            moves = [number for number in range(SESSIONS) for _ in range(MOVES // 3)]
            chance.shuffle(moves)
            memory = []
            for number in moves:
                move(visitors[number], chance)
                memory.append(resident(server))
            # The first third loads what every page needs.
            early, late = memory[len(memory) // 3], memory[-1]
            assert late < early * 1.25 + 50, f"memory grows: {early:.0f} to {late:.0f} MB"
            assert [error for visitor in visitors for error in visitor.errors] == []
            if life < 2:
                server.process.send_signal(signal.SIGKILL)
                server.process.wait(60)
            for context in contexts:
                context.close()
        assert files(tmp_path).items() >= kept.items(), "nothing that was kept is lost or changed"
    (point,) = Store(tmp_path / "home").points(DEFAULT.id)
    assert point.note == "kept"


def measure(someone: Visitor) -> None:
    """Measures a plan and leaves a note on it."""
    someone.go("Prune")
    someone.press("Measure")
    note = someone.page.get_by_label("Note on this plan")
    note.fill("kept")
    note.press("Tab")
    someone.settle()


def move(someone: Visitor, chance: random.Random) -> None:
    """One of the things that people do; every one of them ends on a page without an exception."""
    page = someone.page

    def slide() -> None:
        someone.go("Prune")
        page.get_by_role("slider").first.focus()
        page.keyboard.press(chance.choice(["ArrowLeft", "ArrowRight"]))

    def focus() -> None:
        box = page.get_by_role("combobox", name="Group in focus")
        box.focus()
        for key in ["ArrowDown"] * chance.randrange(2, 6) + ["Enter"]:
            box.press(key)

    moves: list[Callable[[], object]] = [
        lambda: someone.go(chance.choice(PAGES)),
        slide,
        focus,
        page.reload,
        lambda: someone.open(chance.choice(["prune?allocation=", "importance?group=nobody", "export?plan=%3Cb%3E"])),
    ]
    chance.choice(moves)()
    someone.settle()


def files(folder: Path) -> dict[str, bytes]:
    """What is kept of a measurement."""
    kept = folder.glob("home/studies/*/points/**/*")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept if path.is_file()}


def resident(server: Server) -> float:
    """Resident memory of the server in MB."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
