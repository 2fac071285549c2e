"""The Bounds page."""

from pathlib import Path

import modhifi
from app.selection import DEFAULT
from app.session import library
from modhifi.lipschitz import estimators

from .paging import finish, metric, open_page, press, settled, words


def test_bounds_are_measured_and_kept(filled: Path) -> None:
    app = open_page("bounds")
    press(app, "Measure")
    app = finish(app, "bounds")
    said = words(app)
    for part in ("times the measured error; every point", "Layer by layer", "96 calibration samples instead"):
        assert part in said
    slack, layers, plans, _ = (frame.value for frame in app.dataframe)
    assert list(slack["Granularity"]) == ["layer", "block", "stage"]
    assert (slack["Tightness"] - slack["Worst-case gain"] * slack["Summation"]).abs().max() < 1e-6
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
    assert [one.label for one in app.multiselect] == ["Estimators to run"]  # random is still missing
    assert app.multiselect[0].options == ["Random"]
    app.button_group(key="estimators").set_value(["pairs", "certified"])
    app = settled(app)
    assert f"**≤ Operator norms.** {estimators()['certified'].says}" in words(app)
    assert f"**≥ Pairs.** {estimators()['pairs'].says}" in words(app)
    app.button_group(key="statistic").set_value("rms")
    assert "**Pairs.** Describes these samples only" in words(settled(app))
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
