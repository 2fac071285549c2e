"""What a person does besides the straight way: cancels, reloads, mistypes, shares an address, uses the keyboard."""

import re
from collections.abc import Callable
from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from app.selection import Source
from app.store import Store

from .conftest import Server, Visitor


def test_cancel_half_way_and_start_another(visit: Callable[..., Visitor], server: Server) -> None:
    someone = visit().ready()
    someone.ask_for(Images="held", Samples="504")
    someone.see(re.compile(r"collecting statistics [1-9]\d?%"))
    someone.press("Cancel")
    server.go.touch()
    someone.see("cancelled.")  # at the next report of progress
    someone.ask_for(Images="digits", Samples="48")
    someone.see("Not prunable")
    assert someone.metric("Samples") == "48"
    cancelled = someone.page.get_by_role("combobox", name="Study")
    cancelled.click()
    someone.page.get_by_role("option", name="504").click()
    someone.settle()
    someone.see("is not analysed yet. Run the analysis")


def test_reload_in_the_middle_finds_the_job_again(visit: Callable[..., Visitor], server: Server) -> None:
    server.go.unlink(missing_ok=True)
    someone = visit().ready()
    someone.ask_for(Images="held", Samples="490")
    someone.page.wait_for_url(re.compile("held"), wait_until="commit")
    address = someone.page.url
    someone.page.reload()
    someone.see("This page fills when the analysis is done")
    assert someone.page.url == address
    other = visit()
    other.open(f"?{address.split('?')[1]}")
    other.see("Another session has asked for this.")
    assert other.page.get_by_role("button", name="Cancel").count() == 0
    someone.press("Cancel")
    server.go.touch()
    someone.see("cancelled.")  # at the next report of progress
    someone.ask_for(Images="digits", Samples="50")
    someone.page.reload()
    someone.see("Not prunable")
    assert someone.metric("Samples") == "50"


def test_one_of_two_who_asked_cancels_and_the_work_of_the_other_goes_on(
    visit: Callable[..., Visitor], server: Server
) -> None:
    server.go.unlink(missing_ok=True)
    one, other = visit().ready(), visit().ready()
    for someone in (one, other):
        someone.ask_for(Images="held", Samples="495")
        someone.page.get_by_role("button", name="Cancel").wait_for()
    one.press("Cancel")
    one.see("Another session has asked for this.")
    assert other.page.get_by_role("button", name="Cancel").is_enabled()
    server.go.touch()
    for someone in (other, one):
        someone.see("Not prunable")
        assert someone.metric("Samples") == "495"


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"Checkpoint": "/nowhere/at-all.pth"}, "no checkpoint at /nowhere/at-all.pth"),
        ({"Image_folder": "/nowhere/at-all"}, "no data at /nowhere/at-all"),
    ],
)
def test_a_mistake_is_one_line(visit: Callable[..., Visitor], fields: dict[str, str], line: str) -> None:
    someone = visit().ready()
    someone.ask_for(**fields)
    someone.see(line)
    assert someone.page.get_by_text("Traceback").count() == 0


def test_slider_by_keyboard_and_the_address_that_it_gives(visit: Callable[..., Visitor]) -> None:
    someone = visit().ready("prune")
    slider = someone.page.get_by_role("slider")
    slider.focus()
    for _ in range(10):
        someone.page.keyboard.press("ArrowLeft")
    someone.settle()
    someone.page.wait_for_url("**remain=40**")
    other = visit().ready(f"prune?{someone.page.url.split('?')[1]}")
    flops = float(other.page.locator("[data-testid=stMetricValue]").first.inner_text().rstrip("%"))
    assert 38 <= flops <= 40.01


def test_a_click_in_the_overview_and_the_selectbox_do_the_same(visit: Callable[..., Visitor]) -> None:
    someone = visit().ready("importance")
    page = someone.page
    figure = page.locator(".st-key-overview .js-plotly-plot")
    figure.wait_for()
    page.wait_for_timeout(1000)
    focus = page.get_by_role("combobox", name="Group in focus")
    before = focus.input_value()
    page.locator(".st-key-overview .bars .point path").last.click(force=True)
    expect(focus).not_to_have_value(before)
    someone.settle()
    last = focus.input_value()
    page.get_by_role("heading", name=last).wait_for()
    focus.click()
    page.get_by_role("option").first.click()
    expect(focus).to_have_value(before)
    page.get_by_role("heading", name=before).wait_for()


def test_two_at_once_on_different_networks_and_a_link_from_one_to_a_third(
    visit: Callable[..., Visitor], server: Server
) -> None:
    vit = Source(model="digits-vit", samples=64)
    Store(server.home).remember(vit)
    one, other = visit().ready("prune"), visit("dark").ready(f"?study={quote(vit.label)}")
    other.press("Run the analysis")
    one.press("Measure")
    one.see("Note on this plan")
    other.see("Not prunable")
    found = int(other.metric("Components"))
    one.go("Model")
    assert int(one.metric("Components")) == 400 != found
    other.go("Prune")
    other.see("No measurements yet. Press")
    focus = other.page.get_by_role("combobox", name="Group in focus")
    focus.click()
    other.page.get_by_role("option").nth(3).click()
    other.settle()
    other.page.get_by_role("radio", name="Uniform").click()
    other.settle()
    other.page.wait_for_url(re.compile("allocation=Uniform"), wait_until="commit")
    third = visit().ready(f"prune?{other.page.url.split('?')[1]}")
    expect(third.page.get_by_role("combobox", name="Group in focus")).to_have_value(focus.input_value())
    expect(third.page.get_by_role("combobox", name="Study")).to_have_value(re.compile("^digits-vit"))
    expect(third.page.get_by_role("radio", name="Uniform")).to_have_attribute("aria-checked", "true")
    third.go("Importance")
    third.page.get_by_role("heading", name=focus.input_value()).wait_for()
