"""Small inputs for figures."""

import numpy as np
import plotly.graph_objects as go

from app import figures as f
from app.figures import Block

RNG = np.random.default_rng(0)
CLASSES = [str(i) for i in range(10)]
LAYERS = ["a.conv1", "b.conv1"]
SERIES = [
    f.Series("jacobian", "Jacobian", [10.0, 3.0], upper=False),
    f.Series("certified", "operator norms", [1e9, None], upper=True),
]
ALONE = {"layer": ["a", "b"], "measured": [0.2, 0.1], "bound": [0.3, 0.1], "remain": [0.8, 0.5]}


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
