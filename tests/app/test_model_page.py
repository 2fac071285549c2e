"""The Model page: its form."""

from pathlib import Path

import pytest

from app.selection import Source
from app.session import library

from .paging import finish, open_page, press


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
