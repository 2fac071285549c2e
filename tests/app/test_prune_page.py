"""The Prune page: controls, predictions, measurements, and what is kept of them."""

from pathlib import Path
from typing import Any

import pytest

import modhifi
from app.selection import DEFAULT
from app.session import library
from modhifi.errors import Cancelled, UserError

from .paging import finish, metric, open_page, press, settled, words


def test_curves_that_are_missing_can_be_cancelled_and_asked_for_again(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tabulate(*_: Any, **__: Any) -> None:
        raise Cancelled

    monkeypatch.setattr("modhifi.study._study.tabulate_order", tabulate)
    app = open_page("prune")
    app.segmented_control(key="compensate").set_value("scalar")
    app = settled(app)
    assert "cancelled." in words(app)
    assert not [m for m in app.metric if m.label == "Predicted agreement"]
    monkeypatch.undo()
    press(app, "Derive again")
    job = library().jobs.latest("derive")
    assert job is not None
    assert job.wait(60)
    app = settled(app)
    assert metric(app, "Predicted agreement")


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
    press(app, "Fix")
    assert f"Fixed: {name} keeps 2" in words(app)
    assert metric(app, "Parameters") != planned
    press(app, "Set minimum")
    assert f"Minimum: {name} keeps 2" in words(app)
    assert "Fixed:" not in words(app)
    press(app, "Undo")
    assert f"Fixed: {name} keeps 2" in words(app)
    press(app, "Undo")
    assert f"{name} keeps" not in words(app)
    assert metric(app, "Parameters") == planned
    press(app, "Redo")
    press(app, "Redo")
    assert f"Minimum: {name} keeps 2" in words(app)
    assert next(b for b in app.button if b.label == "Redo").disabled
    assert app.query_params["hand"] == f"{DEFAULT.digest}:{name}>2"
    shared = open_page("prune", hand=f"{DEFAULT.digest}:{name}>2,nowhere=3,conv1=9999,layer3.0.conv1=7")
    assert f"Minimum: {name} keeps 2" in words(shared)
    assert "Fixed: layer3.0.conv1 keeps 7" in words(shared)
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
    assert "A latency budget needs layer timings" in words(app)
    press(app, "Time the layers")
    app = finish(app, "latency")
    assert metric(app, "Predicted latency").endswith(" ms")
    assert "Time again" in {button.label for button in app.button}
    assert float(metric(open_page("prune"), "Predicted latency").removesuffix(" ms")) > 0, "every budget shows it now"


def test_another_score_is_derived_and_decides(filled: Path) -> None:
    app = open_page("prune", compensate="None", score="L2 norm")
    app = finish(app, "derive")
    (agreement,) = [m for m in app.metric if m.label == "Predicted agreement"]
    assert float(str(agreement.value).rstrip("%")) < 100


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
    assert (dense["Plan"], dense["FLOPs"], dense["Change"]) == ("Original network", 100, 0)
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


def test_a_shared_address_opens_the_same_view(filled: Path) -> None:
    app = open_page("prune", remain="30", budget="Parameters", compensate="Scalar", allocation="Uniform")
    app = finish(app, "derive")
    assert app.slider(key="remain").value == 30
    assert 27 <= float(metric(app, "Parameters").rstrip("%")) <= 30.01
