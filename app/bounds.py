"""What the Bounds page says, its controls, and what a click on a layer does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

import modhifi
from modhifi.lipschitz import ESTIMATORS, Gains
from modhifi.study import estimators_for

from . import components as ui
from .figures import Series
from .selection import Choice
from .session import Session, focus
from .store import BoundPoint

__all__ = [
    "STATISTICS",
    "bound_controls",
    "constants_shown",
    "estimate_more",
    "follow_click",
    "held_out_in_words",
    "in_words",
    "layer_in_focus",
    "layer_points",
    "look_into",
    "measured_bounds",
    "settled_in_words",
    "series",
    "what_they_say",
]

_REMAINS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
STATISTICS = {"maximum": "Largest", "rms": "Root mean square", "quantile": "90% of samples"}
"""What is drawn of each estimator's gains."""


def constants_shown(study: modhifi.Study) -> list[str]:
    """Draws the choice of estimators."""
    chosen: list[str] = st.pills(
        "Estimators",
        study.estimators,
        selection_mode="multi",
        default=[name for name in study.estimators if name != "certified"],
        format_func=lambda name: ESTIMATORS[name].heading,
        key="estimators",
        bind="query-params",
        label_visibility="collapsed",
    )
    return chosen


def series(study: modhifi.Study, names: Sequence[str], statistic: str) -> list[Series]:
    """What the chart of constants shows, layers in forward order; upper bounds have no statistics of samples."""
    found = []
    for name in names:
        values: list[float | None]
        if name == "certified":
            values = [study.certified[layer].value for layer in study.layers]
        else:
            values = [_statistic(study.gains[name][layer], statistic) for layer in study.layers]
        found.append(Series(name, ESTIMATORS[name].title, values, upper=ESTIMATORS[name].claim == "upper"))
    return found


def _statistic(gains: Gains, statistic: str) -> float:
    return gains.quantile() if statistic == "quantile" else float(getattr(gains, statistic))


def what_they_say(study: modhifi.Study, names: Sequence[str], statistic: str) -> str:
    """Lower, upper, or of the samples only: a line for each estimator in sight."""
    lines = []
    for name in names:
        one = ESTIMATORS[name]
        if one.claim == "upper":
            ranges = any(upper.ranges for upper in study.certified.values())
            more = " It holds while LayerNorms and attention stay in the ranges seen on the samples." if ranges else ""
            none = sorted({upper.reason for upper in study.certified.values() if upper.value is None})
            less = f" For some layers none is known: {'; '.join(none)}." if none else ""
            lines.append(f"**≤ {one.heading}.** {one.says}{more}{less}")
        elif statistic == "maximum":
            lines.append(f"**≥ {one.heading}.** {one.says}")
        else:
            lines.append(
                f"**{one.heading}.** Holds for the samples only: neither a lower nor an upper bound of the constant."
            )
    return "  \n".join(lines)


def layer_in_focus(study: modhifi.Study) -> tuple[str, Gains]:
    """Draws the choice of a layer, the keyboard's equal of a click in the figures, and of an estimator; what that saw."""
    left, right = st.columns([1.3, 1], gap="small")
    with left:
        group = focus(study)
        first = list(study.layers).index(study.group(group).consumers[0].layer)
        # Another group in focus, another layer to begin with.
        layer: str = st.selectbox("Layer", list(study.layers), first, key=f"layer-{group}", persist_state="session")
    with right:
        name: str = st.selectbox(
            "Estimator",
            list(study.gains),
            format_func=lambda name: ESTIMATORS[name].heading,
            key="settled-by",
            bind="query-params",
        )
    return layer, study.gains[name][layer]


def look_into(study: modhifi.Study, layer: str) -> None:
    """A callback: the largest group that the layer reads becomes the one in focus, and *Importance* shows it."""
    largest = max((group for group, _ in study.structure.readers[layer]), key=lambda group: group.size)
    st.session_state["group"] = largest.name
    st.session_state["then"] = "importance"


def follow_click(study: modhifi.Study, chart: str) -> None:
    """The callback of a chart with that key."""
    layer = ui.clicked(chart)
    if layer is not None:
        look_into(study, layer)


def settled_in_words(gains: Gains, growth: modhifi.lipschitz.Growth) -> str:
    """Whether more samples are likely to change the estimate."""
    if not gains.samples:
        return "No sample has an error at this layer."
    return (
        f"From {gains.samples // 2} to {gains.samples} samples the largest is expected to grow by "
        f"{growth.last_doubling:.0%}; the next sample exceeds it with a probability of 1 in {gains.samples + 1}."
    )


def estimate_more(session: Session, study: modhifi.Study) -> None:
    """The estimators that an analysis leaves out, on demand; the study keeps what they find."""
    missing = [name for name in estimators_for(study.model.input) if name not in study.estimators]
    if not missing:
        return
    with st.popover("More", icon=":material/add:", help="Estimate the constants in other ways too."):
        wanted = st.multiselect(
            "Estimate",
            missing,
            default=missing,
            format_func=lambda name: ESTIMATORS[name].heading,
            help="Each takes half a forward pass of the samples for every layer; operator norms are found layer by layer.",
        )
        for name in wanted:
            st.caption(f"**{ESTIMATORS[name].heading}.** {ESTIMATORS[name].says}")
        st.button(
            "Estimate",
            type="primary",
            disabled=not wanted,
            on_click=ui.start,
            args=(session.library.estimate, session.source, tuple(wanted)),
            key="estimate",
        )


def measured_bounds(session: Session) -> list[BoundPoint]:
    return session.library.store.bounds(session.source.id)


def in_words(bounds: Sequence[BoundPoint]) -> str:
    """What the scatter shows, one sentence."""
    ratios = [b.report.tightness for b in bounds if b.report.tightness is not None]
    if not ratios:
        return "Nothing measured yet: choose how much remains and press Measure."
    low, high = min(ratios), max(ratios)
    broken = sum(r < 1 for r in ratios)
    times = f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f}"
    sentence = f"The bound is {times} times the measured error"
    if broken:
        return f"{sentence}. In {broken} of {len(ratios)} plans it lies below: the estimated constants were too small."
    return (
        f"{sentence}; every point lies on or above y = x. The constants are the largest gains seen on the same samples."
    )


def held_out_in_words(report: modhifi.bounds.BoundReport) -> str:
    """How far constants from other samples can be trusted."""
    held = report.held_out
    if held is None:
        return "All samples are the study's own: measure on others to see how often their constants are too small for new ones."
    return (
        f"With constants from {held.samples} calibration samples instead, {held.layers:.2%} of the errors of a layer alone are "
        f"above their bound (exchangeable samples would give {held.expected:.2%}), and {held.plan:.2%} of the whole plan's."
    )


def bound_controls(session: Session) -> None:
    """What to measure, and the job that does it."""
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
            help="One plan for each, made in closed form, carried out and measured.",
        )
    with middle:
        compensate = ui.compensation("bound-compensation", ("scalar", "full", "sequential"), "full")
    with other:
        data = ui.labelled_data(session, "bounds", "Measured on", "test")
    choices = [Choice(remain=value, compensate=compensate) for value in sorted(remains, reverse=True)]
    with right:
        st.button(
            "Measure",
            type="primary",
            icon=":material/play_arrow:",
            width="stretch",
            disabled=not choices,
            on_click=ui.start,
            args=(session.library.measure_bounds, session.source, choices, data, 128),
            key="bound-measure",
        )
    ui.latest_job(session, "bounds")


def layer_points(bounds: Sequence[BoundPoint]) -> Mapping[str, list[Any]]:
    """Every layer of every plan alone: columns for the scatter."""
    rows = [(b, row) for b in bounds for row in b.report.rows if row.measured > 0]
    return {
        "layer": [row.layer for _, row in rows],
        "measured": [row.measured for _, row in rows],
        "bound": [row.alone_bound for _, row in rows],
        "remain": [b.choice.remain for b, _ in rows],
    }
