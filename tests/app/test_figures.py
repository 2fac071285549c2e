"""Figures: what is drawn is what was given, they stay small, and every axis says what it shows."""

import json
from collections.abc import Callable

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from app import figures as f
from app.network import Block, stage_of
from modhifi.lipschitz import Gains

RNG = np.random.default_rng(0)


def strips(groups: int, components: int) -> list[f.Strip]:
    sorted_ = np.sort(RNG.random((groups, components)), axis=1)[:, ::-1]
    kinds = ["channels", "stream", "neurons", "heads"]
    return [f.Strip(f"layer{i}.0.conv1", kinds[i % 4], row, components // 4) for i, row in enumerate(sorted_)]


def marks(figure: go.Figure) -> int:
    return sum(np.size(trace.z) if trace.type == "heatmap" else len(trace.x) for trace in figure.data)


def blocks(count: int, streams: bool = True) -> list[Block]:
    return [
        Block(
            f"g{i}",
            "stream" if streams and i % 5 == 0 else "neurons",
            8 + i,
            2 * i,
            2 * i + 3,
            f"s{i // 4}",
            0.1 * (i % 9),
            0.01 * i,
            1.0 + i,
        )
        for i in range(count)
    ]


CLASSES = [str(i) for i in range(10)]
LAYERS = ["a.conv1", "b.conv1"]
SERIES = [
    f.Series("jacobian", "Jacobian", [10.0, 3.0], upper=False),
    f.Series("certified", "operator norms", [1e9, None], upper=True),
]
ALONE = {"layer": ["a", "b"], "measured": [0.2, 0.1], "bound": [0.3, 0.1], "remain": [0.8, 0.5]}
PLAIN: list[Callable[[], go.Figure]] = [
    lambda: f.overview(strips(9, 32), "layer3.0.conv1", 0.8),
    lambda: f.singletons(np.linspace(1, 0, 64), np.arange(64) % 3 == 0),
    lambda: f.curves(np.linspace(0, 1, 65), np.linspace(0, 1, 65) ** 2, 0.8, 52),
    lambda: f.outputs(RNG.random((16, 16))),
    lambda: f.by_class(RNG.random((10, 64)), CLASSES, list(range(64))),
    lambda: f.constants(LAYERS, SERIES, "Largest"),
    lambda: f.constants(LAYERS, [], "Largest"),
    lambda: f.growth(Gains(torch.ones(9), torch.arange(9.0)).growth()),
    lambda: f.growth(Gains(torch.zeros(3), torch.zeros(3)).growth()),
    lambda: f.bound_scatter([0.1, 0.5], [1, 3], ["80%", "50%"], ALONE),
    lambda: f.bound_scatter([], [], [], {"layer": [], "measured": [], "bound": [], "remain": []}),
    lambda: f.tightness(["a", "b"], [1, 2], [0.5, 0.1]),
    lambda: f.allocation(["a", "b"], [3, 5], [16, 32]),
    lambda: f.trade_off([f.TradeOff("p", "half", 0.5, 97.0)], 99.0, 0.5, "p"),
    lambda: f.trade_off([f.TradeOff("p", "half", None, 97.0)], 99.0, None, "p", "latency"),
    lambda: f.network_map(blocks(12), "fidelity", "HiFi share", "g3"),
    lambda: f.network_map(blocks(4, streams=False), "constant", "Constant", None),
    lambda: f.trade_off([], None, None, None),
    lambda: f.confusion(np.eye(10) * 50, CLASSES),
    lambda: f.living(RNG.random((10, 3)), CLASSES, [("a", 0), ("a", 1), ("b", 5)], ["3"]),
    lambda: f.relearning([0, 5, 20], {"unchanged": [1, 1, 1], "logit mask": [0, 0, 1], "changed": [0, 0, 0.9]}),
    lambda: f.per_class({c: {"before": 1.0, "after": None} for c in CLASSES}, ["3"]),
]


@pytest.mark.parametrize("draw", PLAIN)
def test_every_figure_is_whole(draw: Callable[[], go.Figure]) -> None:
    figure = draw()
    json.loads(figure.to_json())
    assert figure.layout.yaxis.title.text
    assert figure.layout.height <= 400
    assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)", "the page's own background, light or dark"


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


def test_of_many_classes_those_that_are_confused_are_shown() -> None:
    matrix = np.diag(np.full(300, 9.0))
    matrix[200, 250] = matrix[17, 3] = 4.0
    shown = f.confusion(matrix, [f"class {number}" for number in range(300)]).data[0]
    assert np.size(shown.z) <= 5000
    assert {"class 3", "class 17", "class 200", "class 250"} <= set(shown.x)
    row, column = list(shown.y).index("class 200"), list(shown.x).index("class 250")
    assert shown.customdata[row][column] == 4


def test_the_diagonal_of_the_bound_scatter_is_y_equals_x() -> None:
    diagonal, alone, plans = f.bound_scatter([0.1, 0.5], [1, 3], ["80%", "50%"], ALONE).data
    assert tuple(diagonal.x) == tuple(diagonal.y)
    assert diagonal.x[0] < 0.1
    assert diagonal.x[1] > 3
    assert [entry[0] for entry in alone.customdata] == ["a", "b"]
    assert (plans.x, plans.y, plans.text) == ((0.1, 0.5), (1, 3), ("80%", "50%"))


def test_the_map_has_every_group_once_and_stays_small() -> None:
    figure = f.network_map(blocks(150), "cost", "FLOPs", "g7")
    bars, streams = figure.data
    assert sorted([e[0] for e in bars.customdata] + [e[0] for e in streams.customdata]) == sorted(
        f"g{i}" for i in range(150)
    )
    assert list(bars.y) == [8 + i for i in range(150) if i % 5]
    assert list(streams.base) == [2 * i for i in range(0, 150, 5)]
    assert set(streams.x) == {3}
    assert len(figure.layout.shapes) == 1
    ticks = figure.layout.xaxis2.tickvals
    assert 2 < len(ticks) <= 17
    assert min(np.diff(ticks)) >= (2 * 149 + 3) / 16  # no name upon another


def test_bounds_from_below_and_from_above_are_told_apart() -> None:
    below, above = f.constants(LAYERS, SERIES, "Largest").data
    assert (below.name, above.name) == ("≥ Jacobian", "≤ operator norms")
    assert (below.line.dash, above.line.dash) == ("solid", "dot")
    assert below.marker.symbol != above.marker.symbol
    assert above.y == (1e9, None)
    assert [entry[0] for entry in below.customdata] == LAYERS
    assert f.constants(LAYERS, SERIES[:1], "Root mean square").data[0].name == "Jacobian"  # of these samples: no bound


@pytest.mark.parametrize(
    ("layer", "stage"),
    [
        ("layer1.0.conv1", "layer1"),
        ("stages.2.blocks.0.mlp.fc1", "stages.2"),
        ("features.denseblock1.denselayer2.conv1", "features.denseblock1"),
        ("conv1", "conv1"),
        ("stem.conv", "stem"),
    ],
)
def test_stages(layer: str, stage: str) -> None:
    assert stage_of(layer) == stage


def test_a_class_without_images_has_no_bar() -> None:
    before, after = f.per_class({"a": {"before": 0.0, "after": None}}, []).data
    assert before.y == (0.0,)
    assert after.y == (None,)


def test_names_under_an_axis_lose_what_all_share_and_stay_apart() -> None:
    assert f._short(["layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1"]) == ["layer1.0", "layer1.1", "layer2.0"]
    assert f._short(["layer1.0.conv1", "layer1.0.conv2"]) == ["conv1", "conv2"]
    assert f._short(["features.0", "features.3"]) == ["0", "3"]
    assert f._short(["only.one"]) == ["only.one"]


def test_long_names_keep_their_numbers_and_their_end() -> None:
    assert f._cut("layer3.0.conv1") == "layer3.0.conv1"
    assert f._cut("denseblock3.denselayer12.conv2") == "d3.d12.conv2"
    assert len(f._cut("encoder.layers.11.self_attention.a_very_long_projection")) == 18


def test_colours_are_seen_on_light_and_on_dark() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for colour in (f.BLUE, f.ORANGE, f.GREY):
        for background in ("#FFFFFF", "#10161F"):
            high, low = sorted((luminance(colour), luminance(background)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 3, f"{colour} on {background}"


def test_where_a_class_lives_marks_the_chosen_rows() -> None:
    table = np.random.default_rng(0).random((3, 2))
    figure = f.living(table, ["a", "b", "c"], [("layer1", 4), ("layer2", 0)], ["b"])
    assert list(figure.data[0].y) == ["a", "▸ b", "c"]
    assert figure.data[0].customdata[0][0] == "layer1 4"


def test_the_curve_of_forgetting_goes_with_the_strength() -> None:
    points = [
        {"strength": s, "forget_accuracy": f, "retain_accuracy": r}
        for s, f, r in ((2.0, 0.0, 0.9), (0.0, 1.0, 0.98), (1.0, 0.2, 0.95))
    ]
    figure = f.forgetting_curve(points, 1.0, "λ")
    assert list(figure.data[0].x) == [100, 20, 0]
    assert (figure.data[1].x[0], figure.data[1].y[0]) == (20, 95)


def test_relearning_has_a_line_for_each_network() -> None:
    figure = f.relearning([0, 5], {"unchanged": [0.9, 1.0], "changed": [0.0, 0.5]})
    assert [trace.name for trace in figure.data] == ["unchanged", "changed"]
    assert list(figure.data[1].y) == [0, 50]
