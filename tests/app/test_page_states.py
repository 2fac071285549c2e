"""Every page in every state: nothing loaded, running, failed, done; and addresses that do not fit."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from streamlit.web.server.starlette.starlette_app_utils import generate_xsrf_token_string

import modhifi
from app.library import Library
from app.selection import DEFAULT, Source
from app.session import _browser, focus, library, studies
from app.store import Store
from modhifi.errors import UserError
from modhifi.lipschitz import estimators
from modhifi.progress import Progress

from .paging import MAIN, OTHER, PAGES, finish, open_page, press, settled, words


@pytest.fixture
def held(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An analysis that reports and goes on until it is cancelled, or the test is over."""
    end = threading.Event()

    def analyze(*_: Any, progress: Progress, **__: Any) -> None:
        for done in range(100):
            progress(done, 100, "collecting statistics")
            if end.wait(0.1):
                raise UserError("the test is over")

    monkeypatch.setattr(modhifi, "analyze", analyze)
    yield
    end.set()


@pytest.mark.parametrize("name", PAGES)
def test_nothing_loaded(filled: Path, name: str) -> None:
    library().store.remember(OTHER)
    app = open_page(name, study=OTHER.label)
    assert app.selectbox(key="study").value == OTHER.label
    assert "is not analysed yet. Run the analysis" in words(app)
    assert [b.label for b in app.button if b.label == "Run the analysis"]


@pytest.mark.parametrize("name", PAGES)
def test_running(held: None, name: str) -> None:
    app = open_page(name)
    job = library().jobs.latest("analyse")
    assert job is not None
    assert job.state == "running", "the first visit starts the default's analysis"
    assert "This page fills when the analysis is done." in words(app)
    press(app, "Cancel")
    assert job.wait(60)
    assert job.state == "cancelled"
    app = settled(app)
    assert "cancelled." in words(app)
    assert "Run the analysis" in words(app)
    assert library().jobs.latest("analyse") is job, "and it is not started again unasked"


def test_only_who_asked_for_a_job_can_cancel_it(held: None) -> None:
    first, other = open_page("model"), open_page("model")
    job = library().jobs.latest("analyse")
    assert job is not None
    assert "Another session has asked for this." in words(other)
    assert [b.label for b in other.button if b.label == "Cancel"] == []
    assert [b.label for b in first.button if b.label == "Cancel"] == ["Cancel"]
    press(other, "Analyse")  # the same network and images: now both have asked
    assert library().jobs.latest("analyse") is job
    press(first, "Cancel")
    assert job.state == "running"
    assert "Another session has asked for this." in words(first)
    press(other, "Cancel")
    assert job.wait(60)
    assert job.state == "cancelled"


def test_a_browser_is_known_again_whatever_the_mask_of_its_cookie() -> None:
    one, two = bytes(range(16)), bytes(range(1, 17))
    first, again, other = (_browser(generate_xsrf_token_string(token)) for token in (one, one, two))
    assert first == again != other
    for cookie in ("", "2|x|y|1", "2|00|00|1", "abc", "1|00000000|" + "0" * 32 + "|1"):
        assert _browser(cookie) is None


@pytest.mark.parametrize("name", PAGES)
def test_failed(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def analyze(*_: Any, **__: Any) -> None:
        raise UserError("these images are not images; name a folder that holds some")

    monkeypatch.setattr(modhifi, "analyze", analyze)
    app = open_page(name)
    job = library().jobs.latest("analyse")
    assert job is not None
    assert job.wait(60)
    app = settled(app)
    assert [e.value for e in app.error] == ["these images are not images; name a folder that holds some"]
    assert "Traceback" not in words(app)
    monkeypatch.undo()


@pytest.mark.parametrize("name", PAGES)
def test_done(filled: Path, name: str) -> None:
    app = open_page(name)
    assert not app.error
    expected = {
        "model": "Not prunable",
        "importance": "are enough for η = 0.80 in every group",
        "bounds": f"**≥ Jacobian.** {estimators()['jacobian'].says}",
        "prune": "No measurements yet. Press *Measure*",
        "forget": "No results yet. Select one or more classes",
        "export": "No plan yet. Measure one on *Prune*",
    }
    assert expected[name] in words(app)


def test_the_second_start_is_at_once(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def analyze(*_: Any, **__: Any) -> None:
        raise AssertionError("the study on disk was not used")

    monkeypatch.setattr(modhifi, "analyze", analyze)
    app = open_page("model")
    assert not app.error
    assert library().jobs.latest("analyse") is None
    assert "Groups" in words(app)


def test_a_damaged_study_is_one_line_and_can_be_made_anew(filled: Path) -> None:
    (study,) = filled.glob("studies/*/study")
    (study / "study.json").write_text("{")
    app = open_page("importance")
    (error,) = app.error
    assert "damaged" in error.value
    press(app, "Run the analysis")
    app = finish(app, "analyse")
    assert not app.error


def test_an_address_of_a_study_that_is_not_here_says_so(filled: Path) -> None:
    app = AppTest.from_file(str(MAIN), default_timeout=60)
    app.query_params["study"] = "elsewhere · digits, 3"
    app.run()
    assert any("Study: the address asks for “elsewhere" in toast.value for toast in app.toast)
    assert app.selectbox(key="study").value == DEFAULT.label


def test_the_default_keeps_its_name(filled: Path) -> None:
    shared = Library(Store(filled))
    other = Source(mean=(0.1, 0.1, 0.1), std=(1, 1, 1))
    assert other.label == DEFAULT.label
    shared.store.remember(other)
    os.utime(filled / "studies" / other.id / "source.json", (1, 1))  # older than the default
    found = studies(shared)
    assert list(found) == [DEFAULT.label, f"{DEFAULT.label} ({other.digest})"]
    assert list(found.values()) == [DEFAULT, other]


def test_a_group_of_another_network_in_focus(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Library(Store(filled)).queries.study(DEFAULT)
    assert study is not None
    for chosen, expected in (("blocks.3.attn.qkv", "conv1"), ("layer3.0.conv1", "layer3.0.conv1")):
        monkeypatch.setattr("streamlit.session_state", {"group": chosen})
        assert focus(study) == expected


def test_a_group_chosen_anywhere_is_spoken_of_everywhere(filled: Path) -> None:
    app = open_page("model")
    assert "12 groups, 3 of them residual streams" in words(app)
    app.session_state["network-map"] = {"selection": {"points": [{"customdata": ["layer2.1.conv1", "channels"]}]}}
    app.session_state["group"] = "layer2.1.conv1"  # as the map's callback does
    app = settled(app)
    app.switch_page("../pages/importance.py")
    assert "layer2.1.conv1" in [s.value for s in settled(app).subheader]
    app.switch_page("../pages/bounds.py")
    assert settled(app).selectbox(key="layer-layer2.1.conv1").value == "layer2.1.conv2"
    app.switch_page("../pages/prune.py")
    assert settled(app).selectbox(key="hand-group-layer2.1.conv1").value == "layer2.1.conv1"
