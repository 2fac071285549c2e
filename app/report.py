"""The report of a measured plan, with the figures of the pages as self-contained HTML."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

import modhifi
from modhifi.errors import UserError
from modhifi.plan import Plan
from modhifi.unlearning import unlearning_methods

from . import figures
from .commands import commands
from .forget import relearning_curves
from .library import Library
from .prune import measured, quality
from .selection import Source
from .store import BoundPoint, Point

__all__ = ["as_html", "charts", "report"]

# Visible on a light and on a dark page; the report's style sheet sets the colour of the text.
_GRID = "rgba(124,135,152,0.25)"


def report(library: Library, source: Source, point: Point) -> str:
    """A self-contained HTML page: numbers, tables, charts, and the commands that reproduce them."""
    study = library.queries.study(source)
    if study is None:
        raise UserError("the study of this plan is missing from the cache; run the analysis again")
    plan = library.store.plan(source.id, point.id)
    drawn = charts(plan, point, library.store.points(source.id), library.store.bounds(source.id))
    return modhifi.export_report(
        plan,
        modhifi.Evaluation.model_validate(point.evaluation),
        # Without these tables the report only lacks the fidelity per group, and deriving them can take minutes.
        None if study.missing(plan.settings.level) else study,
        charts=as_html(drawn),
        commands=commands(source, plan, point),
    )


def charts(plan: Plan, point: Point, points: Sequence[Point], bounds: Sequence[BoundPoint]) -> dict[str, go.Figure]:
    """The figures that the pages show for a measured plan, by title. ``points`` and ``bounds``: all results of its
    study.
    """
    result = point.evaluation
    found: dict[str, go.Figure] = {}
    text = result.get("perplexity") is not None
    if point.kind == "prune":
        others = [one for one in points if one.kind == "prune"]
        measure = quality([*others, point], text)
        same = measured(others, measure)
        found[f"{measure.name.capitalize()} against FLOPs, all measured plans"] = figures.trade_off(
            same, measure.of(result, "_before"), None, point.id, measure=measure
        )
        kept, total = zip(*((len(group.keep), group.total) for group in plan.groups.values()), strict=True)
        found["Components kept"] = figures.allocation(list(plan.groups), kept, total)
        for bound in [bound for bound in bounds if bound.choice == point.choice][-1:]:
            rows = bound.report.rows
            found["Bound and measured error of each layer, modified alone"] = figures.tightness(
                [row.layer for row in rows], [row.alone_bound for row in rows], [row.measured for row in rows]
            )
    elif point.forgetting is not None:
        unit = unlearning_methods()[point.forgetting.method].strength
        found["Search for the strength"] = figures.forgetting_curve(point.curve, point.strength or 0.0, unit)
        found["Relearning"] = figures.relearning(result["relearning_steps"], relearning_curves(point))
    if text or result.get("accuracy") is None:
        return found
    found["Accuracy of each class"] = figures.per_class(result["per_class"], point.forget)
    for title, name in (
        ("Confusion matrix, original network", "confusion_before"),
        ("Confusion matrix, modified network", "confusion"),
    ):
        found[title] = figures.confusion(np.array(result[name]), list(plan.model.classes))
    return found


def as_html(charts: dict[str, go.Figure]) -> dict[str, str]:
    """Each figure as HTML; the first one contains plotly.js."""
    found: dict[str, str] = {}
    for title, figure in charts.items():
        figure.update_layout(template="none")
        for axes in (figure.update_xaxes, figure.update_yaxes):
            axes(gridcolor=_GRID, zerolinecolor=_GRID, linecolor=_GRID)
        config = {"displayModeBar": False, "responsive": True}
        found[title] = figure.to_html(config=config, include_plotlyjs=not found, full_html=False)
    return found
