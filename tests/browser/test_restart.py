"""The server is killed in the middle of its work and started again."""

import signal
from pathlib import Path

from playwright.sync_api import Browser

from .conftest import Server, Visitor, serving


def test_killed_during_an_analysis_and_during_a_measurement(chromium: Browser, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        someone = visitor(chromium, server)
        someone.page.goto(server.url)
        someone.page.get_by_role("button", name="Cancel").wait_for()
        kill(server)
    assert list(tmp_path.glob("home/studies/*/study")) == []
    with serving(tmp_path) as server:
        someone = visitor(chromium, server).ready("prune")
        assert someone.page.get_by_role("button", name="Measure", exact=True).is_enabled()
        assert list(tmp_path.glob("home/studies/*/.study.partial")) == [], "taken up, not left behind"
        someone.page.get_by_role("button", name="Measure", exact=True).click()
        someone.page.get_by_role("button", name="Cancel").wait_for()
        kill(server)
    assert list(tmp_path.glob("home/studies/*/points/*/point.json")) == []
    with serving(tmp_path) as server:
        someone = visitor(chromium, server)
        someone.open("prune")
        someone.see("No measurements yet. Press")  # the study is there at once
        someone.go("Export")
        someone.see("No plan yet. Measure one on")
        assert someone.errors == []


def visitor(chromium: Browser, server: Server) -> Visitor:
    return Visitor(chromium.new_context(viewport={"width": 1280, "height": 720}).new_page(), server.url)


def kill(server: Server) -> None:
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(20)
