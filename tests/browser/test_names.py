"""Names as Streamlit draws them: no link, no picture, no formatting; the text as it is written."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from .conftest import Server, serving
from .nasty import NAMES

PAGE = Path(__file__).with_name("nasty.py")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("names"), page=PAGE) as found:
        yield found


def test_names_are_shown_and_not_interpreted(chromium: Browser, server: Server) -> None:
    page = chromium.new_page()
    page.set_default_timeout(300_000)
    elsewhere: list[str] = []
    page.on("request", lambda request: elsewhere.append(request.url) if "elsewhere.example" in request.url else None)
    page.goto(server.url)
    page.get_by_text("drawn", exact=True).wait_for()
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
    page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')")
    main = page.locator("[data-testid=stApp]")
    body = "[data-testid=stMarkdownContainer]"
    for tag in (
        "a",
        "img",
        "code",
        "pre",
        "em",
        "del",
        "h1",
        "ul",
        "ol",
        "blockquote",
        "hr",
        "sup",
        "sub",
        "input",
        ".katex",
    ):
        assert page.locator(f"{body} {tag}, [data-testid=stTable] {tag}").count() == 0, tag
    assert (
        main.locator("[class*=stMarkdownColored], [class*=stMarkdownBadge], [role=img][aria-label*='delete']").count()
        == 0
    )
    assert elsewhere == []
    shown = set(page.evaluate(f"[...document.querySelectorAll('{body}')].map(one => one.textContent.trim())"))
    shown = {text.replace("\u2060", "") for text in shown}
    for name in NAMES:
        expected = " ".join(name.split())
        expected = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in expected)
        if "\ud800" not in name:
            assert expected in shown, name
    page.close()
