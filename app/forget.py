"""The Forget page's controls and words."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

import modhifi

from . import components as ui
from .components import FORMULAS, Number, percent
from .library import forget_point
from .selection import LabelledData
from .session import Session
from .store import Point

__all__ = ["forget_controls", "forgotten", "in_words", "numbers_of"]


def forget_controls(session: Session, study: modhifi.Study) -> None:
    """Draws the classes, the two sources of labelled images, and *Forget*."""
    classes = list(study.model.classes)
    left, middle, right = st.columns([3, 1.6, 1], gap="medium", vertical_alignment="bottom")
    with left:
        words = "What the network should no longer know. At least one class must stay."
        if len(classes) <= 20:
            chosen: Sequence[str] = st.pills(
                "Classes to forget", classes, selection_mode="multi", key="classes", bind="query-params", help=words
            )
        else:
            chosen = st.multiselect("Classes to forget", classes, key="classes", bind="query-params", help=words)
    with middle, st.container(horizontal=True):
        labelled = ui.labelled_data(session, "decide", "Decided on", "calibration")
        test = ui.labelled_data(session, "test", "Measured on", "test")
    point = forget_point(chosen, labelled, test)
    known = any(p.id == point for p in session.points())
    with right:
        st.button(
            "Forget again" if known else "Forget",
            type="primary",
            icon=":material/ink_eraser:",
            width="stretch",
            disabled=not 0 < len(chosen) < len(classes),
            on_click=_forget,
            args=(session, list(chosen), labelled, test, point),
            key="forget",
        )


def _forget(session: Session, classes: list[str], labelled: LabelledData, test: LabelledData, point: str) -> None:
    session.library.again(f"forget {session.source.id} {point}")
    session.library.forget(session.source, classes, labelled, test)
    st.session_state["awaited"] = point


def forgotten(session: Session) -> Point | None:
    """Draws the choice of the current plan; gives it if it forgets."""
    if not any(point.kind == "unlearn" for point in session.points()):
        st.caption("Nothing forgotten yet: choose one class or several and press Forget.")
        return None
    point = ui.current_plan(session)
    if point is not None and point.kind == "prune":
        st.caption("The current plan prunes; choose one that forgets to see how it is judged.")
        return None
    return point


def in_words(point: Point) -> str:
    """What the numbers say together."""
    e = point.evaluation
    found = [
        f"{words} in {percent(e[name])}"
        for name, words in (
            ("probe_accuracy", "a linear probe finds it"),
            ("bn_recall_accuracy", "BN recall brings it back"),
        )
        if e.get(name) is not None and e[name] > 0.5
    ]
    if e["forget_accuracy"] > 0.1:
        return "The class is still answered; more layers or a stronger edit are needed."
    if found:
        return f"The answer is gone, the knowledge is not: {' and '.join(found)} of its images."
    return "The answer is gone, and neither a linear probe nor BN recall brings it back for most of its images."


def numbers_of(point: Point) -> list[Number]:
    """How forgetting is judged: accuracy alone proves nothing."""
    e = point.evaluation

    return [
        ui.points("Forget accuracy", e, "forget_accuracy", "Accuracy on the forgotten classes. Low is meant.", "down"),
        ui.points("Retain accuracy", e, "retain_accuracy", "Accuracy on the other classes. High is meant.", "up"),
        ui.points("Linear probe", e, "probe_accuracy", FORMULAS["probe"], "down"),
        Number(
            "Membership inference",
            "n/a" if e["mia"] is None else f"{e['mia']:.3f}",
            FORMULAS["mia"],
            note=None if e["mia_before"] is None else f"{e['mia_before']:.3f} before",
        ),
        Number("BN recall", percent(e["bn_recall_accuracy"]), FORMULAS["recall"], note="after the attack"),
    ]
