"""The Bounds page: its controls, the data of its figures, and their summaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

import modhifi
from modhifi.lipschitz import Gains, estimators
from modhifi.specs import PruningSpec

from . import components as ui
from .addresses import tell_unfit
from .figures import Series
from .selection import Choice
from .session import Session, focus
from .store import BoundPoint
from .texts import plain

__all__ = [
    "STATISTICS",
    "bound_controls",
    "constants_shown",
    "estimate_more",
    "convergence_summary",
    "estimator_notes",
    "follow_click",
    "held_out_summary",
    "layer_in_focus",
    "layer_points",
    "measured_bounds",
    "open_on_importance",
    "scatter_summary",
    "series",
]

_REMAINS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
STATISTICS = {"maximum": "Largest", "rms": "Root mean square", "quantile": "90% of samples"}
"""Statistics of the gains over samples, with their labels."""


def constants_shown(study: modhifi.Study) -> list[str]:
    """Draws the choice of estimators."""
    tell_unfit("estimators", "Estimators", ["", *(estimators()[name].heading for name in study.estimators)])
    chosen: list[str] = st.pills(
        "Estimators",
        study.estimators,
        selection_mode="multi",
        default=[name for name in study.estimators if name != "certified"],
        format_func=lambda name: estimators()[name].heading,
        key="estimators",
        bind="query-params",
        label_visibility="collapsed",
    )
    return chosen


def series(study: modhifi.Study, names: Sequence[str], statistic: str) -> list[Series]:
    """Data of the chart of constants, layers in forward order. Upper bounds have no statistics over samples."""
    found = []
    for name in names:
        values: list[float | None]
        if name == "certified":
            values = [study.certified[layer].value for layer in study.layers]
        else:
            values = [_statistic(study.gains[name][layer], statistic) for layer in study.layers]
        found.append(Series(name, estimators()[name].title, values, upper=estimators()[name].claim == "upper"))
    return found


def _statistic(gains: Gains, statistic: str) -> float:
    return gains.quantile() if statistic == "quantile" else float(getattr(gains, statistic))


def estimator_notes(study: modhifi.Study, names: Sequence[str], statistic: str) -> str:
    """What each estimator shown claims (lower bound, upper bound, or neither), one line each."""
    lines = []
    for name in names:
        one = estimators()[name]
        if one.claim == "upper":
            ranges = any(upper.ranges for upper in study.certified.values())
            more = (
                " Valid while LayerNorm and attention stay within the ranges observed on the samples." if ranges else ""
            )
            none = sorted({plain(upper.reason) for upper in study.certified.values() if upper.value is None})
            less = f" Not available for some layers: {'; '.join(none)}." if none else ""
            lines.append(f"**≤ {one.heading}.** {one.says}{more}{less}")
        elif statistic == "maximum":
            lines.append(f"**≥ {one.heading}.** {one.says}")
        else:
            lines.append(
                f"**{one.heading}.** Describes these samples only: neither a lower nor an upper bound of the constant."
            )
    return "  \n".join(lines)


def layer_in_focus(study: modhifi.Study) -> tuple[str, Gains]:
    """Draws the choice of a layer and an estimator; returns the layer and the gains that the estimator found there."""
    left, right = st.columns([1.3, 1], gap="small")
    with left:
        group = focus(study)
        first = list(study.layers).index(study.group(group).consumers[0].layer)
        # The key depends on the group, so that a new group in focus preselects its own layer.
        layer: str = st.selectbox("Layer", list(study.layers), first, key=f"layer-{group}", persist_state="session")
    with right:
        tell_unfit("settled-by", "Estimator", [estimators()[name].heading for name in study.gains])
        name: str = st.selectbox(
            "Estimator",
            list(study.gains),
            format_func=lambda name: estimators()[name].heading,
            key="settled-by",
            bind="query-params",
        )
    return layer, study.gains[name][layer]


def open_on_importance(study: modhifi.Study, layer: str) -> None:
    """Callback: puts the largest group that the layer reads into focus and opens *Importance*."""
    largest = max((group for group, _ in study.structure.readers[layer]), key=lambda group: group.size)
    st.session_state["group"] = largest.name
    st.session_state["then"] = "importance"


def follow_click(study: modhifi.Study, chart: str) -> None:
    """Callback of the chart with this key: opens the clicked layer on *Importance*."""
    layer = ui.clicked(chart)
    if layer is not None:
        open_on_importance(study, layer)


def convergence_summary(gains: Gains, growth: modhifi.lipschitz.Growth) -> str:
    """Whether more samples are likely to change the estimate, in one sentence."""
    if not gains.samples:
        return "No sample has an error at this layer, so there is no gain to estimate."
    return (
        f"From {gains.samples // 2} to {gains.samples} samples, the largest gain is expected to grow by "
        f"{growth.last_doubling:.0%}. The next sample exceeds it with a probability of 1 in {gains.samples + 1}."
    )


def estimate_more(session: Session, study: modhifi.Study) -> None:
    """Draws the popover that runs the estimators the analysis omitted; the study keeps their results."""
    missing = [name for name in estimators(language=not study.model.classes) if name not in study.estimators]
    if not missing:
        return
    with st.popover("More", icon=":material/add:", help="Run further estimators."):
        wanted = st.multiselect(
            "Estimators to run",
            missing,
            default=missing,
            format_func=lambda name: estimators()[name].heading,
            help="Each takes about half a forward pass over the samples per layer; operator norms are computed "
            "layer by layer.",
        )
        for name in wanted:
            st.caption(f"**{estimators()[name].heading}.** {estimators()[name].says}")
        st.button(
            "Estimate",
            type="primary",
            disabled=not wanted,
            on_click=ui.start,
            args=(session.library.tasks.estimate, session.source, tuple(wanted)),
            key="estimate",
        )


def measured_bounds(session: Session) -> list[BoundPoint]:
    return session.library.store.bounds(session.source.id)


def scatter_summary(bounds: Sequence[BoundPoint]) -> str:
    """The scatter plot in one or two sentences."""
    ratios = [b.report.tightness for b in bounds if b.report.tightness is not None]
    if not ratios:
        return "No measurements yet. Choose the FLOPs that remain, then press *Measure*."
    low, high = min(ratios), max(ratios)
    broken = sum(r < 1 for r in ratios)
    times = f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f}"
    sentence = f"The bound is {times} times the measured error"
    if broken:
        return f"{sentence}. It is exceeded in {broken} of {len(ratios)} plans: the estimated constants are too small."
    return f"{sentence}; every point lies on or above y = x. Constants are the largest gains on the same samples."


def held_out_summary(report: modhifi.bounds.BoundReport) -> str:
    """How often errors exceed bounds whose constants come from other samples."""
    held = report.held_out
    if held is None:
        return "All test samples are calibration samples; measure on others to test the constants on new samples."
    return (
        f"With constants from {held.samples} calibration samples instead, {held.layers:.2%} of single-layer errors "
        f"exceed their bound ({held.expected:.2%} is expected if samples are exchangeable), and {held.plan:.2%} of "
        "the whole plan's errors."
    )


def bound_controls(session: Session) -> None:
    """Draws what to measure, *Measure*, and the job."""
    left, middle, other, right = st.columns([2.6, 2.1, 0.9, 0.8], gap="small", vertical_alignment="bottom")
    with left:
        remains = st.pills(
            "FLOPs that remain",
            _REMAINS,
            selection_mode="multi",
            default=[0.8, 0.5, 0.3],
            format_func=lambda value: f"{value:.0%}",
            key="bound-remains",
            persist_state="session",
            help="Makes and measures one plan for each fraction of the FLOPs.",
        )
    with middle:
        compensate = ui.compensation("bound-compensation", ("scalar", "full", "sequential"), "full")
    with other:
        data = ui.labelled_data(session, "bounds", "Test data", "test")
    choices = [
        Choice(spec=PruningSpec.of(flops=value, compensate=compensate)) for value in sorted(remains, reverse=True)
    ]
    with right:
        st.button(
            "Measure",
            type="primary",
            icon=":material/play_arrow:",
            width="stretch",
            disabled=not choices,
            on_click=ui.start,
            args=(session.library.tasks.measure_bounds, session.source, choices, data, 128),
            key="bound-measure",
        )
    ui.latest_job(session, "bounds")


def layer_points(bounds: Sequence[BoundPoint]) -> Mapping[str, list[Any]]:
    """Columns for the scatter plot: every layer of every plan, modified alone."""
    rows = [(b, row) for b in bounds for row in b.report.rows if row.measured > 0]
    return {
        "layer": [row.layer for _, row in rows],
        "measured": [row.measured for _, row in rows],
        "bound": [row.alone_bound for _, row in rows],
        "remain": [b.choice.remain for b, _ in rows],
    }
