"""What all figures share: they are valid, stay small, label their axes, and have readable names and colours."""

import json
from collections.abc import Callable

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from app import figures as f
from modhifi.lipschitz import Gains

from .samples import ALONE, CLASSES, LAYERS, RNG, SERIES, blocks, strips

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
    lambda: f.class_specific(RNG.random((10, 3)), CLASSES, [("a", 0), ("a", 1), ("b", 5)], ["3"]),
    lambda: f.relearning([0, 5, 20], {"original": [1, 1, 1], "logit mask": [0, 0, 1], "edited": [0, 0, 0.9]}),
    lambda: f.per_class({c: {"before": 1.0, "after": None} for c in CLASSES}, ["3"]),
]


@pytest.mark.parametrize("draw", PLAIN)
def test_every_figure_is_whole(draw: Callable[[], go.Figure]) -> None:
    figure = draw()
    json.loads(figure.to_json())
    assert figure.layout.yaxis.title.text
    assert figure.layout.height <= 400
    assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)", "the page's own background, light or dark"


def test_names_under_an_axis_lose_what_all_share_and_stay_apart() -> None:
    assert f.short_names(["layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1"]) == ["layer1.0", "layer1.1", "layer2.0"]
    assert f.short_names(["layer1.0.conv1", "layer1.0.conv2"]) == ["conv1", "conv2"]
    assert f.short_names(["features.0", "features.3"]) == ["0", "3"]
    assert f.short_names(["only.one"]) == ["only.one"]


def test_long_names_keep_their_numbers_and_their_end() -> None:
    assert f.shorten("layer3.0.conv1") == "layer3.0.conv1"
    assert f.shorten("denseblock3.denselayer12.conv2") == "d3.d12.conv2"
    assert len(f.shorten("encoder.layers.11.self_attention.a_very_long_projection")) == 18


def test_colours_are_seen_on_light_and_on_dark() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for colour in (f.BLUE, f.ORANGE, f.GREY):
        for background in ("#FFFFFF", "#10161F"):
            high, low = sorted((luminance(colour), luminance(background)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 3, f"{colour} on {background}"
