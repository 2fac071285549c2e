"""Figures: pure functions from a table to a Plotly figure. Text and grid follow the page's light or dark theme.

The colours keep at least 3:1 contrast on both backgrounds and stay apart for colour-blind readers (blue against orange,
and a second sign, dash or symbol, wherever two series meet). Large inputs are aggregated: no figure has more than about
5,000 marks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from modhifi.lipschitz import Growth

__all__ = [
    "ACCURACY",
    "BLUE",
    "GREY",
    "ORANGE",
    "PERPLEXITY",
    "Block",
    "Measure",
    "Series",
    "Strip",
    "TradeOff",
    "allocation",
    "band",
    "bound_scatter",
    "by_class",
    "confusion",
    "constants",
    "curves",
    "growth",
    "network_map",
    "outputs",
    "overview",
    "per_class",
    "sensitivity",
    "singletons",
    "tightness",
    "trade_off",
]

Array = NDArray[np.float64]

BLUE = "#2F7FE0"
ORANGE = "#D9730D"
GREY = "#7C8798"
_LARGEST = 5000
_SCALE = "Cividis"
_CLASSES = 40
_CONFUSED = 70
# What is not plain channels gets a sign above its column.
_SIGNS = {
    "stream": ("diamond", "residual stream"),
    "neurons": ("circle", "hidden neurons"),
    "heads": ("triangle-up", "attention heads"),
}
_LONGEST = 18


@dataclass(frozen=True)
class Strip:
    """One group of the overview: (C,) ``fidelity``, in the order from the bottom up, and the size of its HiFi set."""

    name: str
    kind: str
    fidelity: Array
    hifi: int


@dataclass(frozen=True)
class Block:
    """One group: where it begins and ends along the layers (in forward order), how many components it has, and what it could be
    coloured by: the share of it that is its HiFi set, the share of all FLOPs that it takes part in, its readers' largest
    Lipschitz constant.
    """

    name: str
    kind: str
    size: int
    start: int
    end: int
    stage: str
    fidelity: float
    cost: float
    constant: float

    def value(self, colour: str) -> float:
        return float(getattr(self, colour))


@dataclass(frozen=True)
class TradeOff:
    """One measured network; ``share`` is what it costs as a fraction of the dense one's, None where that was not measured."""

    id: str
    label: str
    share: float | None
    value: float
    """What it is worth, in the unit of the `Measure` that is drawn."""
    cost: str = ""


@dataclass(frozen=True)
class Measure:
    """What networks are compared by: the number ``name`` of an evaluation ``times`` so much. ``least`` and ``most`` bound the
    axis, where the measure has bounds; it reaches ``margin`` at least beyond what is shown.
    """

    name: str
    times: float
    unit: str
    digits: int
    least: float
    most: float | None
    margin: float

    def of(self, evaluation: Mapping[str, Any], when: str = "") -> float:
        """As it is drawn; ``when`` is ``_before`` for the unchanged network."""
        return self.times * float(evaluation[self.name + when])


ACCURACY = Measure("accuracy", 100.0, "%", 2, 0.0, 100.0, 1.0)
PERPLEXITY = Measure("perplexity", 1.0, "", 3, 1.0, None, 0.05)


def overview(strips: Sequence[Strip], focus: str | None, eta: float, together: bool = False) -> go.Figure:
    """Every component of every group: a column a group, in forward order, best at the bottom; colour is fidelity. A sign
    above a column says its kind (none: channels).

    Each component's own by default; with ``together`` the fidelity of all components up to it. A click on any mark gives
    ``customdata[0]``, the group's name.
    """
    per_group = max(4, _LARGEST // max(1, len(strips)))
    x: list[int] = []
    base: list[float] = []
    height: list[float] = []
    value: list[float] = []
    custom: list[tuple[str, str, float, str]] = []
    for column, strip in enumerate(strips):
        size, rank = len(strip.fidelity), 0
        for piece in np.array_split(strip.fidelity, min(size, per_group)):
            one = float(piece[-1] if together else piece.mean())
            last = rank + len(piece)
            number = f"number {last}" if len(piece) == 1 else f"numbers {rank + 1} to {last}"
            x.append(column)
            base.append(100 * rank / size)
            height.append(100 * len(piece) / size)
            value.append(one)
            custom.append((strip.name, f"the best {last}" if together else number, one, strip.kind))
            rank = last
    top = 1.0 if together else max(value, default=0.0) or 1.0
    scale = {"color": np.maximum(value, 0.0), "colorscale": _SCALE, "cmin": 0.0, "cmax": top}
    figure = go.Figure(
        go.Bar(
            x=x,
            y=height,
            base=base,
            width=0.86,
            customdata=custom,
            marker={
                **scale,
                # In the colour of the mark, or thin gaps between neighbours let the background through.
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
        name=f"size of the HiFi set, η = {eta:.2f}",
        hoverinfo="skip",
    )
    for kind, (sign, words) in _SIGNS.items():
        columns = [column for column, strip in enumerate(strips) if strip.kind == kind]
        if columns:
            figure.add_scatter(
                x=columns,
                y=[106] * len(columns),
                mode="markers",
                marker={"symbol": sign, "size": 8, "color": GREY},
                customdata=[(strips[column].name,) for column in columns],
                name=words,
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
        ticktext=[_cut(name) for name in _short(names)[:: -(-len(strips) // 32)]],
        tickangle=-35 if len(names) > 8 else 0,
    )
    figure.update_xaxes(title="group of components, in forward order", showgrid=False, range=[-0.6, len(strips) - 0.4])
    figure.update_yaxes(
        title="components, best first",
        tickvals=[0, 20, 40, 60, 80, 100],
        ticktext=["0%", "20%", "40%", "60%", "80%", "100%"],
        range=[-1.5, 111 if any(s.kind in _SIGNS for s in strips) else 101.5],
        showgrid=False,
        zeroline=False,
    )
    return _finish(figure, 340)


def network_map(blocks: Sequence[Block], colour: str, title: str, focus: str | None) -> go.Figure:
    """The network from left to right: a bar a group where it is written, as high as it has components; below, from where they
    are first written to where they are last read, the residual streams, as thick as they are wide. Stages are named above.

    ``colour``: which of the blocks' values colours them, ``title`` what it is called. A click gives
    ``customdata[0]``, the group's name.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.04, row_heights=[0.68, 0.32])
    streams = [block for block in blocks if block.kind == "stream"]
    inner = [block for block in blocks if block.kind != "stream"]
    values = np.array([block.value(colour) for block in blocks])
    logarithmic = bool(colour == "constant" and (values > 0).all())
    shown = np.log10(values) if logarithmic else values
    scale = {"colorscale": _SCALE, "cmin": float(shown.min()), "cmax": float(shown.max())}
    if scale["cmin"] == scale["cmax"]:
        scale["cmax"] = float(shown.max()) + 1.0
    bar = {"title": {"text": title, "side": "right"}, "thickness": 12}
    bar |= _powers(shown) if logarithmic else {"tickformat": ".0%"}
    of = dict(zip((block.name for block in blocks), shown.tolist(), strict=True))
    hover = (
        "<b>%{customdata[0]}</b> (%{customdata[1]})<br>%{customdata[2]} components<br>HiFi set %{customdata[3]:.0%} of them<br>"
        "takes part in %{customdata[4]:.1%} of the FLOPs<br>Lipschitz ≥ %{customdata[5]:.3g}<extra></extra>"
    )

    edge = {"width": 1, "color": GREY}  # the scale begins darker than a dark page

    def custom(some: Sequence[Block]) -> list[tuple[Any, ...]]:
        return [(b.name, _SIGNS.get(b.kind, ("", "channels"))[1], b.size, b.fidelity, b.cost, b.constant) for b in some]

    figure.add_bar(
        x=[block.start for block in inner],
        y=[block.size for block in inner],
        width=0.9,
        customdata=custom(inner),
        marker={"color": [of[b.name] for b in inner], **scale, "line": edge, "colorbar": bar},
        hovertemplate=hover,
        showlegend=False,
        row=1,
        col=1,
    )
    widest = max((block.size for block in streams), default=1)
    figure.add_bar(
        x=[block.end - block.start for block in streams],
        base=[block.start for block in streams],
        y=list(range(len(streams))),
        width=[0.25 + 0.7 * block.size / widest for block in streams],
        orientation="h",
        customdata=custom(streams),
        marker={"color": [of[b.name] for b in streams], **scale, "line": edge},
        hovertemplate=hover,
        showlegend=False,
        row=2,
        col=1,
    )
    for block in blocks:
        if block.name == focus:
            row = streams.index(block) if block in streams else None
            box = (
                {"x0": block.start, "x1": block.end, "y0": row - 0.5, "y1": row + 0.5}
                if row is not None
                else {"x0": block.start - 0.5, "x1": block.start + 0.5, "y0": 0, "y1": block.size}
            )
            figure.add_shape(type="rect", **box, line={"color": ORANGE, "width": 2}, row=1 if row is None else 2, col=1)
    first: dict[str, int] = {}
    for block in sorted(blocks, key=lambda block: block.start):
        first.setdefault(block.stage, block.start)
    # Names need room: of stages that begin close to each other the first one is written.
    apart = max((block.end for block in blocks), default=1) / 16
    ticks: dict[str, int] = {}
    for stage, start in first.items():
        if not ticks or start - max(ticks.values()) >= apart:
            ticks[stage] = start
    figure.update_layout(clickmode="event+select", dragmode=False, bargap=0.1)
    figure.update_xaxes(showgrid=False, zeroline=False)
    figure.update_xaxes(
        title="layers, in forward order, by stage",
        tickvals=list(ticks.values()),
        ticktext=[_cut(name) for name in ticks],
        tickangle=-35 if len(ticks) > 8 else 0,
        row=2,
        col=1,
    )
    figure.update_yaxes(title="components", row=1, col=1)
    figure.update_yaxes(
        title="streams", showticklabels=False, showgrid=False, zeroline=False, autorange="reversed", row=2, col=1
    )
    if not streams:
        _say(figure, "no residual streams", axes="2")
    return _finish(figure, 320)


def singletons(fidelity: Array, chosen: NDArray[np.bool_]) -> go.Figure:
    """Singleton fidelity of one group, (C,) in the order shown; ``chosen`` (C,) says which are in the HiFi set.

    Above 1,000 components neighbours are averaged.
    """
    pieces = np.array_split(np.arange(len(fidelity)), min(len(fidelity), 1000))
    figure = go.Figure()
    for inside, name, colour in ((True, "in the HiFi set", BLUE), (False, "the others", GREY)):
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
    figure.update_xaxes(title="component, by its own fidelity", showgrid=False)
    figure.update_yaxes(title="singleton fidelity", rangemode="tozero")
    return _finish(figure, 300)


def curves(greedy: Array, naive: Array, eta: float, hifi: int) -> go.Figure:
    """Fidelity of the best k = 0..C components, both (C+1,); η and the size of the HiFi set are marked."""
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
    _line(figure, "dot", GREY, y=eta)
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
    low = min(0.0, *greedy, *naive)  # below 0 only without compensation: then nothing at all would be closer
    figure.update_yaxes(title="subset fidelity", range=[max(low, -1.0) * 1.02, 1.02])
    return _finish(figure, 300)


def outputs(table: Array) -> go.Figure:
    """Singleton fidelity for each output, (O, C); larger tables are averaged to at most about 5,000 cells."""
    rows = min(table.shape[0], 64)
    columns = min(table.shape[1], _LARGEST // rows)
    blocks = [np.array_split(part, columns, axis=1) for part in np.array_split(table, rows, axis=0)]
    small = np.array([[cell.mean() for cell in row] for row in blocks])
    figure = _heatmap(small, "component %{x}<br>output %{y}")
    figure.update_xaxes(title="component (input channel)", showgrid=False)
    figure.update_yaxes(title="output channel", autorange="reversed", showgrid=False)
    return _finish(figure, 340)


def by_class(table: Array, classes: Sequence[str], components: Sequence[int]) -> go.Figure:
    """How well each component alone reconstructs what a layer answers to each class, (K, C), columns as ``components``.

    Neighbouring columns are averaged above about 5,000 cells, and of many classes the 40 that differ most from the others are
    shown.
    """
    if len(classes) > _CLASSES:
        apart = np.linalg.norm(table - table.mean(0), axis=1)
        rows = np.sort(np.argsort(-apart, kind="stable")[:_CLASSES])
        table, classes = table[rows], [classes[row] for row in rows]
    pieces = np.array_split(np.arange(len(components)), min(len(components), _LARGEST // max(1, len(classes))))
    small = np.array([table[:, piece].mean(1) for piece in pieces]).T
    labels = [
        f"component {components[p[0]]}" if len(p) == 1 else f"{len(p)} components, ranks {p[0] + 1} to {p[-1] + 1}"
        for p in pieces
    ]
    figure = _heatmap(
        small,
        "class %{y}, %{customdata}",
        x=[1 + float(piece.mean()) for piece in pieces],
        y=list(classes),
        customdata=np.broadcast_to(np.array(labels), small.shape),
    )
    figure.update_xaxes(title="component, by its own fidelity", showgrid=False)
    figure.update_yaxes(title="class", type="category", autorange="reversed", showgrid=False)
    return _finish(figure, min(400, 120 + 24 * len(classes)))


def _heatmap(fidelity: Array, hover: str, **axes: Any) -> go.Figure:
    return go.Figure(
        go.Heatmap(
            z=fidelity,
            colorscale=_SCALE,
            zmin=0.0,
            zmax=float(fidelity.max()) or 1.0,
            colorbar={"title": {"text": "fidelity", "side": "right"}, "thickness": 12},
            hovertemplate=f"{hover}<br>fidelity %{{z:.4f}}<extra></extra>",
            **axes,
        )
    )


@dataclass(frozen=True)
class Series:
    """The constants of one estimator: a value for each layer, None where there is none; ``upper``: whether they are upper
    bounds.
    """

    name: str
    title: str
    values: Sequence[float | None]
    upper: bool


_MARKS = {
    "directional": (BLUE, "circle"),
    "jacobian": (ORANGE, "diamond"),
    "random": (GREY, "x"),
    "pairs": ("#0F9D8A", "square"),
    "certified": ("#B455C8", "triangle-down"),
}


def constants(layers: Sequence[str], series: Sequence[Series], statistic: str) -> go.Figure:
    """Lipschitz constants of the tail after each layer, in forward order, logarithmic. Lower bounds and upper bounds differ in
    sign and line. A click gives ``customdata[0]``, the layer.
    """
    figure = go.Figure()
    names = _short(layers)
    size = 9 if len(names) <= 40 else 6
    for one in series:
        colour, symbol = _MARKS[one.name]
        sign = "≤" if one.upper else "≥" if statistic == "Largest" else ""
        what = "upper bound" if one.upper else f"{statistic.lower()} seen"
        figure.add_scatter(
            x=names,
            y=[value if value else None for value in one.values],
            mode="lines+markers",
            name=f"{sign} {one.title}".strip(),
            line={"color": colour, "width": 1, "dash": "dot" if one.upper else "solid"},
            marker={"color": colour, "size": size, "symbol": symbol},
            customdata=[[layer] for layer in layers],
            hovertemplate=f"<b>%{{customdata[0]}}</b><br>{one.title}, {what}: %{{y:.3g}}<extra></extra>",
        )
    values = [value for one in series for value in one.values if value]
    if not values:
        _say(figure, "Choose an estimator")
    figure.update_xaxes(title="layer, in forward order", **_names_axis(names))
    figure.update_yaxes(title="logit error per unit of local error", **_log_axis(values))
    return _finish(figure, 330)


def growth(found: Growth) -> go.Figure:
    """How an estimate grows with the samples: expected largest with the middle 90% of random draws, and root-mean-square with its
    90% confidence band.
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
        name="largest of n",
        line={"color": BLUE, "width": 2},
        marker={"size": 5},
        hovertemplate="%{x} samples: largest %{y:.3g} expected<extra></extra>",
    )
    figure.add_scatter(
        x=sizes,
        y=[found.rms] * len(sizes),
        mode="lines",
        name="root mean square",
        line={"color": ORANGE, "width": 2, "dash": "dash"},
        hovertemplate="root mean square %{y:.3g}<extra></extra>",
    )
    ends = [size for size in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if size <= sizes[-1]]
    figure.update_xaxes(title="samples", type="log", tickvals=ends, ticktext=[f"{end:,}" for end in ends])
    top = float(max(found.high.max(), found.rms_high.max())) or 1.0
    figure.update_yaxes(title="gain", range=[0, 1.1 * top])
    return _finish(figure, 270)


def band(
    figure: go.Figure, x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str, name: str
) -> None:
    """The range from ``low`` to ``high``, to be drawn behind a curve of this colour."""
    figure.add_scatter(
        x=[*x, *reversed(x)],
        y=[*high, *reversed(low)],
        fill="toself",
        fillcolor=_faded(colour),
        line={"width": 0},
        mode="lines",
        showlegend=False,
        hoverinfo="skip",
        name=name,
    )


def _faded(colour: str) -> str:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"


def bound_scatter(
    measured: Sequence[float], bound: Sequence[float], names: Sequence[str], alone: Mapping[str, Sequence[Any]]
) -> go.Figure:
    """Bound against measured RMS error of the logits, logarithmic, with the line y = x: one large point a plan, named, and a
    small one for each of its layers changed alone (``alone``: layer, measured, bound, remain). A click on a small one gives
    ``customdata[0]``, the layer.
    """
    figure = go.Figure()
    values = [v for v in (*measured, *bound, *alone["measured"], *alone["bound"]) if v > 0]
    if values:
        ends = [min(values) / 1.6, max(values) * 1.6]
        figure.add_scatter(
            x=ends,
            y=ends,
            mode="lines",
            name="y = x, a perfect bound",
            line={"color": GREY, "width": 1.5, "dash": "dash"},
            hoverinfo="skip",
        )
    else:
        _say(figure, "Measured plans appear here")
    figure.add_scatter(
        x=list(alone["measured"]),
        y=list(alone["bound"]),
        mode="markers",
        name="one layer alone",
        marker={"color": ORANGE, "size": 6, "symbol": "diamond", "opacity": 0.75},
        customdata=list(zip(alone["layer"], alone["remain"], strict=True)),
        hovertemplate="<b>%{customdata[0]}</b> alone, %{customdata[1]:.0%} remains<br>bound %{y:.3g}<br>measured %{x:.3g}"
        "<extra></extra>",
    )
    figure.add_scatter(
        x=list(measured),
        y=list(bound),
        mode="markers",
        name="a whole plan",
        marker={"color": BLUE, "size": 11},
        text=list(names),
        hovertemplate="%{text}<br>bound %{y:.3g}<br>measured %{x:.3g}<extra></extra>",
    )
    figure.update_xaxes(title="measured error, RMS over the logits", **_log_axis(values))
    figure.update_yaxes(title="bound", **_log_axis(values))
    return _finish(figure, 320)


def tightness(layers: Sequence[str], bound: Sequence[float], measured: Sequence[float]) -> go.Figure:
    """Per layer, that layer changed alone: bound beside measured error, logarithmic."""
    figure = go.Figure()
    names = _short(layers)
    figure.add_bar(x=names, y=list(bound), name="bound", marker={"color": BLUE})
    figure.add_bar(x=names, y=list(measured), name="measured", marker={"color": ORANGE, "pattern": {"shape": "/"}})
    figure.update_traces(
        customdata=[[layer] for layer in layers],
        hovertemplate="<b>%{customdata[0]}</b><br>%{y:.3g}<extra>%{fullData.name}</extra>",
    )
    figure.update_xaxes(title="layer changed alone", **_names_axis(names))
    figure.update_yaxes(title="RMS error of the logits", **_log_axis([*bound, *measured]))
    return _finish(figure, 300)


def allocation(names: Sequence[str], kept: Sequence[int], total: Sequence[int]) -> go.Figure:
    """How many components of each group stay, as a share of the group."""
    share = [100 * k / t for k, t in zip(kept, total, strict=True)]
    custom = list(zip(names, kept, total, strict=True))
    hover = "<b>%{customdata[0]}</b><br>%{customdata[1]} of %{customdata[2]} stay<extra></extra>"
    figure = go.Figure()
    figure.add_bar(
        x=_short(names), y=share, marker={"color": BLUE}, customdata=custom, hovertemplate=hover, showlegend=False
    )
    if len(names) <= 16:
        figure.update_traces(text=[str(k) for k in kept], textposition="auto", textangle=0)
    figure.update_xaxes(**_names_axis(_short(names)))
    figure.update_yaxes(title="components that stay", ticksuffix="%", range=[0, 105])
    return _finish(figure, 270)


def sensitivity(names: Sequence[str], shares: Sequence[float], errors: Array) -> go.Figure:
    """(G, S) estimated errors of the logits when one group alone keeps each of the ``shares``."""
    # Errors span orders of magnitude; those of nothing at all are drawn as the smallest one.
    smallest = float(errors[errors > 0].min()) if bool((errors > 0).any()) else 1.0
    exponent = np.log10(np.maximum(errors, smallest))
    figure = go.Figure(
        go.Heatmap(
            z=exponent.T,
            x=_short(names),
            y=[f"{100 * share:g}%" for share in shares],
            colorscale=_SCALE,
            customdata=np.stack([errors.T, np.broadcast_to(np.array(names, dtype=object), errors.T.shape)], -1),
            hovertemplate="<b>%{customdata[1]}</b><br>%{y} stays<br>error %{customdata[0]:.3g}<extra></extra>",
            colorbar={"title": {"text": "error", "side": "right"}, "thickness": 12} | _powers(exponent),
        )
    )
    figure.update_xaxes(**_names_axis(_short(names)))
    figure.update_yaxes(title="this group keeps", type="category", autorange="reversed", showgrid=False)
    return _finish(figure, 270)


def _powers(exponent: Array) -> dict[str, object]:
    """Ticks of a colour bar at powers of ten, or at both ends where there are fewer than two."""
    low, high = float(exponent.min()), float(exponent.max())
    ticks = np.arange(np.ceil(low), np.floor(high) + 1)
    values = ticks if len(ticks) > 1 else np.array([low, high])
    return {"tickvals": values.tolist(), "ticktext": [f"{10**value:.2g}" for value in values]}


def trade_off(
    points: Sequence[TradeOff],
    dense: float | None,
    planned: float | None,
    chosen: str | None,
    axis: str = "FLOPs",
    measure: Measure = ACCURACY,
) -> go.Figure:
    """What measured plans are worth against what they cost; ``dense`` is the value before, ``planned`` the cost that the slider
    asks for, ``axis`` what the cost is called.

    A click on a point gives ``customdata[0]``, its id.
    """
    points = [point for point in points if point.share is not None]
    told = f"{measure.name} %{{y:.{measure.digits}f}}{measure.unit}<extra></extra>"
    figure = go.Figure()
    if dense is not None:
        _line(figure, "dot", GREY, y=dense)
        figure.add_scatter(
            x=[100],
            y=[dense],
            mode="markers",
            name="dense",
            marker={"color": ORANGE, "size": 13, "symbol": "star"},
            hovertemplate=f"dense network<br>{told}",
        )
    if planned is not None:
        _line(figure, "dash", BLUE, x=100 * planned)
    figure.add_scatter(
        x=[100 * (p.share or 0.0) for p in points],
        y=[p.value for p in points],
        mode="markers",
        name="measured",
        marker={
            "color": BLUE,
            "opacity": 1.0,
            "size": [15 if p.id == chosen else 10 for p in points],
            "line": {"width": [3 if p.id == chosen else 0 for p in points], "color": ORANGE},
        },
        customdata=[(p.id, p.label, p.cost) for p in points],
        hovertemplate=f"%{{customdata[1]}}<br>{axis} %{{x:.1f}}%%{{customdata[2]}}<br>{told}",
    )
    costliest = max([100.0, *(100 * (p.share or 0.0) for p in points)])
    figure.update_xaxes(
        title=f"{axis} that remain{'s' if axis == 'latency' else ''}", ticksuffix="%", range=[0, 1.06 * costliest]
    )
    shown = [p.value for p in points] + ([dense] if dense is not None else [])
    low, high = (min(shown), max(shown)) if shown else (measure.least, measure.most or 2.0)
    margin = max(0.12 * (high - low), measure.margin)
    top = high + margin
    if measure.most is not None:
        top = min(top, measure.most + 0.08 * (high - low + margin))
    figure.update_yaxes(title=measure.name, ticksuffix=measure.unit, range=[max(measure.least, low - margin), top])
    if not shown:
        _say(figure, "Measured plans appear here")
    figure.update_layout(clickmode="event+select", dragmode=False)
    return _finish(figure, 270)


def confusion(matrix: Array, classes: Sequence[str]) -> go.Figure:
    """Rows are the true classes, (K, K) counts; colour is the share of the row, so that small classes are seen too.

    Of many classes the 70 are shown that are confused most.
    """
    if len(classes) > _CONFUSED:
        wrong = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
        chosen = np.sort(np.argsort(-wrong, kind="stable")[:_CONFUSED])
        matrix, classes = matrix[np.ix_(chosen, chosen)], [classes[number] for number in chosen]
    share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    small = len(classes) <= 20
    figure = go.Figure(
        go.Heatmap(
            z=share,
            x=list(classes),
            y=list(classes),
            customdata=matrix,
            colorscale=[[0.0, "rgba(124,135,152,0.08)"], [0.02, "rgba(47,127,224,0.25)"], [1.0, BLUE]],
            zmin=0,
            zmax=100,
            xgap=1 if small else 0,
            ygap=1 if small else 0,
            showscale=not small,
            colorbar={"title": {"text": "share of the class", "side": "right"}, "ticksuffix": "%", "thickness": 12},
            hovertemplate="true %{y}, answered %{x}<br>%{customdata} images, %{z:.1f}%<extra></extra>",
        )
    )
    if small:
        for strong in (True, False):  # white on blue; on pale cells the colour of the page's text
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
    figure.update_xaxes(title="answered", type="category", showgrid=False, dtick=1 if small else None)
    figure.update_yaxes(title="true", type="category", autorange="reversed", showgrid=False, dtick=1 if small else None)
    return _finish(figure, 380)


def living(
    table: Array, classes: Sequence[str], components: Sequence[tuple[str, int]], chosen: Sequence[str]
) -> go.Figure:
    """Fidelity of single components (columns, group and index) for every class (rows), (K, M); chosen classes are marked."""
    names = [f"{group} {index}" for group, index in components]
    rows = [f"▸ {name}" if name in chosen else name for name in classes]
    figure = _heatmap(
        table,
        "class %{y}, component %{customdata}",
        x=list(range(1, len(names) + 1)),
        y=rows,
        customdata=np.broadcast_to(np.array(names, dtype=object), table.shape),
    )
    figure.update_xaxes(title="component, the most specific first", showgrid=False)
    figure.update_yaxes(title="class", type="category", autorange="reversed", showgrid=False)
    return _finish(figure, min(420, 120 + 24 * len(classes)))


def forgetting_curve(points: Sequence[Mapping[str, float]], taken: float, unit: str) -> go.Figure:
    """Retain accuracy against forget accuracy on the calibration images, from the unchanged network on; ``taken`` is the strength
    that was chosen.
    """
    ordered = sorted(points, key=lambda point: point["strength"])
    x = [100 * point["forget_accuracy"] for point in ordered]
    y = [100 * point["retain_accuracy"] for point in ordered]
    strengths = [f"{point['strength']:.3g}" for point in ordered]
    hover = f"{unit}: %{{customdata}}<br>forget %{{x:.1f}}%, retain %{{y:.1f}}%<extra></extra>"
    figure = go.Figure()
    figure.add_scatter(
        x=x, y=y, customdata=strengths, mode="lines+markers", name="tried", line={"color": GREY}, hovertemplate=hover
    )
    chosen = [i for i, point in enumerate(ordered) if point["strength"] == taken]
    figure.add_scatter(
        x=[x[i] for i in chosen],
        y=[y[i] for i in chosen],
        customdata=[strengths[i] for i in chosen],
        mode="markers",
        name="taken",
        marker={"color": BLUE, "size": 13, "symbol": "diamond"},
        hovertemplate=hover,
    )
    figure.update_xaxes(title="forget accuracy", ticksuffix="%", range=[104, -4])
    figure.update_yaxes(title="retain accuracy", ticksuffix="%")
    return _finish(figure, 300)


def relearning(steps: Sequence[int], curves: Mapping[str, Sequence[float]]) -> go.Figure:
    """Forget accuracy after so many steps of training on images of the class, a line for each network."""
    styles = {
        "unchanged": (GREY, "solid", "circle"),
        "logit mask": (ORANGE, "dot", "square"),
        "changed": (BLUE, "solid", "diamond"),
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
    figure.update_xaxes(title="steps of relearning", type="category", showgrid=False)
    figure.update_yaxes(title="forget accuracy", ticksuffix="%", range=[-4, 104])
    return _finish(figure, 300)


def per_class(classes: Mapping[str, Mapping[str, float | None]], forgotten: Sequence[str]) -> go.Figure:
    """Accuracy of each class before and after; forgotten classes are hatched."""
    names = list(classes)
    values = {
        when: [None if classes[n][when] is None else 100 * float(classes[n][when] or 0) for n in names]
        for when in ("before", "after")
    }
    hatch = ["/" if name in forgotten else "" for name in names]
    figure = go.Figure()
    figure.add_bar(x=names, y=values["before"], name="before", marker={"color": GREY})
    figure.add_bar(x=names, y=values["after"], name="after", marker={"color": BLUE, "pattern": {"shape": hatch}})
    figure.update_traces(hovertemplate="class %{x}<br>%{y:.1f}%<extra>%{fullData.name}</extra>")
    figure.update_xaxes(title="class", type="category", showgrid=False)
    figure.update_yaxes(title="accuracy", ticksuffix="%", range=[0, 104])
    return _finish(figure, 280)


def _short(names: Sequence[str]) -> list[str]:
    """The names without the parts that all share, so that they fit under an axis; still unique."""
    parts = [name.split(".") for name in names]
    while len(names) > 1 and all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    while len(names) > 1 and all(len(p) > 1 for p in parts) and len({p[-1] for p in parts}) == 1:
        parts = [p[:-1] for p in parts]
    return [".".join(p) for p in parts]


def _names_axis(names: Sequence[str], room: int = 14) -> dict[str, object]:
    """An axis of names, of which every second or third is written where there is no room for all."""
    step = -(-len(names) // room)
    shown = names[::step]
    angle = -35 if len(names) > 6 else 0
    return {"showgrid": False, "tickvals": list(shown), "ticktext": [_cut(name) for name in shown], "tickangle": angle}


def _cut(name: str) -> str:
    """A name that is too long to stand under an axis, its first parts shortened: ``denseblock3.denselayer12.conv2`` becomes
    ``d3.d12.conv2``.
    """
    parts = name.split(".")
    for position, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= _LONGEST:
            break
        parts[position] = re.sub(r"(?<=^[a-zA-Z])\D*", "", part)
    short = ".".join(parts)
    return short if len(short) <= _LONGEST else f"…{short[1 - _LONGEST :]}"


def _log_axis(values: Sequence[float]) -> dict[str, object]:
    """A logarithmic axis around the values, with as many round ticks as are readable."""
    positive = [v for v in values if v > 0]
    if not positive:
        return {"type": "log", "showticklabels": False, "showgrid": False, "range": [0, 1]}
    low, high = min(positive) / 1.6, max(positive) * 1.6
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [t for decade in decades for step in steps if low <= (t := step * 10.0**decade) <= high]
        if len(ticks) <= 7:
            break
    ends = [float(np.log10(low)), float(np.log10(high))]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks], "range": ends}


def _say(figure: go.Figure, words: str, axes: str = "") -> None:
    """Words in the middle of a figure that has nothing to show yet, or of the part of it with those axes."""
    figure.add_annotation(x=0.5, y=0.5, xref=f"x{axes} domain", yref=f"y{axes} domain", text=words, showarrow=False)


def _line(figure: go.Figure, dash: str, colour: str, **at: float) -> None:
    """A line across the figure, ``x=`` upright or ``y=`` level; Plotly's own way takes several times as long."""
    ((axis, value),) = at.items()
    other = "y" if axis == "x" else "x"
    ends = {f"{axis}0": value, f"{axis}1": value, f"{other}0": 0, f"{other}1": 1, f"{other}ref": f"{other} domain"}
    figure.add_shape(type="line", **ends, line={"color": colour, "width": 1, "dash": dash})


def _finish(figure: go.Figure, height: int) -> go.Figure:
    # By attributes: Plotly's ``update_layout`` takes five times as long, at every move of a slider.
    layout = figure.layout
    layout.height = height
    named = any(t.showlegend is not False and t.name for t in figure.data)
    layout.margin = {"l": 8, "r": 8, "t": 28 if named else 8, "b": 8}
    layout.legend = {"orientation": "h", "yanchor": "bottom", "y": 1.0, "xanchor": "left", "x": 0.0, "title": None}
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)"
    layout.hoverlabel.align = "left"
    for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
        axis.automargin = True
        axis.title.standoff = 8
    return figure
