"""Killed before every disk operation, and on a full disk: the old or the new result, whole, and nothing beside it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ["analyze", "prune", "unlearn", "export", "multimodal"]


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What `tests.killing` found at each point."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.killing", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_before_every_disk_operation(points: list[dict], command: str) -> None:
    mine = [point for point in points if point["command"] == command and point["operation"]]
    for earlier in (True, False):
        here = [point for point in mine if point["earlier"] is earlier]
        assert len(here) >= 6
        assert {point["left"] for point in here} == {"old" if earlier else "absent", "new"}, "both sides are seen"
    for point in mine:
        assert point["after"] == "new", point
        assert point["debris"] == [], point
    assert any("exchange" in point["what"] for point in mine) == (command in ("analyze", "export", "multimodal"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_line_and_changes_nothing(points: list[dict], command: str) -> None:
    mine = [point for point in points if point["command"] == command and not point["operation"]]
    assert len(mine) in (2, 4)
    for point in mine:
        assert point["status"] == 2, point
        assert point["what"].startswith("modhifi: "), point
        assert point["what"].count("\n") == 1, point
        assert len(point["what"]) <= 320, point
        assert point["left"] == ("old" if point["earlier"] else "absent"), point
        assert point["debris"] == [], point
