"""The real server, started from a folder other than the project's, and Chromium."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from .held import GO

ROOT = Path(__file__).parents[2]
ARTIFACTS = ROOT / "artifacts"

_PATIENCE = 300_000
"""Milliseconds that a test waits for anything: no test is about speed, so this only ends one that would never end."""

expect.set_options(timeout=_PATIENCE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@dataclass(frozen=True)
class Server:
    url: str
    home: Path
    process: subprocess.Popen[bytes]
    log: Path
    go: Path
    """The file that lets go what is held (`held`)."""


@contextlib.contextmanager
def serving(
    folder: Path, streamlit: Sequence[str] = ("-m", "streamlit"), page: Path = ROOT / "app" / "main.py"
) -> Iterator[Server]:
    """``streamlit run app/main.py`` on a free port, with its cache in ``folder``; from there, as a user might."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *streamlit, "run", str(page)]
    command += ["--server.headless=true", f"--server.port={port}", "--server.fileWatcherType=none"]
    go = folder / "go"
    environment = os.environ | {"MODHIFI_HOME": str(folder / "home"), GO: str(go)}
    log = folder / f"server-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_for(f"http://127.0.0.1:{port}/_stcore/health", process, log)
            yield Server(f"http://127.0.0.1:{port}", folder / "home", process, log, go)
        finally:
            process.terminate()
            process.wait(20)
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="session")
def server(default_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the default study of few digits, and images that can be held."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(default_home, folder / "home")
    with serving(folder, [str(Path(__file__).with_name("held.py"))]) as found:
        yield found


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        assert process.poll() is None, f"the server ended: {log.read_text()}"
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the server did not answer: {log.read_text()}")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("no Chromium found; install it (Debian, Ubuntu: apt-get install chromium) and run again")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """One tab and what went wrong in it. Every step waits until the page has settled."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        page.set_default_timeout(_PATIENCE)
        self.errors: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        # Streamlit asks for its own addresses below the page's path first and takes the 404 for an answer.
        if message.type == "error" and "/_stcore/" not in message.location.get("url", ""):
            self.errors.append(message.text)

    def _request(self, request: Request) -> None:
        if not request.url.startswith((self.url, "data:", "blob:", self.url.replace("http", "ws"))):
            self.errors.append(f"request to another host: {request.url}")

    def settle(self) -> None:
        self.page.wait_for_timeout(250)
        self.page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
        # Streamlit loads the code of a control when one is first shown; until then a grey bar stands in its place.
        self.page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')")
        assert self.page.locator("[data-testid=stException]").count() == 0, "the page shows an exception"

    def open(self, path: str = "") -> None:
        self.page.goto(f"{self.url}/{path}")
        self.page.get_by_role("heading").first.wait_for()  # before that nothing runs yet, or not any more
        self.settle()

    def ready(self, path: str = "") -> "Visitor":
        """Opens a page and waits for the analysis that it needs."""
        self.open(path)
        self.page.get_by_text("This page fills when the analysis is done").wait_for(state="hidden")
        self.settle()
        return self

    def ask_for(self, **fields: str) -> None:
        """Fills in the form on the Model page and presses Analyse."""
        if not self.page.get_by_role("button", name="Analyse", exact=True).is_visible():
            self.page.get_by_text("Choose another network or other images").click()
            self.page.get_by_role("button", name="Analyse", exact=True).wait_for()
            self.page.wait_for_timeout(500)  # a list that is opened while the form still unfolds is closed again
            self.settle()
        for label, value in fields.items():
            field = self.page.get_by_label(label.replace("_", " "), exact=True)
            field.fill(value)
            field.press("Enter" if field.get_attribute("role") == "combobox" else "Tab")
        self.press("Analyse")

    def go(self, title: str) -> None:
        self.page.get_by_role("link", name=title, exact=True).first.click()
        self.page.get_by_role("heading", name=title, exact=True).wait_for()
        self.settle()

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()
        self.settle()

    def see(self, text: str | re.Pattern[str]) -> None:
        self.page.get_by_text(text).first.wait_for()
        self.settle()

    def metric(self, label: str) -> str:
        """The value in the first card with this label that is inside the page's last row of them."""
        cards = self.page.locator("[data-testid=stMetric]").filter(has=self.page.get_by_text(label, exact=True))
        return cards.last.locator("[data-testid=stMetricValue]").inner_text()

    def shoot(self, name: str) -> None:
        ARTIFACTS.mkdir(exist_ok=True)
        self.page.wait_for_timeout(800)  # figures fade in
        self.page.screenshot(path=ARTIFACTS / f"{name}.png")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash.setdefault(_FAILED, False)
    item.stash[_FAILED] |= report.failed
    return report


_FAILED = pytest.StashKey[bool]()


@pytest.fixture
def visit(chromium: Browser, server: Server, request: pytest.FixtureRequest) -> Iterator[Callable[..., Visitor]]:
    """``visit(scheme)`` opens a tab of 1280×720; at the end no tab may have seen an error. A test that failed leaves pictures."""
    visitors: list[Visitor] = []

    def new(scheme: str = "light") -> Visitor:
        context = chromium.new_context(viewport={"width": 1280, "height": 720}, color_scheme=scheme)
        visitors.append(Visitor(context.new_page(), server.url))
        return visitors[-1]

    yield new
    for number, visitor in enumerate(visitors):
        if request.node.stash[_FAILED]:
            visitor.shoot(f"failed-{re.sub('[^a-z0-9]+', '-', request.node.name)}-{number}")
        visitor.page.context.close()
    assert [error for visitor in visitors for error in visitor.errors] == []
