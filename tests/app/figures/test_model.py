"""The network map, and the stages that label it."""

import numpy as np
import pytest

from app import figures as f
from app.network import stage_of

from .samples import blocks


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
