"""What a person does besides the straight way: cancels, reloads, mistypes, shares an address, uses the keyboard."""

import re
from collections.abc import Callable

import pytest

from .conftest import Visitor

PAGES = ["", "importance", "bounds", "prune", "forget", "export"]


def ready(someone: Visitor, path: str = "") -> Visitor:
    someone.open(path)
    someone.page.get_by_text("This page fills as soon as").wait_for(state="hidden", timeout=300_000)
    someone.settle()
    return someone


def ask_for(someone: Visitor, **fields: str) -> None:
    """Fills in the form on the Model page and presses Analyse."""
    page = someone.page
    page.get_by_text("Choose another network or other images").click()
    for label, value in fields.items():
        field = page.get_by_label(label.replace("_", " "), exact=True)
        field.fill(value)
        field.press("Tab")
    someone.press("Analyse")


def test_cancel_then_run_again(visit: Callable[..., Visitor]) -> None:
    someone = ready(visit())
    ask_for(someone, Samples="500")
    someone.press("Cancel")
    someone.see("cancelled.")
    someone.press("Run the analysis")
    someone.see("Left whole", seconds=120)


def test_reload_in_the_middle_finds_the_job_again(visit: Callable[..., Visitor]) -> None:
    someone = ready(visit())
    ask_for(someone, Samples="490")
    # On a busy machine the page may still wait for its turn when it was asked.
    someone.page.wait_for_url(re.compile("study="), wait_until="commit")
    address = someone.page.url
    someone.page.reload()
    someone.settle()
    assert someone.page.url == address
    someone.see("Left whole", seconds=120)
    assert someone.metric("Samples") == "490"


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"Checkpoint": "/nowhere/at-all.pth"}, "no checkpoint at /nowhere/at-all.pth"),
        ({"Folder_of_the_images": "/nowhere/at-all"}, "no data at /nowhere/at-all"),
    ],
)
def test_a_mistake_is_one_line(visit: Callable[..., Visitor], fields: dict[str, str], line: str) -> None:
    someone = ready(visit())
    ask_for(someone, **fields)
    someone.see(line)
    assert someone.page.get_by_text("Traceback").count() == 0


def test_slider_by_keyboard_and_the_address_that_it_gives(visit: Callable[..., Visitor]) -> None:
    someone = ready(visit(), "prune")
    slider = someone.page.get_by_role("slider")
    slider.focus()
    for _ in range(10):
        someone.page.keyboard.press("ArrowLeft")
    someone.settle()
    someone.page.wait_for_url("**remain=40**")
    other = ready(visit(), f"prune?{someone.page.url.split('?')[1]}")
    flops = float(other.page.locator("[data-testid=stMetricValue]").first.inner_text().rstrip("%"))
    assert 38 <= flops <= 40.01


def test_a_click_in_the_overview_and_the_selectbox_do_the_same(visit: Callable[..., Visitor]) -> None:
    someone = ready(visit(), "importance")
    page = someone.page
    figure = page.locator(".st-key-overview .js-plotly-plot")
    figure.wait_for()
    page.wait_for_timeout(1000)
    focus = page.get_by_role("combobox", name="Group in focus")
    before = focus.input_value()
    page.locator(".st-key-overview .bars .point path").last.click(force=True)
    someone.settle()
    page.wait_for_timeout(500)
    last = focus.input_value()
    assert last != before
    page.get_by_role("heading", name=last).wait_for()
    focus.click()
    page.get_by_role("option").first.click()
    someone.settle()
    assert focus.input_value() == before
    page.get_by_role("heading", name=before).wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_its_window(visit: Callable[..., Visitor], scheme: str) -> None:
    for path in PAGES:
        someone = ready(visit(scheme), path)
        width = someone.page.evaluate("document.documentElement.scrollWidth")
        assert width <= 1280, f"{path or 'model'} is {width} pixels wide"
        someone.shoot(f"{path or 'model'}-{scheme}")
