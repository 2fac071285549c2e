"""The Importance page."""

from pathlib import Path

from streamlit.testing.v1 import AppTest

from app.selection import DEFAULT
from app.session import library

from .paging import open_page, settled, words


def test_a_click_in_the_overview_and_the_selectbox_are_equals(filled: Path) -> None:
    app = open_page("importance")
    groups = app.selectbox(key="group").options
    app.selectbox(key="group").set_value(groups[3])
    app = settled(app)
    assert groups[3] in [s.value for s in app.subheader]


def test_eta_and_compensation_move_the_hifi_set(filled: Path) -> None:
    def size(app: AppTest) -> int:
        (line,) = [m.value for m in app.markdown if m.value.startswith("**") and " components** (" in m.value]
        return int(line[2:].split()[0])

    app = open_page("importance")
    at_80 = size(app)
    app.slider(key="eta").set_value(0.95)
    app = settled(app)
    assert size(app) > at_80
    full = size(app)
    app.segmented_control(key="compensation").set_value("none")
    app = settled(app)
    assert size(app) >= full


def test_importance_says_what_a_group_is_and_what_it_knows_of_each_class(filled: Path) -> None:
    app = open_page("importance", group="conv1")
    assert "16 channels of a residual stream, read by layer1.0.conv1, layer1.1.conv1, layer1.2.conv1 and 7 more." in (
        words(app)
    )
    assert "All 10 classes, as predicted for the 96 calibration images." in words(app)


def test_scalar_is_derived_for_the_group_in_focus_alone(filled: Path) -> None:
    app = open_page("importance", group="layer1.0.conv1")
    app.segmented_control(key="compensation").set_value("scalar")
    app = settled(app)
    job = library().jobs.latest("derive")
    assert job is not None
    assert job.title == "Deriving scalar compensation for layer1.0.conv1"
    assert job.wait(60)
    app = settled(app)
    assert "Shown here with full compensation; scalar below." in words(app)
    study = library().queries.study(DEFAULT)
    assert study is not None
    derived = {name.split("/")[-1].split("@")[0] for name in study.tables if name.startswith("error/greedy/scalar/")}
    assert derived == {"layer1.0.conv1"}
