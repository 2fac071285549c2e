"""The Prune page: its controls, and the jobs that they start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

import modhifi
from modhifi.errors import UserError
from modhifi.lipschitz import estimators
from modhifi.pruning import (
    ALIGNED,
    STARTING_LANGUAGE_METHODS,
    STARTING_METHODS,
    Allocation,
    pruning_methods,
    score_named,
    scores,
    smallest_cost,
    usual_allocation,
)
from modhifi.specs import BUDGETS, PruningSpec

from . import components as ui
from . import language
from .addresses import is_number, is_switch, tell_unfit
from .figures import ACCURACY, AGREEMENT, PERPLEXITY, Measure, TradeOff
from .manual import manual_counts, manual_popover
from .selection import LABELS, Choice, LabelledData
from .session import Session, choose_plan, current
from .store import Point
from .tasks import prune_point
from .texts import plain

__all__ = [
    "AXES",
    "Request",
    "axis_choice",
    "compare_controls",
    "measured",
    "quality",
    "note_on",
    "point_from_click",
    "prune_controls",
]


@dataclass(frozen=True)
class Request:
    """The state of the controls and the resulting allocation, which is None while its curves are derived, or if the
    budget cannot be met; then ``problem`` is the reason.
    """

    choice: Choice
    data: LabelledData
    allocation: Allocation | None
    problem: str | None = None
    dense_ms: float | None = None
    """Latency of the original network in milliseconds, from the table of timings if it exists."""

    @property
    def point(self) -> str:
        return prune_point(self.choice, self.data)


def prune_controls(session: Session, study: modhifi.Study, area: DeltaGenerator) -> Request:
    """Draws budget, score, allocation, compensation, manual counts and *Measure*; jobs are drawn in ``area``."""
    text = (
        f"**FLOPs**: {ui.FORMULAS['flops']} **Parameters**: {ui.FORMULAS['params']} **Latency**: Lower is faster. "
        "Time of one forward pass on this machine, predicted from a table of layer timings at several widths; "
        "*Measure* corrects the plan by timing it."
    )
    tokens = language.is_language(study)
    budgets = [name for name in BUDGETS if not (tokens and name == "latency")]
    budget = ui.choice("Budget", {name: LABELS[name] for name in budgets}, "budget", "flops", text)
    table = session.library.queries.latencies(session.source)
    if budget == "latency" and table is None:
        with area:
            _timing(session)
        st.stop()
    with st.popover("Score and widths", icon=":material/straighten:"):
        offered = [score.name for score in scores(language=tokens)]
        tell_unfit("score", "Score", [score_named(name).title for name in offered])
        score = st.selectbox(
            "Score",
            offered,
            format_func=lambda name: score_named(name).title,
            key="score",
            bind="query-params",
            help="Ranks the components within a group. Taylor and Hessian use labels and gradients; the other "
            "scores need neither.",
        )
        tell_unfit("multiple", "Multiples of 8 channels", is_switch)
        eight = st.toggle(
            "Multiples of 8 channels",
            key="multiple",
            bind="query-params",
            help="Hardware processes channels in multiples of 8, so odd widths can be slower despite fewer FLOPs.",
        )
        headings = {name: estimators()[name].heading for name in study.estimators} | {"none": "None: equal weights"}
        tell_unfit("weighed-by", "Constants", headings.values())
        weights: Any = st.selectbox(
            "Constants",
            list(headings),
            format_func=headings.__getitem__,
            key="weighed-by",
            bind="query-params",
            help="The Lipschitz constants that weight the layers' errors in global allocation. *Bounds* shows them "
            "and estimates others.",
        )
        if tokens:
            st.caption("Latency is not predicted for language models; *Measure* reports throughput in tokens/s.")
        elif table is None:
            st.caption(
                "The layers have not been timed on this machine. With a timing table, every plan shows its "
                "predicted latency."
            )
            st.button("Time the layers", on_click=ui.start, args=(session.library.tasks.time_layers, session.source))
        else:
            st.caption(
                f"Layer timings: {plain(table.key.machine)}, {plain(table.key.device)}, batch size {table.key.batch}."
            )
            st.button("Time again", on_click=ui.start, args=(session.library.tasks.time_layers, session.source))
    multiple = ALIGNED if eight else 1
    history = manual_counts(session, study)
    fixed, minimum = history.now
    above = st.container()
    compensate = ui.compensation("compensate", ("scalar", "full", "sequential"), "sequential")
    text = (
        "How the budget is allocated across groups. **Global** removes the components that raise the bound least "
        "per unit of budget freed. **Uniform** keeps the same share of every group. **Ranking** removes the lowest "
        "scores, whatever they free."
    )
    rules = {name: LABELS[name] for name in ("global", "uniform", "ranking")}
    if tokens:
        rules = {"width": LABELS["width"]} | rules
        text = (
            "**Equal widths** keeps the same number of components in every block, so that transformers alone can "
            f"load the export; the other rules do not. {text}"
        )
    rule = ui.choice("Allocation across layers", rules, "allocation", usual_allocation(study), text)
    spec = PruningSpec(
        budget=budget,
        score=score,
        allocation=rule,
        constants=weights,
        compensate=compensate,
        multiple=multiple,
        overrides=dict(sorted(fixed.items())),
        floors=dict(sorted(minimum.items())),
    )
    try:
        least = max(1, math.ceil(100 * smallest_cost(study, spec, table)))
    except UserError:  # shown in place of the plan
        least = 1
    with above:  # its lower end depends on the controls below it
        tell_unfit("remain", LABELS[budget], is_number(min(least, 99), 100))
        remain = st.slider(
            f"{LABELS[budget]} that {'remains' if budget == 'latency' else 'remain'}",
            min(least, 99),
            100,
            max(50, min(least, 99)),
            1,
            format="%d%%",
            key="remain",
            bind="query-params",
            help="Fraction of the original network's budget that remains; met to within one component.",
        )
    tell_unfit("bn", "Re-estimate BatchNorm", is_switch)
    recalibrate = not tokens and st.toggle(
        "Re-estimate BatchNorm",
        key="bn",
        bind="query-params",
        help="Runs the calibration images through the pruned network once more. Helps weak compensation, can hurt "
        "sequential compensation.",
    )
    choice = Choice(spec=spec.changed(remain=remain / 100, recalibrate_bn=recalibrate))
    allocation, problem = None, None
    with area:
        ui.latest_job(session, "latency")
        ready = ui.derived(session, choice.spec.level, score=score)
    if ready:
        try:
            allocation = session.library.queries.allocation(session.source, choice)
        except UserError as error:
            problem = str(error)
    with st.container(horizontal=True):
        manual_popover(study, allocation.counts if allocation else {}, history)
        data = ui.labelled_data(session, "test", "Test data", "test", needed=False)
    for title, counts in (("Fixed", fixed), ("Minimum", minimum)):
        if counts:
            st.caption(f"{title}: " + ", ".join(f"{plain(name)} keeps {count}" for name, count in counts.items()))
    request = Request(choice, data, allocation, problem, None if table is None else table.dense)
    known = any(point.id == request.point for point in session.points())
    st.button(
        "Measure again" if known else "Measure",
        type="primary",
        icon=":material/play_arrow:",
        width="stretch",
        disabled=allocation is None,
        on_click=_measure,
        args=(session, request),
        key="measure",
        help="Applies the plan to a copy and runs the test data through both networks: accuracy or perplexity, how "
        "often their answers agree, and latency. Images need no labels; without, accuracy is left out.",
    )
    return request


def compare_controls(session: Session, study: modhifi.Study, request: Request) -> None:
    """Draws the choice of methods to measure at the budget of ``request``, *Compare*, and the job."""
    spec, tokens = request.choice.spec, language.is_language(study)
    methods, first = pruning_methods(language=tokens), STARTING_LANGUAGE_METHODS if tokens else STARTING_METHODS
    known = [name for name, method in methods.items() if spec.budget in method.budgets]
    left, right = st.columns([5, 1], gap="medium", vertical_alignment="bottom")
    with left:
        chosen = st.multiselect(
            "Compare at this budget",
            known,
            [name for name in first if name in known],
            format_func=lambda name: methods[name].title,
            key="language-methods" if tokens else "methods",
            persist_state="session",
            help="Each method makes its own plan for the same budget. All are measured and become points in the "
            "chart and rows in the table, which can be exported.",
        )
    budget: Any = spec.budget  # one of `Budget`: the controls offer no other
    choices = [Choice.of(methods[name], study, budget, request.choice.remain) for name in chosen]
    with right:
        st.button(
            "Compare",
            icon=":material/compare_arrows:",
            width="stretch",
            disabled=not choices,
            on_click=ui.start,
            args=(session.library.tasks.compare, session.source, choices, request.data),
            key="compare",
        )
    ui.latest_job(session, "compare")


def _timing(session: Session) -> None:
    """Drawn in place of a plan while a latency budget has no timings."""
    job = ui.latest_job(session, "latency")
    if job is None or job.state != "running":
        st.info("A latency budget needs layer timings on this machine. They take a few seconds, once.")
        st.button(
            "Time the layers",
            type="primary",
            icon=":material/timer:",
            on_click=ui.start,
            args=(session.library.tasks.time_layers, session.source),
            key="time-layers",
        )


def _measure(session: Session, request: Request) -> None:
    session.library.tasks.discard(f"measure {session.source.id} {request.point}")
    session.library.tasks.measure(session.source, request.choice, request.data)
    st.session_state["awaited"] = request.point


AXES = {"flops": "FLOPs", "params": "parameters", "latency_ms": "latency"}


def axis_choice(study: modhifi.Study) -> str:
    """Draws the choice of the cost on the horizontal axis; for language models without latency."""
    known = [name for name in AXES if name != "latency_ms" or not language.is_language(study)]
    options = {name: AXES[name][0].upper() + AXES[name][1:] for name in known}
    text = "Cost on the horizontal axis, in per cent of the original network's; lower is cheaper."
    chosen: str = ui.choice("Horizontal axis", options, "against", "flops", text, hide_label=True)
    return chosen


def quality(points: Sequence[Point], text: bool) -> Measure:
    """What these plans are compared by: perplexity of a ``text``, accuracy, or agreement if some were measured without labels."""
    if text:
        return PERPLEXITY
    return AGREEMENT if any(point.evaluation.get("accuracy") is None for point in points) else ACCURACY


def measured(points: Sequence[Point], measure: Measure, axis: str = "flops") -> list[TradeOff]:
    """Data of `figures.trade_off`, for the plans that have the measure; ``axis`` is the field of a cost in an evaluation."""
    found = []
    for point in points:
        e = point.evaluation
        quality = measure.of(e)
        if quality is None:
            continue
        value, before = e.get(axis), e.get(f"{axis}_before")
        share = None if value is None or not before else value / before
        cost = "" if value is None else f" ({value:.2f} ms)" if axis == "latency_ms" else f" ({ui.compact(value)})"
        found.append(TradeOff(point.id, point.label, share, quality, cost))
    return found


def note_on(session: Session, point: Point) -> None:
    """Draws the note of a plan, which is stored in the plan and exported with it."""

    def keep() -> None:
        try:
            session.library.store.note(session.source.id, point.id, st.session_state[f"note-{point.id}"].strip())
        except UserError as error:
            st.toast(plain(error), icon=":material/error:")

    st.text_input(
        "Note on this plan",
        point.note,
        500,
        key=f"note-{point.id}",
        on_change=keep,
        placeholder="why it was made, who decided; stored in the plan",
    )


def point_from_click() -> None:
    """Callback of the trade-off chart: makes the clicked plan the current one."""
    point = ui.clicked("trade-off")
    if point is not None:
        choose_plan(current(), point)
