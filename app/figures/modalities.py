"""Figures of modality balance: from a run to a Plotly figure.

A modality has the same colour and dash everywhere; the joint model is grey and dotted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from modhifi.multimodal import TITLES, Epoch, MeanSpread, Run

from ..texts import chart_text
from ._base import BLUE, GREY, ORANGE, PINK, TEAL, band, finish

_COLOURS = (BLUE, ORANGE, TEAL, PINK)
_DASHES = ("solid", "dash", "dot", "dashdot")
_PATTERNS = ("", "/", ".", "x")


def modality_colours(run: Run) -> dict[str, str]:
    return {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(run.modalities)}


def training(run: Run, method: str) -> go.Figure:
    """Validation accuracy by epoch of the model and of each modality's Shapley output; mean and range over seeds."""
    figure = go.Figure()
    histories = [one.history for one in run.outcomes if one.method == method]
    _curve(figure, histories, lambda e: 100 * e.accuracy, "joint output", GREY, "dot", "%")
    for place, (name, colour) in enumerate(modality_colours(run).items()):

        def accuracy(epoch: Epoch, name: str = name) -> float:
            return 100 * epoch.mono[name]

        _curve(figure, histories, accuracy, name, colour, _DASHES[place % 4], "%")
    _epochs(figure, run)
    figure.update_yaxes(title="validation accuracy", ticksuffix="%", range=[0, 104])
    return finish(figure, 280)


def coefficients(run: Run, method: str) -> go.Figure:
    """Factor on the gradient of each modality, mean per epoch; over seeds as in `training`."""
    figure = go.Figure()
    histories = [one.history for one in run.outcomes if one.method == method]
    for place, (name, colour) in enumerate(modality_colours(run).items()):

        def coefficient(epoch: Epoch, name: str = name) -> float:
            return epoch.coefficients[name]

        _curve(figure, histories, coefficient, name, colour, _DASHES[place % 4], "")
    figure.add_hline(y=1.0, line={"color": GREY, "width": 1, "dash": "dot"})
    _epochs(figure, run)
    figure.update_yaxes(title="factor on the gradient", rangemode="tozero")
    return finish(figure, 280)


def _curve(
    figure: go.Figure,
    histories: Sequence[Sequence[Epoch]],
    value: Callable[[Epoch], float],
    name: str,
    colour: str,
    dash: str,
    unit: str,
) -> None:
    """Adds the mean over seeds, with the range over seeds behind it; a seed counts up to its last epoch."""
    name = chart_text(name)
    longest = max((len(history) for history in histories), default=0)
    values = [[value(history[i]) for history in histories if len(history) > i] for i in range(longest)]
    epochs = list(range(1, longest + 1))
    if any(len(set(some)) > 1 for some in values):
        band(figure, epochs, [*map(min, values)], [*map(max, values)], colour, f"{name}, all seeds")
    figure.add_scatter(
        x=epochs,
        y=[statistics.fmean(some) for some in values],
        mode="lines",
        name=name,
        line={"color": colour, "width": 2, "dash": dash},
        hovertemplate=f"epoch %{{x}}<br>%{{y:.4g}}{unit}<extra>{name}</extra>",
    )


def _epochs(figure: go.Figure, run: Run) -> None:
    figure.update_xaxes(title="epoch", range=[0.5, max(2, run.settings.epochs) + 0.5], showgrid=False)


def accuracies(run: Run) -> go.Figure:
    """Test accuracy of every method, mean and standard deviation over seeds; dashed, each modality alone."""
    summary = run.summary()
    figure = go.Figure()
    _bars(figure, [TITLES[method] for method in summary], [row["accuracy"] for row in summary.values()], 100, "", GREY)
    figure.update_traces(showlegend=False, opacity=0.7)
    spreads = [row["accuracy"] for row in summary.values()]
    for place, (name, colour) in enumerate(modality_colours(run).items()):
        alone, title = run.reference(name), f"{chart_text(name)} alone"
        if alone is not None and summary:
            spreads.append(alone)
            figure.add_scatter(
                x=[TITLES[method] for method in summary],
                y=[100 * alone.mean] * len(summary),
                mode="lines+markers",
                name=title,
                line={"color": colour, "width": 2, "dash": _DASHES[1 + place % 3]},
                marker={"symbol": "line-ew", "size": 24, "line": {"width": 2, "color": colour}},
                hovertemplate=f"{title}: %{{y:.1f}}%<extra></extra>",
            )
    low = min((100 * (one.mean - (one.spread or 0)) for one in spreads), default=0.0)
    figure.update_yaxes(title="test accuracy", ticksuffix="%", range=[max(0.0, 10 * ((low - 4) // 10)), 101])
    figure.update_xaxes(showgrid=False)
    return finish(figure, 280)


def modality_accuracies(run: Run) -> go.Figure:
    """Test accuracy of networks trained on one modality alone, and of each Shapley output in the joint models."""
    summary = run.summary()
    places = ["alone", *(f"in {TITLES[method]}" for method in summary)]
    figure = go.Figure()
    for place, (name, colour) in enumerate(modality_colours(run).items()):
        values = [run.reference(name), *(row["mono"][name] for row in summary.values())]
        _bars(figure, places, values, 100, name, colour, _PATTERNS[place % 4])
    figure.update_yaxes(title="test accuracy", ticksuffix="%", range=[0, 104])
    figure.update_xaxes(showgrid=False)
    return finish(figure, 280)


def competition(run: Run) -> go.Figure:
    """Competition strength of each modality under every method, mean and standard deviation over seeds."""
    summary = run.summary()
    figure = go.Figure()
    for place, (name, colour) in enumerate(modality_colours(run).items()):
        values = [row["competition"][name] for row in summary.values()]
        _bars(figure, [TITLES[method] for method in summary], values, 1, name, colour, _PATTERNS[place % 4])
    figure.update_yaxes(title="competition strength d", rangemode="tozero")
    figure.update_xaxes(showgrid=False)
    return finish(figure, 280)


def _bars(
    figure: go.Figure,
    places: Sequence[str],
    values: Sequence[MeanSpread | None],
    unit: float,
    name: str,
    colour: str,
    pattern: str = "",
) -> None:
    name = chart_text(name)
    sign, digits = ("%", 1) if unit == 100 else ("", 3)
    figure.add_bar(
        x=list(places),
        y=[None if one is None else unit * one.mean for one in values],
        error_y={
            "array": [0.0 if one is None else unit * (one.spread or 0.0) for one in values],
            "color": GREY,
            "thickness": 1.5,
            "width": 4,
            "visible": any(one is not None and one.spread is not None for one in values),
        },
        name=name,
        marker={"color": colour, "pattern": {"shape": pattern}},
        hovertemplate=f"%{{x}}<br>%{{y:.{digits}f}}{sign}<extra>{name}</extra>",
    )
