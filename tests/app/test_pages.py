"""Every page in every state: nothing loaded, running, failed, done. In-process, without a browser."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

import modhifi
from app.library import Library
from app.selection import DEFAULT, Source
from app.session import focus, library, studies
from app.store import Store
from modhifi.errors import Cancelled, UserError
from modhifi.progress import Progress

MAIN = Path(__file__).parents[2] / "app" / "main.py"
PAGES = ["model", "importance", "bounds", "prune", "forget", "export"]
OTHER = Source(samples=64)


def open_page(name: str, **address: str) -> AppTest:
    app = AppTest.from_file(str(MAIN), default_timeout=60)
    for key, value in address.items():
        app.query_params[key] = value
    app.run()
    app.switch_page(f"../pages/{name}.py")
    return settled(app)


def settled(app: AppTest) -> AppTest:
    app.run()
    assert not app.exception, app.exception
    return app


def words(app: AppTest) -> str:
    parts = [*app.markdown, *app.caption, *app.info, *app.error, *app.header, *app.subheader, *app.success]
    return "\n".join(str(part.value) for part in parts)


def press(app: AppTest, label: str) -> AppTest:
    (button,) = [b for b in app.button if b.label == label]
    button.click()
    return settled(app)


def finish(app: AppTest, kind: str) -> AppTest:
    """Waits for the page's job, then draws the page again."""
    job = library().jobs.latest(kind)
    assert job is not None
    assert job.wait(120)
    assert job.state == "done", job.error
    return settled(app)


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
    assert "is not analysed yet: run the analysis" in words(app)
    assert [b.label for b in app.button if b.label == "Run the analysis"]


@pytest.mark.parametrize("name", PAGES)
def test_running(held: None, name: str) -> None:
    app = open_page(name)
    job = library().jobs.latest("analyse")
    assert job is not None
    assert job.state == "running", "the first visit starts the default's analysis"
    assert "This page fills as soon as the analysis is through" in words(app)
    press(app, "Cancel")
    assert job.wait(10)
    assert job.state == "cancelled"
    app = settled(app)
    assert "cancelled." in words(app)
    assert "run the analysis" in words(app)
    assert library().jobs.latest("analyse") is job, "and it is not started again unasked"


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
        "model": "Left whole",
        "importance": "reach η = 0.80 in every group",
        "bounds": "**≥ Jacobian.** Lower bound",
        "prune": "Nothing measured yet",
        "forget": "Nothing forgotten yet",
        "export": "No plan yet",
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
        ("form-mean", "0.5, 0.5", "Mean: three numbers, one a colour"),
        ("form-std", "1, 1, wide", "Standard deviation: three numbers, one a colour"),
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
    assert "All 10 classes, as the network answered the 512 images." in words(app)


def test_scalar_is_derived_for_the_group_in_focus_alone(filled: Path) -> None:
    app = open_page("importance", group="layer1.0.conv1")
    app.segmented_control(key="compensation").set_value("scalar")
    app = settled(app)
    job = library().jobs.latest("derive")
    assert job is not None
    assert job.title == "Deriving scalar compensation of layer1.0.conv1"
    assert job.wait(60)
    app = settled(app)
    assert "With full compensation; scalar below." in words(app)
    (study,) = library()._studies.values()
    derived = {name.split("/")[-1].split("@")[0] for name in study.tables if name.startswith("error/greedy/scalar/")}
    assert derived == {"layer1.0.conv1"}


def test_curves_that_are_missing_can_be_cancelled_and_asked_for_again(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tabulate(*_: Any, **__: Any) -> None:
        raise Cancelled

    monkeypatch.setattr("modhifi.study._types.tabulate_order", tabulate)
    app = open_page("prune")
    app.segmented_control(key="compensate").set_value("scalar")
    app = settled(app)
    assert "cancelled." in words(app)
    assert not [m for m in app.metric if m.label == "Predicted fidelity"]
    monkeypatch.undo()
    press(app, "Derive again")
    job = library().jobs.latest("derive")
    assert job is not None
    assert job.wait(60)
    app = settled(app)
    assert metric(app, "Predicted fidelity")


def metric(app: AppTest, label: str) -> str:
    return next(str(m.value) for m in app.metric if m.label == label)


def test_prediction_follows_the_slider(filled: Path) -> None:
    app = open_page("prune")
    half = metric(app, "FLOPs")
    assert 48 <= float(half.rstrip("%")) <= 50.01
    app.slider(key="remain").set_value(30)
    app = settled(app)
    assert 27 <= float(metric(app, "FLOPs").rstrip("%")) <= 30.01
    assert library().jobs.latest("measure") is None, "nothing was run"


def test_a_group_set_by_hand_keeps_so_many_until_it_is_cleared(filled: Path) -> None:
    app = open_page("prune")
    planned = metric(app, "Parameters")
    name = app.selectbox(key="hand-group-conv1").value
    app.slider(key=f"hand-count-{name}").set_value(2)
    press(app, "Exactly")
    assert f"By hand: {name} keeps 2" in words(app)
    assert metric(app, "Parameters") != planned
    press(app, "At least")
    assert f"At least: {name} keeps 2" in words(app)
    assert "By hand:" not in words(app)
    press(app, "Undo")
    assert f"By hand: {name} keeps 2" in words(app)
    press(app, "Undo")
    assert f"{name} keeps" not in words(app)
    assert metric(app, "Parameters") == planned
    press(app, "Redo")
    press(app, "Redo")
    assert f"At least: {name} keeps 2" in words(app)
    assert next(b for b in app.button if b.label == "Redo").disabled
    assert app.query_params["hand"] == f"{DEFAULT.digest}:{name}>2"
    shared = open_page("prune", hand=f"{DEFAULT.digest}:{name}>2,nowhere=3,conv1=9999,layer3.0.conv1=7")
    assert f"At least: {name} keeps 2" in words(shared)
    assert "By hand: layer3.0.conv1 keeps 7" in words(shared)
    press(shared, "Undo")
    assert "keeps 2" not in words(shared)
    other = open_page("prune", hand=f"elsewhere:{name}>2")
    assert "keeps 2" not in words(other)
    press(app, "Clear all")
    assert f"{name} keeps" not in words(app)
    assert metric(app, "Parameters") == planned
    assert "hand" not in app.query_params


def test_a_budget_of_latency_asks_for_the_times_once(filled: Path) -> None:
    app = open_page("prune", budget="Latency")
    assert "needs the times of the layers" in words(app)
    press(app, "Time the layers")
    app = finish(app, "latency")
    assert metric(app, "Latency").endswith(" ms")
    assert "Time again" in {button.label for button in app.button}
    assert float(metric(open_page("prune"), "Latency").removesuffix(" ms")) > 0, "every budget shows it now"


def test_another_score_is_derived_and_decides(filled: Path) -> None:
    app = open_page("prune", compensate="None", score="L2 norm")
    app = finish(app, "derive")
    (fidelity,) = [m for m in app.metric if m.label == "Predicted fidelity"]
    assert float(str(fidelity.value)) < 1


def test_methods_are_compared_at_the_same_budget(filled: Path) -> None:
    app = open_page("prune", remain="60")
    app.multiselect(key="methods").set_value(["l2", "one-shot"])
    app = settled(app)
    press(app, "Compare")
    app = finish(app, "compare")
    table = app.dataframe[0].value
    *plans, dense = table.to_dict("records")
    assert {row["Plan"] for row in plans} == {"60% FLOPs · L2 norm", "60% FLOPs · Greedy, global, full compensation"}
    assert all(row["FLOPs"] <= 60 and row["Accuracy"] > 0 for row in plans)
    assert (dense["Plan"], dense["FLOPs"], dense["Change"]) == ("Unchanged network", 100, 0)
    assert dense["Accuracy"] == pytest.approx(plans[0]["Accuracy"] - plans[0]["Change"])


def test_a_wish_that_cannot_be_met_is_one_line(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*_: Any, **__: Any) -> None:
        raise UserError("this budget cannot be met; leave more")

    monkeypatch.setattr(modhifi.pruning, "allocate", allocate)
    app = open_page("prune", remain="33")
    assert [e.value for e in app.error] == ["this budget cannot be met; leave more"]
    (button,) = [b for b in app.button if b.label == "Measure"]
    assert button.disabled


def test_measure_keeps_the_point_for_this_session_and_the_next(filled: Path) -> None:
    app = open_page("prune")
    press(app, "Measure")
    app = finish(app, "measure")
    accuracy = metric(app, "Accuracy")
    assert float(accuracy.rstrip("%")) > 90
    assert len(app.dataframe) == 1
    again = open_page("export")
    assert metric(again, "Accuracy") == accuracy
    assert "evaluate plan.json --data digits --split test" in again.code[0].value


def test_forget_shows_how_it_is_judged(filled: Path) -> None:
    app = open_page("forget")
    (pills,) = [p for p in app.button_group if p.key == "classes"]
    pills.set_value(["3"])
    app = settled(app)
    press(app, "Forget")
    app = finish(app, "forget")
    for label in ("Forget accuracy", "Retain accuracy", "Linear probe", "Membership inference", "BN recall"):
        assert metric(app, label)
    assert float(metric(app, "Forget accuracy").rstrip("%")) < float(metric(app, "Retain accuracy").rstrip("%"))
    said = words(app)
    for part in (
        "Where the class lives",
        "most specific to 3",
        "Is it forgotten?",
        "Not answered any more",
        "Relearning",
    ):
        assert part in said
    assert list(app.table[0].value.columns) == ["Unchanged", "Logit mask", "Changed"]
    export = open_page("export")
    assert "unlearn study --forget 3" in export.code[0].value
    assert "--method erase" in export.code[0].value


def test_bounds_are_measured_and_kept(filled: Path) -> None:
    app = open_page("bounds")
    press(app, "Measure")
    app = finish(app, "bounds")
    said = words(app)
    for part in ("times the measured error; every point", "Layer by layer", "128 calibration samples instead"):
        assert part in said
    slack, layers, plans, _ = (frame.value for frame in app.dataframe)
    assert list(slack["Swapped in by"]) == ["layer", "block", "stage"]
    assert (slack["Tightness"] - slack["Largest"] * slack["Adding up"]).abs().max() < 1e-6
    assert (layers["Bound"] >= layers["Measured"]).all()
    assert len(plans) == 3
    assert (plans["Tightness"] >= 1).all()


def test_other_constants_on_demand(filled: Path) -> None:
    """Estimated in the background, kept by the study, and there to weigh layers by; said to be what they are."""
    app = open_page("bounds")
    assert "≤ Operator norms" not in words(app)
    app.multiselect[0].set_value(["pairs", "certified"])
    settled(app)
    press(app, "Estimate")
    app = finish(app, "constants")
    assert [one.label for one in app.multiselect] == ["Estimate"]  # random is still to be had
    assert app.multiselect[0].options == ["Random"]
    app.button_group(key="estimators").set_value(["pairs", "certified"])
    app = settled(app)
    assert "**≤ Operator norms.** Upper bound" in words(app)
    assert "**≥ Pairs.** Lower bound" in words(app)
    app.button_group(key="statistic").set_value("rms")
    assert "**Pairs.** Holds for the samples only" in words(settled(app))
    kept = modhifi.Study.load(library().store.study_path(DEFAULT.id))
    assert kept.estimators == ("directional", "jacobian", "pairs", "certified")
    prune = open_page("prune")
    before = metric(prune, "Predicted bound")
    prune.selectbox(key="weighed-by").set_value("certified")
    settled(prune)
    assert not prune.error
    assert metric(prune, "Predicted bound") != before


def test_a_layer_leads_to_its_place_on_importance(filled: Path) -> None:
    app = open_page("bounds")
    app.selectbox(key="layer-conv1").set_value("layer2.1.conv2")
    settled(app)
    press(app, "Open on Importance")
    assert app.selectbox(key="group").value == "layer2.1.conv1"
    assert "layer2.1.conv1" in [s.value for s in app.subheader]


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


def test_a_note_goes_where_the_plan_goes(filled: Path) -> None:
    app = open_page("prune")
    press(app, "Measure")
    app = finish(app, "measure")
    (point,) = library().store.points(DEFAULT.id)
    app.text_input(key=f"note-{point.id}").set_value("as agreed")
    app = settled(app)
    assert "as agreed" in app.dataframe[0].value["Note"].tolist()
    assert library().store.plan(DEFAULT.id, point.id).note == "as agreed"
    for axis, words_ in (("params", "Parameters"), ("latency_ms", "Latency")):
        app.button_group(key="against").set_value(axis)
        assert words_ in str(app.button_group(key="against").options)
        settled(app)


def test_a_damaged_plan_is_one_line(filled: Path) -> None:
    app = open_page("prune")
    press(app, "Measure")
    app = finish(app, "measure")
    (point,) = library().store.points(DEFAULT.id)
    (library().store.point_folder(DEFAULT.id, point.id) / "plan.json").write_text("{")
    app.text_input(key=f"note-{point.id}").set_value("a note")
    app = settled(app)
    assert any("is damaged" in toast.value for toast in app.toast)
    app.switch_page("../pages/export.py")
    assert any("is damaged" in error.value for error in settled(app).error)


def test_an_address_of_a_study_that_is_not_here_says_so(filled: Path) -> None:
    app = AppTest.from_file(str(MAIN), default_timeout=60)
    app.query_params["study"] = "elsewhere · digits, 3"
    app.run()
    assert any("no study 'elsewhere" in toast.value for toast in app.toast)
    assert app.selectbox(key="study").value == DEFAULT.label


def test_the_default_keeps_its_name(filled: Path) -> None:
    shelf = Library(Store(filled))
    other = Source(mean=(0.1, 0.1, 0.1), std=(1, 1, 1))
    assert other.label == DEFAULT.label
    shelf.store.remember(other)
    os.utime(filled / "studies" / other.id / "source.json", (1, 1))  # older than the default
    found = studies(shelf)
    assert list(found) == [DEFAULT.label, f"{DEFAULT.label} ({other.digest})"]
    assert list(found.values()) == [DEFAULT, other]


def test_a_group_of_another_network_in_focus(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Library(Store(filled)).study(DEFAULT)
    assert study is not None
    for chosen, expected in (("blocks.3.attn.qkv", "conv1"), ("layer3.0.conv1", "layer3.0.conv1")):
        monkeypatch.setattr("streamlit.session_state", {"group": chosen})
        assert focus(study) == expected


def test_a_shared_address_opens_the_same_view(filled: Path) -> None:
    app = open_page("prune", remain="30", budget="Parameters", compensate="Scalar", allocation="Uniform")
    app = finish(app, "derive")
    assert app.slider(key="remain").value == 30
    assert 27 <= float(metric(app, "Parameters").rstrip("%")) <= 30.01
