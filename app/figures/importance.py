"""Figures of the Importance page: every component of every group, then one group in detail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from ..texts import chart_text
from ._base import (
    BLUE,
    GREY,
    KINDS,
    MOST_MARKS,
    ORANGE,
    SCALE,
    Array,
    chart_texts,
    fidelity_heatmap,
    finish,
    reference_line,
    short_names,
    shorten,
)

_CLASSES = 40


@dataclass(frozen=True)
class Strip:
    """One group in the overview: (C,) ``fidelity`` from the bottom up, and the size of its HiFi set."""

    name: str
    kind: str
    fidelity: Array
    hifi: int


def overview(strips: Sequence[Strip], focus: str | None, eta: float, cumulative: bool = False) -> go.Figure:
    """Every component of every group: one column per group, in forward order, most important component at the bottom.

    Colour is the fidelity of each component on its own or, if ``cumulative``, that of all components up to it. A
    symbol above a column marks its kind (none: channels). ``customdata[0]`` of every mark is the group's name.
    """
    per_group = max(4, MOST_MARKS // max(1, len(strips)))
    x: list[int] = []
    base: list[float] = []
    height: list[float] = []
    value: list[float] = []
    custom: list[tuple[str, str, float, str]] = []
    for column, strip in enumerate(strips):
        size, rank = len(strip.fidelity), 0
        for piece in np.array_split(strip.fidelity, min(size, per_group)):
            one = float(piece[-1] if cumulative else piece.mean())
            last = rank + len(piece)
            ranks = f"rank {last}" if len(piece) == 1 else f"ranks {rank + 1} to {last}"
            x.append(column)
            base.append(100 * rank / size)
            height.append(100 * len(piece) / size)
            value.append(one)
            custom.append((chart_text(strip.name), f"top {last}" if cumulative else ranks, one, strip.kind))
            rank = last
    top = 1.0 if cumulative else max(value, default=0.0) or 1.0
    scale = {"color": np.maximum(value, 0.0), "colorscale": SCALE, "cmin": 0.0, "cmax": top}
    figure = go.Figure(
        go.Bar(
            x=x,
            y=height,
            base=base,
            width=0.86,
            customdata=custom,
            marker={
                **scale,
                # Same colour as the mark; otherwise the background shows through thin gaps.
                "line": {"width": 0.8, **scale},
                "colorbar": {"title": {"text": "fidelity", "side": "right"}, "thickness": 12, "len": 1.0},
            },
            hovertemplate="<b>%{customdata[0]}</b> (%{customdata[3]})<br>%{customdata[1]}<br>"
            "fidelity %{customdata[2]:.4f}<extra></extra>",
            showlegend=False,
        )
    )
    heights = [100 * s.hifi / len(s.fidelity) for s in strips]
    figure.add_scatter(
        x=[
            end for c in range(len(strips)) for end in (c - 0.46, c + 0.46, None)
        ],  # None breaks the line between columns
        y=[end for h in heights for end in (h, h, None)],
        mode="lines",
        line={"width": 3, "color": ORANGE},
        name=f"HiFi set size, η = {eta:.2f}",
        hoverinfo="skip",
    )
    for kind, (symbol, label) in KINDS.items():
        columns = [column for column, strip in enumerate(strips) if strip.kind == kind]
        if columns:
            figure.add_scatter(
                x=columns,
                y=[106] * len(columns),
                mode="markers",
                marker={"symbol": symbol, "size": 8, "color": GREY},
                customdata=[(chart_text(strips[column].name),) for column in columns],
                name=label,
                hovertemplate="<b>%{customdata[0]}</b><extra>%{fullData.name}</extra>",
            )
    names = [s.name for s in strips]
    if focus in names:
        column = names.index(focus)
        box = {"type": "rect", "x0": column - 0.48, "x1": column + 0.48, "y0": -1, "y1": 101}
        figure.add_shape(**box, line={"color": ORANGE, "width": 2})
    figure.update_layout(barmode="overlay", bargap=0.1, dragmode=False, clickmode="event+select")
    figure.update_xaxes(
        tickvals=list(range(len(strips)))[:: -(-len(strips) // 32)],
        ticktext=[chart_text(shorten(name)) for name in short_names(names)[:: -(-len(strips) // 32)]],
        tickangle=-35 if len(names) > 8 else 0,
    )
    figure.update_xaxes(title="group, in forward order", showgrid=False, range=[-0.6, len(strips) - 0.4])
    figure.update_yaxes(
        title="components, most important first",
        tickvals=[0, 20, 40, 60, 80, 100],
        ticktext=["0%", "20%", "40%", "60%", "80%", "100%"],
        range=[-1.5, 111 if any(s.kind in KINDS for s in strips) else 101.5],
        showgrid=False,
        zeroline=False,
    )
    return finish(figure, 340)


def singletons(fidelity: Array, chosen: NDArray[np.bool_]) -> go.Figure:
    """Singleton fidelity of one group, (C,) in the order shown; ``chosen`` (C,) marks the HiFi set.

    Above 1,000 components, neighbours are averaged.
    """
    pieces = np.array_split(np.arange(len(fidelity)), min(len(fidelity), 1000))
    figure = go.Figure()
    for inside, name, colour in ((True, "in the HiFi set", BLUE), (False, "other components", GREY)):
        mine = [piece for piece in pieces if bool(chosen[piece].mean() >= 0.5) == inside]
        figure.add_bar(
            x=[1 + float(piece.mean()) for piece in mine],
            y=[float(fidelity[piece].mean()) for piece in mine],
            width=[0.86 * len(piece) for piece in mine],
            name=name,
            marker={"color": colour, "line": {"width": 0}},
            hovertemplate="rank %{x}<br>fidelity %{y:.4f}<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(barmode="overlay")
    figure.update_xaxes(title="components, by singleton fidelity", showgrid=False)
    figure.update_yaxes(title="singleton fidelity", rangemode="tozero")
    return finish(figure, 300)


def curves(greedy: Array, naive: Array, eta: float, hifi: int) -> go.Figure:
    """Fidelity of the first k = 0..C components of both orders, (C+1,) each; η and the size of the HiFi set are
    marked.
    """
    figure = go.Figure()
    k = np.arange(len(greedy))
    hover = "%{x} components<br>fidelity %{y:.4f}"
    figure.add_scatter(
        x=k, y=greedy, mode="lines", name="greedy", line={"color": BLUE, "width": 2.5}, hovertemplate=hover
    )
    figure.add_scatter(
        x=k,
        y=naive,
        mode="lines",
        name="naive",
        line={"color": ORANGE, "width": 2, "dash": "dash"},
        hovertemplate=hover,
    )
    reference_line(figure, "dot", GREY, y=eta)
    figure.add_scatter(
        x=[hifi],
        y=[greedy[hifi]],
        mode="markers",
        name=f"HiFi set: {hifi}",
        marker={"color": BLUE, "size": 11, "symbol": "circle-open", "line": {"width": 3}},
        hovertemplate=hover,
    )
    figure.add_annotation(x=len(greedy) - 1, y=eta, text=f"η = {eta:.2f}", showarrow=False, yshift=-10, xanchor="right")
    figure.update_xaxes(title="components kept", rangemode="tozero")
    low = min(0.0, *greedy, *naive)  # negative only without compensation
    figure.update_yaxes(title="subset fidelity", range=[max(low, -1.0) * 1.02, 1.02])
    return finish(figure, 300)


def outputs(table: Array) -> go.Figure:
    """Singleton fidelity for each output, (O, C); tables above about 5,000 cells are averaged."""
    rows = min(table.shape[0], 64)
    columns = min(table.shape[1], MOST_MARKS // rows)
    blocks = [np.array_split(part, columns, axis=1) for part in np.array_split(table, rows, axis=0)]
    small = np.array([[cell.mean() for cell in row] for row in blocks])
    figure = fidelity_heatmap(small, "component %{x}<br>output %{y}")
    figure.update_xaxes(title="component (input channel)", showgrid=False)
    figure.update_yaxes(title="output channel", autorange="reversed", showgrid=False)
    return finish(figure, 340)


def by_class(table: Array, classes: Sequence[str], components: Sequence[int]) -> go.Figure:
    """Singleton fidelity by predicted class, (K, C) with columns as in ``components``.

    Above about 5,000 cells, neighbouring columns are averaged. Of more than 40 classes, the 40 that differ most from
    the mean are shown.
    """
    if len(classes) > _CLASSES:
        apart = np.linalg.norm(table - table.mean(0), axis=1)
        rows = np.sort(np.argsort(-apart, kind="stable")[:_CLASSES])
        table, classes = table[rows], [classes[row] for row in rows]
    pieces = np.array_split(np.arange(len(components)), min(len(components), MOST_MARKS // max(1, len(classes))))
    small = np.array([table[:, piece].mean(1) for piece in pieces]).T
    labels = [
        f"component {components[p[0]]}" if len(p) == 1 else f"{len(p)} components, ranks {p[0] + 1} to {p[-1] + 1}"
        for p in pieces
    ]
    figure = fidelity_heatmap(
        small,
        "class %{y}, %{customdata}",
        x=[1 + float(piece.mean()) for piece in pieces],
        y=chart_texts(classes),
        customdata=np.broadcast_to(np.array(labels), small.shape),
    )
    figure.update_xaxes(title="components, by singleton fidelity", showgrid=False)
    figure.update_yaxes(title="predicted class", type="category", autorange="reversed", showgrid=False)
    return finish(figure, min(400, 120 + 24 * len(classes)))
