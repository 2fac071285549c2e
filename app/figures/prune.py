"""Figures of the Prune page: what remains of each group, how sensitive it is, and what measured plans cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from ..texts import chart_text
from ._base import (
    ACCURACY,
    BLUE,
    GREY,
    ORANGE,
    SCALE,
    Array,
    Measure,
    chart_texts,
    finish,
    names_axis,
    placeholder,
    powers_of_ten,
    reference_line,
    short_names,
)


@dataclass(frozen=True)
class TradeOff:
    """One measured network; ``share`` is its cost as a fraction of the original network's, None if it was not
    measured.
    """

    id: str
    label: str
    share: float | None
    value: float
    """In the unit of the `Measure` on the vertical axis."""
    cost: str = ""
    """The absolute cost, shown beside ``share``."""


def allocation(names: Sequence[str], kept: Sequence[int], total: Sequence[int]) -> go.Figure:
    """Components kept in each group, as a percentage of the group."""
    share = [100 * k / t for k, t in zip(kept, total, strict=True)]
    custom = list(zip(chart_texts(names), kept, total, strict=True))
    hover = "<b>%{customdata[0]}</b><br>%{customdata[1]} of %{customdata[2]} components kept<extra></extra>"
    figure = go.Figure()
    figure.add_bar(
        x=chart_texts(short_names(names)),
        y=share,
        marker={"color": BLUE},
        customdata=custom,
        hovertemplate=hover,
        showlegend=False,
    )
    if len(names) <= 16:
        figure.update_traces(text=[str(k) for k in kept], textposition="auto", textangle=0)
    figure.update_xaxes(**names_axis(short_names(names)))
    figure.update_yaxes(title="components kept", ticksuffix="%", range=[0, 105])
    return finish(figure, 270)


def sensitivity(names: Sequence[str], shares: Sequence[float], errors: Array) -> go.Figure:
    """Estimated RMS error of the logits, (G, S), if a single group keeps each of the ``shares``."""
    # Errors span orders of magnitude, hence the logarithm; zeros are drawn as the smallest positive value.
    smallest = float(errors[errors > 0].min()) if bool((errors > 0).any()) else 1.0
    exponent = np.log10(np.maximum(errors, smallest))
    figure = go.Figure(
        go.Heatmap(
            z=exponent.T,
            x=chart_texts(short_names(names)),
            y=[f"{100 * share:g}%" for share in shares],
            colorscale=SCALE,
            customdata=np.stack(
                [errors.T, np.broadcast_to(np.array(chart_texts(names), dtype=object), errors.T.shape)], -1
            ),
            hovertemplate="<b>%{customdata[1]}</b><br>%{y} kept<br>RMS logit error %{customdata[0]:.3g}<extra></extra>",
            colorbar={"title": {"text": "RMS logit error", "side": "right"}, "thickness": 12} | powers_of_ten(exponent),
        )
    )
    figure.update_xaxes(**names_axis(short_names(names)))
    figure.update_yaxes(title="components kept", type="category", autorange="reversed", showgrid=False)
    return finish(figure, 270)


def trade_off(
    points: Sequence[TradeOff],
    dense: float | None,
    planned: float | None,
    chosen: str | None,
    axis: str = "FLOPs",
    measure: Measure = ACCURACY,
) -> go.Figure:
    """Measured plans: ``measure`` against cost relative to the original network. ``dense`` is the original network's
    value, ``planned`` the relative cost of the current settings, ``chosen`` the id of the highlighted plan,
    ``axis`` names the cost.

    ``customdata[0]`` of a point is its id.
    """
    points = [point for point in points if point.share is not None]
    value_label = f"{measure.name} %{{y:.{measure.digits}f}}{measure.unit}<extra></extra>"
    figure = go.Figure()
    if dense is not None:
        reference_line(figure, "dot", GREY, y=dense)
        figure.add_scatter(
            x=[100],
            y=[dense],
            mode="markers",
            name="original",
            marker={"color": ORANGE, "size": 13, "symbol": "star"},
            hovertemplate=f"original network<br>{value_label}",
        )
    if planned is not None:
        reference_line(figure, "dash", BLUE, x=100 * planned)
    figure.add_scatter(
        x=[100 * (p.share or 0.0) for p in points],
        y=[p.value for p in points],
        mode="markers",
        name="measured plans",
        marker={
            "color": BLUE,
            "opacity": 1.0,
            "size": [15 if p.id == chosen else 10 for p in points],
            "line": {"width": [3 if p.id == chosen else 0 for p in points], "color": ORANGE},
        },
        customdata=[(chart_text(p.id), chart_text(p.label), p.cost) for p in points],
        hovertemplate=f"%{{customdata[1]}}<br>{axis} %{{x:.1f}}%%{{customdata[2]}}<br>{value_label}",
    )
    costliest = max([100.0, *(100 * (p.share or 0.0) for p in points)])
    figure.update_xaxes(title=f"{axis}, relative to original", ticksuffix="%", range=[0, 1.06 * costliest])
    shown = [p.value for p in points] + ([dense] if dense is not None else [])
    low, high = (min(shown), max(shown)) if shown else (measure.least, measure.most or 2.0)
    margin = max(0.12 * (high - low), measure.margin)
    top = high + margin
    if measure.most is not None:
        top = min(top, measure.most + 0.08 * (high - low + margin))
    figure.update_yaxes(title=measure.name, ticksuffix=measure.unit, range=[max(measure.least, low - margin), top])
    if not shown:
        placeholder(figure, "No measurements yet")
    figure.update_layout(clickmode="event+select", dragmode=False)
    return finish(figure, 270)
