"""Figures of the Bounds page: Lipschitz constants, their convergence, and bound against measured error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from modhifi.lipschitz import Growth, estimators

from ..texts import chart_text
from ._base import BLUE, GREY, ORANGE, PINK, band, chart_texts, finish, log_axis, names_axis, placeholder, short_names

_MARKS = {
    "directional": (BLUE, "circle"),
    "jacobian": (ORANGE, "diamond"),
    "random": (GREY, "x"),
    "pairs": ("#0F9D8A", "square"),
    "certified": ("#B455C8", "triangle-down"),
}
# For estimators that somebody registers: 3 colours and 5 symbols, so the first 15 of them differ from each other.
_MORE_COLOURS = (PINK, "#6B7FD7", "#8A8A00")
_MORE_SYMBOLS = ("cross", "star", "hexagon", "triangle-up", "pentagon")


@dataclass(frozen=True)
class Series:
    """Constants from one estimator: one value per layer, None where it has none; ``upper``: they are upper bounds."""

    name: str
    title: str
    values: Sequence[float | None]
    upper: bool


def constants(layers: Sequence[str], series: Sequence[Series], statistic: str) -> go.Figure:
    """Lipschitz constants from each layer to the logits, in forward order, on a logarithmic axis. Upper bounds are
    dotted.

    ``customdata[0]`` of every mark is the layer.
    """
    figure = go.Figure()
    names = short_names(layers)
    size = 9 if len(names) <= 40 else 6
    for one in series:
        colour, symbol = _mark(one.name)
        title = chart_text(one.title)
        sign = "≤" if one.upper else "≥" if statistic == "Largest" else ""
        what = "upper bound" if one.upper else statistic.lower()
        figure.add_scatter(
            x=chart_texts(names),
            y=[value if value else None for value in one.values],
            mode="lines+markers",
            name=f"{sign} {title}".strip(),
            line={"color": colour, "width": 1, "dash": "dot" if one.upper else "solid"},
            marker={"color": colour, "size": size, "symbol": symbol},
            customdata=[[layer] for layer in chart_texts(layers)],
            hovertemplate=f"<b>%{{customdata[0]}}</b><br>{title}, {what}: %{{y:.3g}}<extra></extra>",
        )
    values = [value for one in series for value in one.values if value]
    if not values:
        placeholder(figure, "Select an estimator")
    figure.update_xaxes(title="layer, in forward order", **names_axis(names))
    figure.update_yaxes(title="logit error per unit of local error", **log_axis(values))
    return finish(figure, 330)


def _mark(name: str) -> tuple[str, str]:
    """Colour and symbol of an estimator, the same whichever others are shown."""
    if name in _MARKS:
        return _MARKS[name]
    others = [one for one in estimators() if one not in _MARKS]
    place = others.index(name) if name in others else len(others)
    return _MORE_COLOURS[place % len(_MORE_COLOURS)], _MORE_SYMBOLS[place % len(_MORE_SYMBOLS)]


def growth(found: Growth) -> go.Figure:
    """How an estimate depends on the number of samples: expected largest gain with the central 90% of random draws, and
    root-mean-square gain with its 90% confidence band.
    """
    figure = go.Figure()
    sizes = found.sizes.tolist()
    for low, high, colour, name in (
        (found.low, found.high, BLUE, "largest"),
        (found.rms_low, found.rms_high, ORANGE, "root mean square"),
    ):
        band(figure, sizes, low.tolist(), high.tolist(), colour, f"{name}, 90%")
    figure.add_scatter(
        x=sizes,
        y=found.maximum.tolist(),
        mode="lines+markers",
        name="largest gain",
        line={"color": BLUE, "width": 2},
        marker={"size": 5},
        hovertemplate="%{x} samples: expected largest gain %{y:.3g}<extra></extra>",
    )
    figure.add_scatter(
        x=sizes,
        y=[found.rms] * len(sizes),
        mode="lines",
        name="root mean square",
        line={"color": ORANGE, "width": 2, "dash": "dash"},
        hovertemplate="root-mean-square gain %{y:.3g}<extra></extra>",
    )
    ends = [size for size in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if size <= sizes[-1]]
    figure.update_xaxes(title="samples", type="log", tickvals=ends, ticktext=[f"{end:,}" for end in ends])
    top = float(max(found.high.max(), found.rms_high.max())) or 1.0
    figure.update_yaxes(title="gain (logit / local error)", range=[0, 1.1 * top])
    return finish(figure, 270)


def bound_scatter(
    measured: Sequence[float], bound: Sequence[float], names: Sequence[str], alone: Mapping[str, Sequence[Any]]
) -> go.Figure:
    """Bound against measured RMS error of the logits, on logarithmic axes with the line y = x: one large point per
    plan, and one small point per layer modified alone (``alone``: columns layer, measured, bound, remain).

    ``customdata[0]`` of a small point is the layer.
    """
    figure = go.Figure()
    values = [v for v in (*measured, *bound, *alone["measured"], *alone["bound"]) if v > 0]
    if values:
        ends = [min(values) / 1.6, max(values) * 1.6]
        figure.add_scatter(
            x=ends,
            y=ends,
            mode="lines",
            name="y = x (tight bound)",
            line={"color": GREY, "width": 1.5, "dash": "dash"},
            hoverinfo="skip",
        )
    else:
        placeholder(figure, "No measurements yet")
    figure.add_scatter(
        x=list(alone["measured"]),
        y=list(alone["bound"]),
        mode="markers",
        name="layer modified alone",
        marker={"color": ORANGE, "size": 6, "symbol": "diamond", "opacity": 0.75},
        customdata=list(zip(chart_texts(alone["layer"]), alone["remain"], strict=True)),
        hovertemplate="<b>%{customdata[0]}</b> alone, plan keeps %{customdata[1]:.0%}<br>bound %{y:.3g}<br>measured "
        "%{x:.3g}<extra></extra>",
    )
    figure.add_scatter(
        x=list(measured),
        y=list(bound),
        mode="markers",
        name="whole plan",
        marker={"color": BLUE, "size": 11},
        text=chart_texts(names),
        hovertemplate="%{text}<br>bound %{y:.3g}<br>measured %{x:.3g}<extra></extra>",
    )
    figure.update_xaxes(title="measured RMS error of the logits", **log_axis(values))
    figure.update_yaxes(title="bound on that error", **log_axis(values))
    return finish(figure, 320)


def tightness(layers: Sequence[str], bound: Sequence[float], measured: Sequence[float]) -> go.Figure:
    """Bound beside measured error of each layer modified alone, on a logarithmic axis."""
    figure = go.Figure()
    names = short_names(layers)
    x = chart_texts(names)
    figure.add_bar(x=x, y=list(bound), name="bound", marker={"color": BLUE})
    figure.add_bar(x=x, y=list(measured), name="measured", marker={"color": ORANGE, "pattern": {"shape": "/"}})
    figure.update_traces(
        customdata=[[layer] for layer in chart_texts(layers)],
        hovertemplate="<b>%{customdata[0]}</b><br>%{y:.3g}<extra>%{fullData.name}</extra>",
    )
    figure.update_xaxes(title="layer modified alone", **names_axis(names))
    figure.update_yaxes(title="RMS error of the logits", **log_axis([*bound, *measured]))
    return finish(figure, 300)
