"""The Prune page's controls: from widgets to a `Choice`, and from a `Choice` to its job."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

import modhifi
from modhifi.errors import UserError
from modhifi.pruning import smallest_cost

from . import components as ui
from .figures import TradeOff
from .library import prune_point
from .selection import WORDS, Choice, LabelledData
from .session import Session, choose_plan, current
from .store import Point

__all__ = ["Wish", "measured", "point_from_click", "prune_controls"]


@dataclass(frozen=True)
class Wish:
    """What the controls say, and the allocation that follows; None where it cannot be met, with the reason, or while the
    curves for it are derived.
    """

    choice: Choice
    data: LabelledData
    allocation: Any
    problem: str | None = None

    @property
    def point(self) -> str:
        return prune_point(self.choice, self.data)


def prune_controls(session: Session, study: modhifi.Study, room: DeltaGenerator) -> Wish:
    """Draws budget, allocation, compensation and overrides, and *Measure*; in ``room`` what has to be waited for."""
    text = f"What is counted. FLOPs: {ui.FORMULAS['flops']} Parameters: {ui.FORMULAS['params']}"
    budget = ui.choice("Budget", {name: WORDS[name] for name in ("flops", "params")}, "budget", "flops", text)
    least = max(1, math.ceil(100 * smallest_cost(study, budget)))
    remain = st.slider(
        f"{WORDS[budget]} that remain",
        least,
        100,
        max(50, least),
        1,
        format="%d%%",
        key="remain",
        bind="query-params",
        help="The fraction of the whole network's that stays; met to within one component.",
    )
    compensate = ui.compensation("compensate", ("scalar", "full", "sequential"))
    text = (
        "**Global** takes next what raises the bound least for the budget it frees. **Uniform** takes the same share of "
        "every group."
    )
    spreads = {name: WORDS[name] for name in ("global", "uniform")}
    spread = ui.choice("Spread over the layers", spreads, "allocation", "global", text)
    recalibrate = st.toggle(
        "Re-estimate BatchNorm",
        key="bn",
        bind="query-params",
        help="Runs the unlabelled images through the pruned network once more. Helps a poor reconstruction, can hurt "
        "a good one.",
    )
    by_hand = overrides(session)
    choice = Choice(
        budget=budget,
        remain=remain / 100,
        compensate=compensate,
        allocation=spread,
        recalibrate_bn=recalibrate,
        overrides=tuple(sorted(by_hand.items())),
    )
    allocation, problem = None, None
    with room:
        ready = ui.derived(session, choice.level)
    if ready:
        try:
            allocation = session.library.allocation(session.source, choice)
        except UserError as error:
            problem = str(error)
    with st.container(horizontal=True):
        _by_hand(study, allocation.counts if allocation else {}, by_hand)
        data = ui.labelled_data(session, "test", "Measured on", "test")
    if by_hand:
        st.caption("By hand: " + ", ".join(f"{name} keeps {count}" for name, count in by_hand.items()))
    wish = Wish(choice, data, allocation, problem)
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
        help="Carries the plan out on a copy and runs the labelled images through both: real accuracy and latency.",
    )
    return wish


def overrides(session: Session) -> dict[str, int]:
    """What was set by hand for this study, in this tab."""
    held: dict[str, dict[str, int]] = st.session_state.setdefault("overrides", {})
    return held.setdefault(session.source.id, {})


def _by_hand(study: modhifi.Study, planned: Mapping[str, int], by_hand: dict[str, int]) -> None:
    """Draws the choice of one group and how many of its components stay; callbacks write into ``by_hand``."""
    sizes = {group.name: group.size for group in study.groups}
    with st.popover("By hand", icon=":material/tune:"):
        st.caption("A group set by hand keeps exactly so many; the budget is spent on the others.")
        name = st.selectbox("Group", list(sizes), key="hand-group", persist_state="session")
        if sizes[name] == 1:
            st.caption("This group has one component, which stays.")
            return
        st.slider(
            "Components that stay",
            1,
            sizes[name],
            by_hand.get(name, planned.get(name, sizes[name])),
            key=f"hand-count-{name}",
        )
        with st.container(horizontal=True):
            st.button("Set", type="primary", on_click=_set, args=(by_hand, name), key="hand-set")
            st.button("Clear all", disabled=not by_hand, on_click=by_hand.clear, key="hand-clear")


def _set(by_hand: dict[str, int], name: str) -> None:
    by_hand[name] = int(st.session_state[f"hand-count-{name}"])


def _measure(session: Session, wish: Wish) -> None:
    session.library.again(f"measure {session.source.id} {wish.point}")
    session.library.measure(session.source, wish.choice, wish.data)
    st.session_state["awaited"] = wish.point


def measured(points: list[Point]) -> list[TradeOff]:
    return [
        TradeOff(
            point.id,
            point.label,
            point.evaluation["flops"] / point.evaluation["flops_before"],
            point.evaluation["accuracy"],
            point.evaluation.get("latency_ms"),
        )
        for point in points
    ]


def point_from_click() -> None:
    """The trade-off chart's callback: the clicked plan becomes the current one."""
    event = st.session_state.get("trade-off")
    points = [p for p in event["selection"]["points"] if p.get("customdata")] if event else []
    if points:
        choose_plan(current(), str(points[0]["customdata"][0]))
