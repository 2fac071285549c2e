"""The Forget page: its controls, tables and summaries."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

import modhifi
from modhifi.evaluation import Evaluation, forgetting_table, verdict
from modhifi.unlearning import Living, unlearning_methods, where_it_lives

from . import components as ui
from .addresses import is_number, is_switch, tell_unfit
from .components import FORMULAS, Number, percent
from .outcome import accuracy_number
from .selection import Forgetting, LabelledData
from .session import Session
from .store import Point
from .tasks import forget_point
from .texts import plain

__all__ = [
    "attack_numbers",
    "attack_table",
    "class_specific_components",
    "current_forget_plan",
    "forget_controls",
    "relearning_curves",
    "verdict_list",
]


def forget_controls(session: Session, study: modhifi.Study) -> list[str]:
    """Draws classes, method, calibration and test data, and *Forget*; returns the chosen classes."""
    classes = list(study.model.classes)
    left, right = st.columns([3, 1], gap="medium", vertical_alignment="bottom")
    with left:
        text = "The classes that the network should forget. At least one class must remain."
        tell_unfit("classes", "Classes to forget", ["", *(map(plain, classes) if len(classes) <= 20 else classes)])
        if len(classes) <= 20:
            chosen: Sequence[str] = st.pills(
                "Classes to forget",
                classes,
                selection_mode="multi",
                format_func=plain,
                key="classes",
                bind="query-params",
                help=text,
            )
        else:
            chosen = st.multiselect("Classes to forget", classes, key="classes", bind="query-params", help=text)
        with st.container(horizontal=True):
            request = _method(tuple(chosen))
            labelled = ui.labelled_data(session, "decide", "Calibration data", "calibration")
            test = ui.labelled_data(session, "test", "Test data", "test")
    point = forget_point(request, labelled, test)
    known = any(p.id == point for p in session.points())
    with right:
        st.button(
            "Forget again" if known else "Forget",
            type="primary",
            icon=":material/ink_eraser:",
            width="stretch",
            disabled=not 0 < len(chosen) < len(classes),
            on_click=_forget,
            args=(session, request, labelled, test, point),
            key="forget",
        )
    if len(chosen) == len(classes):
        st.caption("All classes are selected; deselect at least one.")
    return list(chosen)


def _method(classes: tuple[str, ...]) -> Forgetting:
    """Draws the method and its options in a popover."""
    with st.popover("Method", icon=":material/tune:"):
        titles = {
            name: one.title + (" (needs gradients)" if one.gradients else "")
            for name, one in unlearning_methods().items()
        }
        tell_unfit("method", "Method", titles.values())
        method = st.selectbox(
            "Method",
            list(titles),
            format_func=titles.__getitem__,
            key="method",
            bind="query-params",
        )
        st.caption(unlearning_methods()[method].about)
        tell_unfit("target", "Target forget accuracy", is_number(0, 50))
        target = st.slider(
            "Target forget accuracy",
            0,
            50,
            0,
            5,
            format="%d%%",
            key="target",
            bind="query-params",
            help="Accuracy on calibration images of the forget classes. The search finds the smallest edit that "
            "reaches it.",
        )
        depth, towards = None, "mean"
        if unlearning_methods()[method].deep:
            depth = st.number_input(
                "Number of layers, from the last",
                min_value=1,
                value=None,
                placeholder="chosen by the method",
                key="depth",
                persist_state="session",
            )
        if method == "ridge":
            options = {"mean": "Retained mean", "zero": "Zero"}
            text = "What the edited layers should output on the forget set."
            towards = ui.choice("Output on the forget set", options, "towards", "mean", text)
        tell_unfit("predicted", "Use predictions as labels", is_switch)
        predicted = st.toggle(
            "Use predictions as labels",
            key="predicted",
            bind="query-params",
            help="The network's own predictions decide which images belong to the class, so the images need no labels.",
        )
    return Forgetting(
        classes=classes,
        method=method,
        target=target / 100,
        depth=None if depth is None else int(depth),
        towards="zero" if towards == "zero" else "mean",
        predicted_labels=predicted,
    )


def _forget(session: Session, request: Forgetting, labelled: LabelledData, test: LabelledData, point: str) -> None:
    session.library.tasks.discard(f"forget {session.source.id} {point}")
    session.library.tasks.forget(session.source, request, labelled, test)
    st.session_state["awaited"] = point


def current_forget_plan(session: Session) -> Point | None:
    """Draws the choice of the current plan; returns it if it is an unlearning plan."""
    if not any(point.kind == "unlearn" for point in session.points()):
        st.caption("No results yet. Select one or more classes, then press *Forget*.")
        return None
    point = ui.current_plan(session)
    if point is not None and point.kind == "prune":
        st.caption("The current plan is a pruning plan. Select an unlearning plan to see its results.")
        return None
    return point


def class_specific_components(study: modhifi.Study, chosen: Sequence[str]) -> tuple[Living, str]:
    """Data of the figure of class-specific components, and its summary."""
    found = where_it_lives(study, chosen)
    if not found.components:
        return found, "No class to show: every class was predicted for too few images. Analyse more images."
    (group, index), by = found.components[0], found.apart[0]
    shown = ", ".join(name for name in chosen if name in found.classes)
    if not shown:
        return (
            found,
            f"The component most specific to a single class is {group} {index} (difference in fidelity: {by:.2f}).",
        )
    return (
        found,
        f"The component most specific to {shown} is {group} {index}: its fidelity is {by:.2f} higher than for the "
        "other classes.",
    )


def verdict_list(point: Point) -> str:
    """The verdict of the attacks as a Markdown list."""
    return "\n".join(f"- {plain(sentence)}" for sentence in verdict(Evaluation.model_validate(point.evaluation)))


def attack_table(point: Point) -> pd.DataFrame:
    """Every measure for the original network, a logit mask and the edited network."""
    rows = forgetting_table(Evaluation.model_validate(point.evaluation), curve=False)
    columns = ["", "Original", "Logit mask", "Edited"]
    return pd.DataFrame([[title, *map(percent, values)] for title, *values in rows], columns=columns).set_index("")


def relearning_curves(point: Point) -> dict[str, list[float]]:
    """The measured relearning curves, by network."""
    e = point.evaluation
    found = {
        "original": e.get("relearning_accuracy_before"),
        "logit mask": e.get("relearning_accuracy_mask"),
        "edited": e.get("relearning_accuracy"),
    }
    return {name: values for name, values in found.items() if values}


def attack_numbers(point: Point) -> list[Number]:
    """Accuracies and attacks: accuracy alone proves nothing."""
    e = point.evaluation
    return [
        accuracy_number("Forget accuracy", e, "forget_accuracy", FORMULAS["forget_accuracy"], "down"),
        accuracy_number("Retain accuracy", e, "retain_accuracy", FORMULAS["retain_accuracy"], "up"),
        accuracy_number("Linear probe", e, "probe_accuracy", FORMULAS["probe"], "down"),
        Number(
            "Membership inference",
            "n/a" if e["mia"] is None else f"{e['mia']:.3f}",
            FORMULAS["mia"],
            note="AUC" if e["mia_before"] is None else f"AUC, original {e['mia_before']:.3f}",
        ),
        Number("BN recall", percent(e["bn_recall_accuracy"]), FORMULAS["recall"], note="forget accuracy"),
    ]
