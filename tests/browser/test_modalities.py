"""Modality balance in a real browser: the report that ships, then a run that is started, watched and cancelled."""

import re
from collections.abc import Callable

from playwright.sync_api import expect

from modhifi.multimodal import Run

from .conftest import ROOT, Server, Visitor


def test_read_the_example_then_start_watch_and_cancel(visit: Callable[..., Visitor], server: Server) -> None:
    shipped = Run.load(ROOT / "assets" / "multimodal-example.json").summary()
    someone = visit()
    page = someone.page
    someone.open("modalities")
    expect(page.get_by_role("combobox", name="Run")).to_have_value(re.compile("^Example: "))
    for label, method in (("Joint", "joint"), ("AGM", "agm")):
        assert someone.metric(label) == f"{100 * shipped[method]['accuracy'].mean:.1f}%"
    someone.see("Trained jointly, the model relies mainly on")
    page.get_by_text("Gradient coefficients").wait_for()
    page.locator(".st-key-competition .bars .point path").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280

    for label, value in (("Epochs", "60"), ("Seeds", "20"), ("Training pairs", "64")):
        field = page.get_by_label(label, exact=True)
        field.fill(value)
        field.press("Tab")
        someone.settle()
    someone.press("Train")
    page.locator(".st-key-live-curves .scatterlayer .trace").first.wait_for()
    someone.see("20 seeds")
    someone.press("Cancel")
    someone.see("cancelled.")
    assert page.locator(".st-key-live-curves").count() == 0
    assert not list(server.home.glob("multimodal/*")), "nothing is half-written"
    someone.shoot("modalities-cancelled")
