"""The Prune page's controls: from widgets to a `Choice`, and from a `Choice` to its job."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

import modhifi
from modhifi.errors import UserError
from modhifi.lipschitz import ESTIMATORS
from modhifi.pruning import ALIGNED, BASELINES, CHOLESKY, LANGUAGE_METHODS, METHODS, smallest_cost, usual_allocation
from modhifi.study import SCORES

from . import components as ui
from . import language
from .figures import Measure, TradeOff
from .library import prune_point
from .selection import WORDS, Choice, LabelledData
from .session import Session, choose_plan, current, focus
from .store import Point

__all__ = [
    "AXES",
    "Wish",
    "axis_choice",
    "compare_controls",
    "measured",
    "note_on",
    "point_from_click",
    "prune_controls",
]

BUDGETS = ("flops", "params", "latency")
# What a comparison begins with: this project's way and what it is measured against.
COMPARED = ("studio", "one-shot", "published", "l2", "l2+bn", "l2+full")


@dataclass(frozen=True)
class Wish:
    """What the controls say, and the allocation that follows; None where it cannot be met, with the reason, or while the
    curves for it are derived.
    """

    choice: Choice
    data: LabelledData
    allocation: Any
    problem: str | None = None
    dense_ms: float | None = None
    """Milliseconds of the unchanged network, from the table of latencies if there is one."""

    @property
    def point(self) -> str:
        return prune_point(self.choice, self.data)


def prune_controls(session: Session, study: modhifi.Study, room: DeltaGenerator) -> Wish:
    """Draws budget, allocation, compensation and overrides, and *Measure*; in ``room`` what has to be waited for."""
    text = (
        f"What is counted. FLOPs: {ui.FORMULAS['flops']} Parameters: {ui.FORMULAS['params']} Latency: the time of one forward "
        "pass on this machine, from a table of its layers at several widths; Measure corrects it by what it really takes."
    )
    tokens = language.is_language(study)
    budgets = BUDGETS[:2] if tokens else BUDGETS
    budget = ui.choice("Budget", {name: WORDS[name] for name in budgets}, "budget", "flops", text)
    table = session.library.latencies(session.source)
    if budget == "latency" and table is None:
        with room:
            _timing(session)
        st.stop()
    with st.popover("Score and widths", icon=":material/straighten:"):
        score = st.selectbox(
            "Score",
            [*SCORES, CHOLESKY, *BASELINES[:5]] if tokens else [*SCORES, *BASELINES],
            format_func=WORDS.__getitem__,
            key="score",
            bind="query-params",
            help="What says which components of a group stay. Taylor and Hessian look at labels and gradients; the others "
            "need neither.",
        )
        eight = st.toggle(
            "Multiples of 8 channels",
            key="multiple",
            bind="query-params",
            help="Matrix units and vectors take channels by the eight: odd widths can be slower with fewer FLOPs.",
        )
        weights: Any = st.selectbox(
            "Constants",
            [*study.estimators, "none"],
            format_func=lambda name: "None: every layer alike" if name == "none" else ESTIMATORS[name].heading,
            key="weighed-by",
            bind="query-params",
            help="The Lipschitz constants that global spreading weighs the layers' errors by; *Bounds* shows them and adds more.",
        )
        if tokens:
            st.caption("A language model has no table of latencies; Measure tells its tokens a second.")
        elif table is None:
            st.caption(
                "The layers were not timed on this machine yet; with their times every plan shows its milliseconds."
            )
            st.button("Time the layers", on_click=ui.start, args=(session.library.time_layers, session.source))
        else:
            st.caption(f"Milliseconds: timed on {table.machine}, {table.device}, batch {table.batch}.")
            st.button("Time again", on_click=ui.start, args=(session.library.time_layers, session.source))
    multiple = ALIGNED if eight else 1
    history = overrides(session, study)
    by_hand, at_least = history.now
    above = st.container()
    compensate = ui.compensation("compensate", ("scalar", "full", "sequential"), "sequential")
    text = (
        "**Global** takes next what raises the bound least for the budget it frees. **Uniform** takes the same share of "
        "every group. **Ranking** takes the lowest score of all, whatever it frees."
    )
    spreads = {name: WORDS[name] for name in ("global", "uniform", "ranking")}
    if tokens:
        spreads = {"width": WORDS["width"]} | spreads
        text = (
            f"**Equal widths** keeps as much in every block, which transformers alone opens; the others do not. {text}"
        )
    spread = ui.choice("Spread over the layers", spreads, "allocation", usual_allocation(study), text)
    try:
        least = max(1, math.ceil(100 * smallest_cost(study, budget, by_hand, at_least, multiple, table, spread)))
    except UserError:  # said where the plan would be
        least = 1
    with above:  # how far it goes down depends on how it is spread
        remain = st.slider(
            f"{WORDS[budget]} that remain" + ("s" if budget == "latency" else ""),
            min(least, 99),
            100,
            max(50, min(least, 99)),
            1,
            format="%d%%",
            key="remain",
            bind="query-params",
            help="The fraction of the whole network's that stays; met to within one component.",
        )
    recalibrate = not tokens and st.toggle(
        "Re-estimate BatchNorm",
        key="bn",
        bind="query-params",
        help="Runs the unlabelled images through the pruned network once more. Helps a poor reconstruction, can hurt "
        "a good one.",
    )
    choice = Choice(
        budget=budget,
        remain=remain / 100,
        score=score,
        compensate=compensate,
        allocation=spread,
        constants=weights,
        recalibrate_bn=recalibrate,
        multiple=multiple,
        overrides=tuple(sorted(by_hand.items())),
        floors=tuple(sorted(at_least.items())),
    )
    allocation, problem = None, None
    with room:
        ui.latest_job(session, "latency")
        ready = ui.derived(session, choice.level, score=score)
    if ready:
        try:
            allocation = session.library.allocation(session.source, choice)
        except UserError as error:
            problem = str(error)
    with st.container(horizontal=True):
        _by_hand(study, allocation.counts if allocation else {}, history)
        data = ui.labelled_data(session, "test", "Measured on", "test")
    for words, counts in (("By hand", by_hand), ("At least", at_least)):
        if counts:
            st.caption(f"{words}: " + ", ".join(f"{name} keeps {count}" for name, count in counts.items()))
    wish = Wish(choice, data, allocation, problem, None if table is None else table.dense)
    known = any(point.id == wish.point for point in session.points())
    st.button(
        "Measure again" if known else "Measure",
        type="primary",
        icon=":material/play_arrow:",
        width="stretch",
        disabled=allocation is None,
        on_click=_measure,
        args=(session, wish),
        key="measure",
        help="Carries the plan out on a copy and runs the test samples through both: what it is really worth, and how fast.",
    )
    return wish


def compare_controls(session: Session, wish: Wish) -> None:
    """Which methods to measure at the budget of ``wish``, and the job that does it."""
    tokens = session.study is not None and language.is_language(session.study)
    methods, first = (LANGUAGE_METHODS, language.COMPARED) if tokens else (METHODS, COMPARED)
    known = [name for name, method in methods.items() if method.knows(wish.choice.budget)]
    left, right = st.columns([5, 1], gap="medium", vertical_alignment="bottom")
    with left:
        chosen = st.multiselect(
            "Compare at this budget",
            known,
            [name for name in first if name in known],
            format_func=lambda name: methods[name].title,
            key="language-methods" if tokens else "methods",
            persist_state="session",
            help="Every method makes its own plan for the same budget; each is measured and becomes a point and a row that can "
            "be exported.",
        )
    choices = [Choice.of(methods[name], wish.choice.budget, wish.choice.remain) for name in chosen]
    with right:
        st.button(
            "Compare",
            icon=":material/compare_arrows:",
            width="stretch",
            disabled=not choices,
            on_click=ui.start,
            args=(session.library.compare, session.source, choices, wish.data),
            key="compare",
        )
    ui.latest_job(session, "compare")


def _timing(session: Session) -> None:
    """What is there to see while the layers have not been timed."""
    job = ui.latest_job(session, "latency")
    if job is None or job.state != "running":
        st.info("A budget of latency needs the times of the layers on this machine: a few seconds, once.")
        st.button(
            "Time the layers",
            type="primary",
            icon=":material/timer:",
            on_click=ui.start,
            args=(session.library.time_layers, session.source),
            key="time-layers",
        )


@dataclass
class History:
    """What was set by hand, step by step: groups with an exact count and groups with a floor. ``at`` is where one stands."""

    steps: list[tuple[dict[str, int], dict[str, int]]] = field(default_factory=lambda: [({}, {})])
    at: int = 0

    @property
    def now(self) -> tuple[dict[str, int], dict[str, int]]:
        return self.steps[self.at]

    def add(self, by_hand: dict[str, int], at_least: dict[str, int]) -> None:
        """A new step; what was undone before it is gone."""
        self.steps[self.at + 1 :] = [(by_hand, at_least)]
        self.at += 1

    def undo(self) -> None:
        self.at = max(0, self.at - 1)

    def redo(self) -> None:
        self.at = min(len(self.steps) - 1, self.at + 1)


def overrides(session: Session, study: modhifi.Study) -> History:
    """Of this session for this study; at first what the address says (``?hand=``), which is kept up to date."""
    key, mark = f"by-hand-{session.source.id}", f"{session.source.digest}:"
    if key not in st.session_state:
        told = st.query_params.get("hand", "")
        first = _read_counts(told.removeprefix(mark), study) if told.startswith(mark) else ({}, {})
        st.session_state[key] = History([({}, {}), first] if any(first) else [({}, {})], int(any(first)))
    found: History = st.session_state[key]
    by_hand, at_least = found.now
    words = [f"{name}={count}" for name, count in by_hand.items()]
    words += [f"{name}>{count}" for name, count in at_least.items()]
    if words:
        st.query_params["hand"] = mark + ",".join(words)
    elif "hand" in st.query_params:
        del st.query_params["hand"]
    return found


def _read_counts(text: str, study: modhifi.Study) -> tuple[dict[str, int], dict[str, int]]:
    """Exact counts and floors as `overrides` writes them; what the study does not know is left out."""
    found: tuple[dict[str, int], dict[str, int]] = ({}, {})
    sizes = {group.name: group.size for group in study.groups}
    for name, sign, count in re.findall(r"([^,]+?)([=>])(\d{1,9})(?=,|$)", text):
        if 1 <= int(count) <= sizes.get(name, 0):
            found[sign == ">"][name] = int(count)
    return found


def _by_hand(study: modhifi.Study, planned: Mapping[str, int], history: History) -> None:
    """A group, and how many of its components stay exactly or at least."""
    sizes = {group.name: group.size for group in study.groups}
    by_hand, at_least = history.now
    with st.popover("By hand", icon=":material/tune:"):
        st.caption("A group set by hand keeps exactly so many, or at least; the budget is spent on the others.")
        group = focus(study)
        name = st.selectbox(
            "Group", list(sizes), list(sizes).index(group), key=f"hand-group-{group}", persist_state="session"
        )
        if sizes[name] == 1:
            st.caption("This group has one component, which stays.")
        else:
            st.slider(
                "Components that stay",
                1,
                sizes[name],
                by_hand.get(name, at_least.get(name, planned.get(name, sizes[name]))),
                key=f"hand-count-{name}",
            )
        with st.container(horizontal=True):
            one = sizes[name] == 1
            st.button("Exactly", type="primary", on_click=_set, args=(history, 0, name), key="hand-set", disabled=one)
            st.button("At least", on_click=_set, args=(history, 1, name), key="hand-floor", disabled=one)
            nothing = not by_hand and not at_least
            st.button("Clear all", disabled=nothing, on_click=history.add, args=({}, {}), key="hand-clear")
        with st.container(horizontal=True):
            first, last = history.at == 0, history.at == len(history.steps) - 1
            st.button("Undo", icon=":material/undo:", disabled=first, on_click=history.undo, key="hand-undo")
            st.button("Redo", icon=":material/redo:", disabled=last, on_click=history.redo, key="hand-redo")


def _set(history: History, which: int, name: str) -> None:
    """``which``: 0 for exactly so many, 1 for at least."""
    new = [dict(counts) for counts in history.now]
    new[1 - which].pop(name, None)
    new[which][name] = int(st.session_state[f"hand-count-{name}"])
    history.add(new[0], new[1])


def _measure(session: Session, wish: Wish) -> None:
    session.library.again(f"measure {session.source.id} {wish.point}")
    session.library.measure(session.source, wish.choice, wish.data)
    st.session_state["awaited"] = wish.point


AXES = {"flops": "FLOPs", "params": "parameters", "latency_ms": "latency"}


def axis_choice(study: modhifi.Study) -> str:
    """Draws the choice of the cost that the measured plans are shown against; a language model's latency is not measured."""
    known = [name for name in AXES if name != "latency_ms" or not language.is_language(study)]
    words = {name: AXES[name][0].upper() + AXES[name][1:] for name in known}
    text = "What accuracy or perplexity is shown against, as a share of the unchanged network's."
    chosen: str = ui.choice("Against", words, "against", "flops", text, hide_label=True)
    return chosen


def measured(points: Sequence[Point], measure: Measure, axis: str = "flops") -> list[TradeOff]:
    """What `figures.trade_off` draws of measured plans; ``axis`` is the name of a cost in an evaluation."""
    found = []
    for point in points:
        e = point.evaluation
        value, before = e.get(axis), e.get(f"{axis}_before")
        share = None if value is None or not before else value / before
        cost = "" if value is None else f" ({value:.2f} ms)" if axis == "latency_ms" else f" ({ui.compact(value)})"
        found.append(TradeOff(point.id, point.label, share, measure.of(e), cost))
    return found


def note_on(session: Session, point: Point) -> None:
    """Draws the note of a plan, which is kept with it and goes where it goes."""

    def keep() -> None:
        try:
            session.library.store.note(session.source.id, point.id, st.session_state[f"note-{point.id}"].strip())
        except UserError as error:
            st.toast(str(error), icon=":material/error:")

    st.text_input(
        "Note on this plan",
        point.note,
        500,
        key=f"note-{point.id}",
        on_change=keep,
        placeholder="why it was made, who decided; kept in the plan",
    )


def point_from_click() -> None:
    """The trade-off chart's callback: the clicked plan becomes the current one."""
    point = ui.clicked("trade-off")
    if point is not None:
        choose_plan(current(), point)
