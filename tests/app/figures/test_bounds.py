"""Figures of the Bounds page."""

import pytest

from app import figures as f
from modhifi.lipschitz import Estimator, _estimators, estimators, register_estimator
from modhifi.registry import Registry

from .samples import ALONE, LAYERS, SERIES


def test_the_diagonal_of_the_bound_scatter_is_y_equals_x() -> None:
    diagonal, alone, plans = f.bound_scatter([0.1, 0.5], [1, 3], ["80%", "50%"], ALONE).data
    assert tuple(diagonal.x) == tuple(diagonal.y)
    assert diagonal.x[0] < 0.1
    assert diagonal.x[1] > 3
    assert [entry[0] for entry in alone.customdata] == ["a", "b"]
    assert (plans.x, plans.y, plans.text) == ((0.1, 0.5), (1, 3), ("80%", "50%"))


def test_bounds_from_below_and_from_above_are_told_apart() -> None:
    below, above = f.constants(LAYERS, SERIES, "Largest").data
    assert (below.name, above.name) == ("≥ Jacobian", "≤ operator norms")
    assert (below.line.dash, above.line.dash) == ("solid", "dot")
    assert below.marker.symbol != above.marker.symbol
    assert above.y == (1e9, None)
    assert [entry[0] for entry in below.customdata] == LAYERS
    assert f.constants(LAYERS, SERIES[:1], "Root mean square").data[0].name == "Jacobian"  # of these samples: no bound


def test_a_further_registered_estimator_has_a_mark_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    known: Registry[Estimator] = Registry("estimator")
    known.update(_estimators._ESTIMATORS)
    monkeypatch.setattr(_estimators, "_ESTIMATORS", known)
    names = ["mine", "yours", "theirs", "another"]
    for name in names:
        register_estimator(Estimator(name, name, "lower", "Lower bound.", lambda *_: {}))
    every = [*estimators()]
    figure = f.constants(LAYERS, [f.Series(name, name, [1.0, 2.0], upper=False) for name in every], "Largest")
    marks = {(trace.line.color, trace.marker.symbol) for trace in figure.data}
    assert len(marks) == len(every) == 9
    alone = f.constants(LAYERS, [f.Series("yours", "yours", [1.0, 2.0], upper=False)], "Largest").data[0]
    among = figure.data[every.index("yours")]
    assert (alone.line.color, alone.marker.symbol) == (among.line.color, among.marker.symbol)
    assert f.constants(LAYERS, [f.Series("not registered", "x", [1.0, 2.0], upper=False)], "Largest").data
