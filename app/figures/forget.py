"""Figures of the Forget page: class-specific components, the search for the strength, and the attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from ..texts import chart_text
from ._base import BLUE, GREY, ORANGE, Array, chart_texts, fidelity_heatmap, finish

_CONFUSED = 70


def class_specific(
    table: Array, classes: Sequence[str], components: Sequence[tuple[str, int]], chosen: Sequence[str]
) -> go.Figure:
    """Singleton fidelity of components (columns: group and index) for every class (rows), (K, M); chosen classes are
    marked.
    """
    names = [f"{chart_text(group)} {index}" for group, index in components]
    rows = [f"▸ {chart_text(name)}" if name in chosen else chart_text(name) for name in classes]
    figure = fidelity_heatmap(
        table,
        "class %{y}, component %{customdata}",
        x=list(range(1, len(names) + 1)),
        y=rows,
        customdata=np.broadcast_to(np.array(names, dtype=object), table.shape),
    )
    figure.update_xaxes(title="components, most specific first", showgrid=False)
    figure.update_yaxes(title="predicted class", type="category", autorange="reversed", showgrid=False)
    return finish(figure, min(420, 120 + 24 * len(classes)))


def confusion(matrix: Array, classes: Sequence[str]) -> go.Figure:
    """Confusion matrix, (K, K) counts with true classes as rows; colour is the share of the row, so that small classes
    show.

    Of more than 70 classes, the 70 with the most errors are shown.
    """
    if len(classes) > _CONFUSED:
        wrong = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
        chosen = np.sort(np.argsort(-wrong, kind="stable")[:_CONFUSED])
        matrix, classes = matrix[np.ix_(chosen, chosen)], [classes[number] for number in chosen]
    classes = chart_texts(classes)
    share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    small = len(classes) <= 20
    figure = go.Figure(
        go.Heatmap(
            z=share,
            x=classes,
            y=classes,
            customdata=matrix,
            colorscale=[[0.0, "rgba(124,135,152,0.08)"], [0.02, "rgba(47,127,224,0.25)"], [1.0, BLUE]],
            zmin=0,
            zmax=100,
            xgap=1 if small else 0,
            ygap=1 if small else 0,
            showscale=not small,
            colorbar={"title": {"text": "share of the class", "side": "right"}, "ticksuffix": "%", "thickness": 12},
            hovertemplate="true class %{y}, predicted %{x}<br>%{customdata} images, %{z:.1f}%<extra></extra>",
        )
    )
    if small:
        for strong in (True, False):  # white text on dark cells, the page's text colour on pale ones
            cells = [(t, a) for t, a in np.argwhere(matrix > 0) if (share[t, a] > 40) == strong]
            figure.add_scatter(
                x=[classes[a] for _, a in cells],
                y=[classes[t] for t, _ in cells],
                text=[str(int(matrix[t, a])) for t, a in cells],
                mode="text",
                textfont={"color": "#FFFFFF"} if strong else None,
                hoverinfo="skip",
                showlegend=False,
            )
    figure.update_xaxes(title="predicted class", type="category", showgrid=False, dtick=1 if small else None)
    figure.update_yaxes(
        title="true class", type="category", autorange="reversed", showgrid=False, dtick=1 if small else None
    )
    return finish(figure, 380)


def forgetting_curve(points: Sequence[Mapping[str, float]], taken: float, unit: str) -> go.Figure:
    """Retain accuracy against forget accuracy on the calibration images, starting from the original network; ``taken``
    is the selected strength.
    """
    ordered = sorted(points, key=lambda point: point["strength"])
    x = [100 * point["forget_accuracy"] for point in ordered]
    y = [100 * point["retain_accuracy"] for point in ordered]
    strengths = [f"{point['strength']:.3g}" for point in ordered]
    hover = f"{chart_text(unit)}: %{{customdata}}<br>forget %{{x:.1f}}%, retain %{{y:.1f}}%<extra></extra>"
    figure = go.Figure()
    figure.add_scatter(
        x=x,
        y=y,
        customdata=strengths,
        mode="lines+markers",
        name="strengths tried",
        line={"color": GREY},
        hovertemplate=hover,
    )
    chosen = [i for i, point in enumerate(ordered) if point["strength"] == taken]
    figure.add_scatter(
        x=[x[i] for i in chosen],
        y=[y[i] for i in chosen],
        customdata=[strengths[i] for i in chosen],
        mode="markers",
        name="selected strength",
        marker={"color": BLUE, "size": 13, "symbol": "diamond"},
        hovertemplate=hover,
    )
    figure.update_xaxes(title="forget accuracy", ticksuffix="%", range=[104, -4])
    figure.update_yaxes(title="retain accuracy", ticksuffix="%")
    return finish(figure, 300)


def relearning(steps: Sequence[int], curves: Mapping[str, Sequence[float]]) -> go.Figure:
    """Forget accuracy after a number of training steps on images of the class, one line per network."""
    styles = {
        "original": (GREY, "solid", "circle"),
        "logit mask": (ORANGE, "dot", "square"),
        "edited": (BLUE, "solid", "diamond"),
    }
    figure = go.Figure()
    for name, values in curves.items():
        colour, dash, symbol = styles[name]
        figure.add_scatter(
            x=[str(step) for step in steps],
            y=[100 * value for value in values],
            mode="lines+markers",
            name=name,
            line={"color": colour, "dash": dash},
            marker={"symbol": symbol, "size": 8},
            hovertemplate="%{x} steps: %{y:.1f}%<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(title="relearning steps", type="category", showgrid=False)
    figure.update_yaxes(title="forget accuracy", ticksuffix="%", range=[-4, 104])
    return finish(figure, 300)


def per_class(classes: Mapping[str, Mapping[str, float | None]], forgotten: Sequence[str]) -> go.Figure:
    """Accuracy of each class in the original and the edited or pruned network; forgotten classes are hatched."""
    names = list(classes)
    values = {
        when: [None if classes[n][when] is None else 100 * float(classes[n][when] or 0) for n in names]
        for when in ("before", "after")
    }
    hatch = ["/" if name in forgotten else "" for name in names]
    figure = go.Figure()
    x = chart_texts(names)
    figure.add_bar(x=x, y=values["before"], name="original", marker={"color": GREY})
    figure.add_bar(x=x, y=values["after"], name="modified", marker={"color": BLUE, "pattern": {"shape": hatch}})
    figure.update_traces(hovertemplate="class %{x}<br>%{y:.1f}%<extra>%{fullData.name}</extra>")
    figure.update_xaxes(title="class", type="category", showgrid=False)
    figure.update_yaxes(title="accuracy", ticksuffix="%", range=[0, 104])
    return finish(figure, 280)
