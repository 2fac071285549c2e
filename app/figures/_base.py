"""What all figures share: colours, axes, and the layout that follows the page's light or dark theme.

The colours keep a contrast of at least 3:1 on both backgrounds and can be told apart by colour-blind readers: blue
against orange, with a second cue (dash or symbol) wherever two series meet. Large inputs are aggregated; no figure has
more than about 5,000 marks. Names come from outside: every one that enters a figure goes through `app.texts.chart_text`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from ..texts import chart_text

Array = NDArray[np.float64]

BLUE = "#2F7FE0"
ORANGE = "#D9730D"
GREY = "#7C8798"
TEAL = "#0F9488"
PINK = "#B4589A"
MOST_MARKS = 5000
SCALE = "Cividis"
# Kinds of components other than plain channels, with the symbol that marks them.
KINDS = {
    "stream": ("diamond", "residual stream"),
    "neurons": ("circle", "hidden neurons"),
    "heads": ("triangle-up", "attention heads"),
}
_LONGEST = 18


@dataclass(frozen=True)
class Measure:
    """A quantity that networks are compared by: the field ``name`` of an evaluation, multiplied by ``times``.
    ``least`` and ``most`` limit the axis (``most`` is None for no limit), which extends at least ``margin`` beyond
    the values shown.
    """

    name: str
    times: float
    unit: str
    digits: int
    least: float
    most: float | None
    margin: float

    def of(self, evaluation: Mapping[str, Any], when: str = "") -> float | None:
        """The value in the measure's unit, None if it was not measured; ``when`` is ``_before`` for the original network."""
        # The original network agrees with itself.
        value = 1.0 if when and self.name == "agreement" else evaluation.get(self.name + when)
        return None if value is None else self.times * float(value)


AGREEMENT = Measure("agreement", 100.0, "%", 2, 0.0, 100.0, 1.0)
ACCURACY = Measure("accuracy", 100.0, "%", 2, 0.0, 100.0, 1.0)
PERPLEXITY = Measure("perplexity", 1.0, "", 3, 1.0, None, 0.05)


def fidelity_heatmap(fidelity: Array, hover: str, **axes: Any) -> go.Figure:
    """A heatmap of fidelities (rows, columns), coloured from 0 to the largest; ``axes`` are passed to Plotly."""
    return go.Figure(
        go.Heatmap(
            z=fidelity,
            colorscale=SCALE,
            zmin=0.0,
            zmax=float(fidelity.max()) or 1.0,
            colorbar={"title": {"text": "fidelity", "side": "right"}, "thickness": 12},
            hovertemplate=f"{hover}<br>fidelity %{{z:.4f}}<extra></extra>",
            **axes,
        )
    )


def band(
    figure: go.Figure, x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str, name: str
) -> None:
    """Shades the range from ``low`` to ``high`` behind a curve of the same colour."""
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


def powers_of_ten(exponent: Array) -> dict[str, object]:
    """Colour bar ticks at powers of ten, or at both ends if fewer than two fit; ``exponent`` is the log10."""
    low, high = float(exponent.min()), float(exponent.max())
    ticks = np.arange(np.ceil(low), np.floor(high) + 1)
    values = ticks if len(ticks) > 1 else np.array([low, high])
    return {"tickvals": values.tolist(), "ticktext": [f"{10**value:.2g}" for value in values]}


def short_names(names: Sequence[str]) -> list[str]:
    """The names without leading and trailing parts that all of them share; they remain unique."""
    parts = [name.split(".") for name in names]
    while len(names) > 1 and all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    while len(names) > 1 and all(len(p) > 1 for p in parts) and len({p[-1] for p in parts}) == 1:
        parts = [p[:-1] for p in parts]
    return [".".join(p) for p in parts]


def chart_texts(names: Sequence[str]) -> list[str]:
    """The names as texts of a figure."""
    return [chart_text(name) for name in names]


def names_axis(names: Sequence[str], room: int = 14) -> dict[str, object]:
    """An axis of the categories `chart_texts` (``names``) that labels at most ``room`` of them, evenly spaced."""
    step = -(-len(names) // room)
    shown = names[::step]
    angle = -35 if len(names) > 6 else 0
    return {
        "showgrid": False,
        "tickvals": chart_texts(shown),
        "ticktext": [chart_text(shorten(name)) for name in shown],
        "tickangle": angle,
    }


def shorten(name: str) -> str:
    """Abbreviates the leading parts of a name that is too long for an axis label: ``denseblock3.denselayer12.conv2``
    becomes ``d3.d12.conv2``.
    """
    parts = name.split(".")
    for position, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= _LONGEST:
            break
        parts[position] = re.sub(r"(?<=^[a-zA-Z])\D*", "", part)
    short = ".".join(parts)
    return short if len(short) <= _LONGEST else f"…{short[1 - _LONGEST :]}"


def log_axis(values: Sequence[float]) -> dict[str, object]:
    """A logarithmic axis around the values with at most seven round ticks."""
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


def placeholder(figure: go.Figure, message: str, axes: str = "") -> None:
    """A message in the middle of an empty figure, or of the subplot with the axes ``axes``."""
    figure.add_annotation(x=0.5, y=0.5, xref=f"x{axes} domain", yref=f"y{axes} domain", text=message, showarrow=False)


def reference_line(figure: go.Figure, dash: str, colour: str, **at: float) -> None:
    """A vertical (``x=``) or horizontal (``y=``) line across the figure, several times faster than Plotly's
    ``add_vline``.
    """
    ((axis, value),) = at.items()
    other = "y" if axis == "x" else "x"
    ends = {f"{axis}0": value, f"{axis}1": value, f"{other}0": 0, f"{other}1": 1, f"{other}ref": f"{other} domain"}
    figure.add_shape(type="line", **ends, line={"color": colour, "width": 1, "dash": dash})


def finish(figure: go.Figure, height: int) -> go.Figure:
    """The layout that all figures share: height in pixels, margins, legend above, transparent background."""
    # Attributes instead of ``update_layout``, which takes five times as long on every move of a slider.
    layout = figure.layout
    layout.height = height
    named = any(t.showlegend is not False and t.name for t in figure.data)
    layout.margin = {"l": 8, "r": 8, "t": 28 if named else 8, "b": 8}
    layout.legend = {"orientation": "h", "yanchor": "bottom", "y": 1.0, "xanchor": "left", "x": 0.0, "title": None}
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)"
    layout.hoverlabel.align = "left"
    for axes, standoff in (
        (figure.select_xaxes(), 8),
        (figure.select_yaxes(), 16),
    ):  # less, and titles touch tick labels
        for axis in axes:
            axis.automargin = True
            axis.title.standoff = standoff
    return figure
