"""The Forget page's controls, tables and words."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

import modhifi
from modhifi.evaluation import Evaluation, forgetting_table, verdict
from modhifi.unlearning import METHODS, Living, where_it_lives

from . import components as ui
from .components import FORMULAS, Number, percent
from .library import forget_point
from .outcome import points
from .selection import Forgetting, LabelledData
from .session import Session
from .store import Point

__all__ = ["curves_of", "forget_controls", "forgotten", "in_words", "living_of", "numbers_of", "report_of"]


def forget_controls(session: Session, study: modhifi.Study) -> list[str]:
    """Draws the classes, how to forget, the two sources of labelled images, and *Forget*; gives the chosen classes."""
    classes = list(study.model.classes)
    left, right = st.columns([3, 1], gap="medium", vertical_alignment="bottom")
    with left:
        words = "What the network should no longer know. At least one class must stay."
        if len(classes) <= 20:
            chosen: Sequence[str] = st.pills(
                "Classes to forget", classes, selection_mode="multi", key="classes", bind="query-params", help=words
            )
        else:
            chosen = st.multiselect("Classes to forget", classes, key="classes", bind="query-params", help=words)
        with st.container(horizontal=True):
            wish = _method(tuple(chosen))
            labelled = ui.labelled_data(session, "decide", "Decided on", "calibration")
            test = ui.labelled_data(session, "test", "Measured on", "test")
    point = forget_point(wish, labelled, test)
    known = any(p.id == point for p in session.points())
    with right:
        st.button(
            "Forget again" if known else "Forget",
            type="primary",
            icon=":material/ink_eraser:",
            width="stretch",
            disabled=not 0 < len(chosen) < len(classes),
            on_click=_forget,
            args=(session, wish, labelled, test, point),
            key="forget",
        )
    if len(chosen) == len(classes):
        st.caption("All classes are chosen; leave at least one.")
    return list(chosen)


def _method(classes: tuple[str, ...]) -> Forgetting:
    """Draws the method and its knobs, folded away."""
    with st.popover("Method", icon=":material/tune:"):
        method = st.selectbox(
            "Method",
            list(METHODS),
            format_func=lambda name: METHODS[name].title + (" (needs gradients)" if METHODS[name].gradients else ""),
            key="method",
            bind="query-params",
        )
        st.caption(METHODS[method].about)
        target = st.slider(
            "Accuracy on the class that is low enough",
            0,
            50,
            0,
            5,
            format="%d%%",
            key="target",
            bind="query-params",
            help="On the images that are decided on. The smallest edit that reaches it is searched for.",
        )
        depth, towards = None, "mean"
        if METHODS[method].deep:
            depth = st.number_input(
                "Layers, from the last one",
                min_value=1,
                value=None,
                placeholder="chosen by the method",
                key="depth",
                persist_state="session",
            )
        if method == "ridge":
            words = {"mean": "Mean of the others", "zero": "Zero"}
            text = "What the edited layers should answer on images of the class."
            towards = ui.choice("Answer on the class", words, "towards", "mean", text)
        predicted = st.toggle(
            "Use the network's own answers as labels",
            key="predicted",
            bind="query-params",
            help="Which images are of the class is then what the network says; the images need no labels.",
        )
    return Forgetting(
        classes=classes,
        method=method,
        target=target / 100,
        depth=None if depth is None else int(depth),
        towards="zero" if towards == "zero" else "mean",
        predicted_labels=predicted,
    )


def _forget(session: Session, wish: Forgetting, labelled: LabelledData, test: LabelledData, point: str) -> None:
    session.library.again(f"forget {session.source.id} {point}")
    session.library.forget(session.source, wish, labelled, test)
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


def living_of(study: modhifi.Study, chosen: Sequence[str]) -> tuple[Living, str]:
    """The picture of where the chosen classes live, and what it says."""
    found = where_it_lives(study, chosen)
    if not found.components:
        return found, "No class to show: the network answered too few images for each. Analyse more images to see them."
    (group, index), by = found.components[0], found.apart[0]
    of = ", ".join(name for name in chosen if name in found.classes)
    if not of:
        return found, f"The component that tells one class from the rest best is {group} {index} (by {by:.2f})."
    return (
        found,
        f"The component most specific to {of} is {group} {index}: its fidelity is higher than elsewhere by {by:.2f}.",
    )


def in_words(point: Point) -> str:
    """What the numbers say together, as a list."""
    return "\n".join(f"- {sentence}" for sentence in verdict(Evaluation.model_validate(point.evaluation)))


def report_of(point: Point) -> pd.DataFrame:
    """Every measure for the unchanged network, the logit mask and the changed network."""
    rows = forgetting_table(Evaluation.model_validate(point.evaluation), curve=False)
    columns = ["", "Unchanged", "Logit mask", "Changed"]
    return pd.DataFrame([[title, *map(percent, values)] for title, *values in rows], columns=columns).set_index("")


def curves_of(point: Point) -> dict[str, list[float]]:
    """Relearning curves, by network; those that were measured."""
    e = point.evaluation
    found = {
        "unchanged": e.get("relearning_accuracy_before"),
        "logit mask": e.get("relearning_accuracy_mask"),
        "changed": e.get("relearning_accuracy"),
    }
    return {name: values for name, values in found.items() if values}


def numbers_of(point: Point) -> list[Number]:
    """How forgetting is judged: accuracy alone proves nothing."""
    e = point.evaluation

    return [
        points("Forget accuracy", e, "forget_accuracy", "Accuracy on the forgotten classes. Low is meant.", "down"),
        points("Retain accuracy", e, "retain_accuracy", "Accuracy on the other classes. High is meant.", "up"),
        points("Linear probe", e, "probe_accuracy", FORMULAS["probe"], "down"),
        Number(
            "Membership inference",
            "n/a" if e["mia"] is None else f"{e['mia']:.3f}",
            FORMULAS["mia"],
            note=None if e["mia_before"] is None else f"{e['mia_before']:.3f} before",
        ),
        Number("BN recall", percent(e["bn_recall_accuracy"]), FORMULAS["recall"], note="after the attack"),
    ]
