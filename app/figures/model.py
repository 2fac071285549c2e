"""The map of the network on the Model page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..texts import chart_text
from ._base import GREY, KINDS, ORANGE, SCALE, finish, placeholder, powers_of_ten, shorten


@dataclass(frozen=True)
class Block:
    """One group on the map: where it starts and ends along the layers (in forward order), how many components it has,
    and the values it can be coloured by.

    ``fidelity``: HiFi set size over group size; ``cost``: share of all FLOPs that involve the group; ``constant``:
    largest Lipschitz constant of the layers that read it.
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


def network_map(blocks: Sequence[Block], colour: str, title: str, focus: str | None) -> go.Figure:
    """The network from left to right: one bar per group at the layer that writes it, as high as it has components.
    Below, the residual streams, from their first writer to their last reader, thicker if they are wider.

    ``colour`` names the value of the blocks that colours them, ``title`` its label. ``customdata[0]`` of every mark is
    the group's name.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.04, row_heights=[0.68, 0.32])
    streams = [block for block in blocks if block.kind == "stream"]
    inner = [block for block in blocks if block.kind != "stream"]
    values = np.array([block.value(colour) for block in blocks])
    logarithmic = bool(colour == "constant" and (values > 0).all())
    shown = np.log10(values) if logarithmic else values
    scale = {"colorscale": SCALE, "cmin": float(shown.min()), "cmax": float(shown.max())}
    if scale["cmin"] == scale["cmax"]:
        scale["cmax"] = float(shown.max()) + 1.0
    bar = {"title": {"text": title, "side": "right"}, "thickness": 12}
    bar |= powers_of_ten(shown) if logarithmic else {"tickformat": ".0%"}
    of = dict(zip((block.name for block in blocks), shown.tolist(), strict=True))
    hover = (
        "<b>%{customdata[0]}</b> (%{customdata[1]})<br>%{customdata[2]} components<br>"
        "HiFi set: %{customdata[3]:.0%} of the group<br>%{customdata[4]:.1%} of the FLOPs<br>"
        "Lipschitz constant ≥ %{customdata[5]:.3g}<extra></extra>"
    )

    edge = {"width": 1, "color": GREY}  # the dark end of the scale vanishes on a dark page

    def custom(some: Sequence[Block]) -> list[tuple[Any, ...]]:
        return [
            (chart_text(b.name), KINDS.get(b.kind, ("", "channels"))[1], b.size, b.fidelity, b.cost, b.constant)
            for b in some
        ]

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
    # Labels need room: of stages that start close together only the first is labelled.
    apart = max((block.end for block in blocks), default=1) / 16
    ticks: dict[str, int] = {}
    for stage, start in first.items():
        if not ticks or start - max(ticks.values()) >= apart:
            ticks[stage] = start
    figure.update_layout(clickmode="event+select", dragmode=False, bargap=0.1)
    figure.update_xaxes(showgrid=False, zeroline=False)
    figure.update_xaxes(
        title="layers in forward order, by stage",
        tickvals=list(ticks.values()),
        ticktext=[chart_text(shorten(name)) for name in ticks],
        tickangle=-35 if len(ticks) > 8 else 0,
        row=2,
        col=1,
    )
    figure.update_yaxes(title="components", row=1, col=1)
    figure.update_yaxes(
        title="streams", showticklabels=False, showgrid=False, zeroline=False, autorange="reversed", row=2, col=1
    )
    if not streams:
        placeholder(figure, "no residual streams", axes="2")
    return finish(figure, 320)
