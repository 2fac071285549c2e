"""The Model page: its form."""

import io
import threading
from pathlib import Path

import pytest

from app.selection import Source
from app.session import library
from app.store import Store
from modhifi.errors import UserError
from modhifi.progress import Progress

from .paging import finish, open_page, press, settled, words


def test_the_form_starts_an_analysis_and_makes_it_the_study(filled: Path) -> None:
    app = open_page("model")
    app.number_input(key="form-samples").set_value(32)
    press(app, "Analyse")
    app = finish(app, "analyse")
    assert app.selectbox(key="study").value == Source(samples=32).label
    assert [m.value for m in app.metric if m.label == "Samples"] == ["32"]


def test_the_form_says_what_the_network_expects(filled: Path) -> None:
    app = open_page("model")
    app.number_input(key="form-samples").set_value(16)
    app.text_input(key="form-mean").set_value("0.1, 0.2, 0.3")
    app.text_input(key="form-classes").set_value(" a, b, c, d, e, f, g, h, i, j")
    press(app, "Analyse")
    app = finish(app, "analyse")
    study = library().queries.study(Source(samples=16, mean=(0.1, 0.2, 0.3), classes=tuple("abcdefghij")))
    assert study is not None
    assert study.model.classes == tuple("abcdefghij")


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("form-weights", "nowhere.pth", "no checkpoint at"),
        ("form-root", "nowhere", "no data at"),
        ("form-mean", "0.5, 0.5", "Mean: '0.5, 0.5' is not valid; enter three numbers"),
        ("form-std", "1, 1, wide", "Standard deviation: '1, 1, wide' is not valid; enter three numbers"),
    ],
)
def test_a_mistake_in_the_form_is_said_in_place(filled: Path, field: str, value: str, line: str) -> None:
    app = open_page("model")
    app.text_input(key=field).set_value(value)
    press(app, "Analyse")
    (error,) = app.error
    assert error.value.startswith(line)
    assert "\n" not in error.value
    assert library().jobs.latest("analyse") is None


def test_an_unknown_network_is_said_when_the_job_fails(filled: Path) -> None:
    unknown = Source(model="no-such-network")
    assert library().tasks.analyse(unknown).wait(60)
    app = open_page("model", study=unknown.label)
    (error,) = app.error
    assert "no-such-network" in error.value


def test_uploads_are_kept_in_the_background_and_then_analysed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the form sends them: progress while they are unpacked, the analysis afterwards, or one line."""
    go_on = threading.Event()

    def slowly(store: Store, name: str, content: io.BytesIO, progress: Progress) -> Path:
        progress(1, 2, f"unpacking {name}")
        assert go_on.wait(60)
        if name == "bad.zip":
            raise UserError("bad.zip contains no images; pack others")
        return home / "uploads" / "kept"

    monkeypatch.setattr("app.tasks.keep_images", slowly)
    asked: list[dict] = []
    monkeypatch.setattr("app.model_form.source_from", lambda fields: asked.append(fields) or Source(samples=16))
    shown = library()
    for name in ("good.zip", "bad.zip"):
        go_on.clear()
        sent = io.BytesIO(b"")
        sent.name = name
        app = open_page("model")
        app.session_state["form-sent"] = ({}, shown.tasks.receive(None, sent))
        settled(app)
        assert any(f"Receiving {name}" in bar.proto.text for bar in app.get("progress")), "its progress"
        assert len(asked) == (name == "bad.zip")
        go_on.set()
        job = shown.jobs.latest("receive ")
        assert job is not None
        assert job.wait(60)
        settled(app)
    assert asked == [{"data": str(home / "uploads" / "kept"), "root": None}]
    assert "bad.zip contains no images; pack others" in words(app)
    assert shown.queries.analysis_job(Source(samples=16)) is not None
