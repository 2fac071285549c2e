"""The Bounds page's controls, and what its points say in words."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from . import components as ui
from .selection import Choice
from .session import Session
from .store import BoundPoint

__all__ = ["bound_controls", "in_words", "measured_bounds"]

_REMAINS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


def measured_bounds(session: Session) -> list[BoundPoint]:
    return session.library.store.bounds(session.source.id)


def in_words(bounds: Sequence[BoundPoint]) -> str:
    """What the scatter shows, one sentence."""
    ratios = [b.tightness for b in bounds if b.tightness is not None]
    if not ratios:
        return "Nothing measured yet: choose how much remains and press Measure."
    low, high = min(ratios), max(ratios)
    broken = sum(r < 1 for r in ratios)
    times = f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f}"
    sentence = f"The bound is {times} times the measured error"
    if broken:
        return f"{sentence}. In {broken} of {len(ratios)} plans it lies below: the estimated constants were too small."
    return f"{sentence}; every point lies on or above y = x."


def bound_controls(session: Session) -> None:
    """What to measure, and the job that does it."""
    left, middle, right = st.columns([3, 1.4, 1], gap="medium", vertical_alignment="bottom")
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
        compensate = ui.compensation("bound-compensation")
    choices = [Choice(remain=value, compensate=compensate) for value in sorted(remains, reverse=True)]
    with right:
        st.button(
            "Measure",
            type="primary",
            icon=":material/play_arrow:",
            width="stretch",
            disabled=not choices,
            on_click=ui.start,
            args=(session.library.measure_bounds, session.source, choices, 128),
            key="bound-measure",
        )
    ui.latest_job(session, "bounds")
