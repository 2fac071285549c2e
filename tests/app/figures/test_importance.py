"""Figures of the Importance page."""

import numpy as np
import pytest

from app import figures as f

from .samples import RNG, marks, strips


def test_large_networks_are_aggregated() -> None:
    assert marks(f.overview(strips(120, 2048), None, 0.8)) < 6000
    assert marks(f.singletons(np.linspace(1, 0, 20_000), np.arange(20_000) < 90)) <= 1000
    assert marks(f.outputs(RNG.random((2048, 2048)))) <= 5000
    assert marks(f.by_class(RNG.random((300, 2048)), [str(i) for i in range(300)], list(range(2048)))) <= 5000


def test_overview_shows_every_component_and_names_its_group() -> None:
    given = strips(3, 16)
    bars, line, stream, neurons = f.overview(given, "layer1.0.conv1", 0.8).data
    assert len(bars.x) == 48
    assert [entry[0] for entry in bars.customdata[:16]] == ["layer0.0.conv1"] * 16
    assert [entry[2] for entry in bars.customdata[16:32]] == pytest.approx(list(given[1].fidelity))
    assert sum(bars.y[:16]) == pytest.approx(100)
    assert line.y[:2] == (25, 25)
    assert (stream.name, stream.x, neurons.x) == ("residual stream", (1,), (2,)), "plain channels have no sign"
    assert len(f.overview(given, "layer1.0.conv1", 0.8).layout.shapes) == 1
    assert not f.overview(given, None, 0.8).layout.shapes


def test_aggregation_keeps_the_mean() -> None:
    table = RNG.random((128, 160))
    shown = np.array(f.outputs(table).data[0].z)
    assert shown.mean() == pytest.approx(table.mean(), rel=1e-3)


def test_of_many_classes_those_that_differ_are_shown() -> None:
    table = np.full((100, 8), 0.2)
    table[[17, 60]] = np.eye(8)[:2]
    shown = f.by_class(table, [f"class {i}" for i in range(100)], list(range(8))).data[0]
    assert {"class 17", "class 60"} <= set(shown.y)
    assert len(shown.y) == 40
    assert shown.customdata[0][3] == "component 3"
