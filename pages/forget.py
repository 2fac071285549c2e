"""The Forget page: make the network forget classes, and attack the result."""

import numpy as np
import streamlit as st

from app import components as ui
from app import figures
from app.export import downloads
from app.forget import (
    attack_numbers,
    attack_table,
    class_specific_components,
    current_forget_plan,
    forget_controls,
    relearning_curves,
    verdict_list,
)
from app.texts import plain
from modhifi.unlearning import unlearning_methods

session, study = ui.analysed()
if not study.model.classes:
    st.info(
        "Language models, and networks whose answer is a map or a number, have no classes to forget. Prune this one on "
        "*Prune*, or choose a classifier on *Model*."
    )
    st.stop()
with st.container(border=True):
    chosen = forget_controls(session, study)
ui.latest_job(session, "forget")
with st.container(border=True):
    specific, summary = class_specific_components(study, chosen)
    st.markdown("**Class-specific components**", help=ui.FORMULAS["class_specific"])
    if specific.components:
        ui.chart(
            figures.class_specific(specific.table, specific.classes, specific.components, chosen),
            alt=f"Fidelity of the most specific components for each class. {summary}",
            key="living",
        )
    st.caption(plain(summary))
point = current_forget_plan(session)
if point is not None:
    result = point.evaluation
    classes = list(study.model.classes)  # the test images may lack some of them
    ui.numbers(attack_numbers(point))
    left, right = st.columns([1, 1], gap="medium")
    with left, st.container(border=True, height="stretch"):
        st.markdown("**Verdict**")
        st.markdown(verdict_list(point))
    with right, st.container(border=True, height="stretch"):
        st.markdown("**Comparison with the original network and a logit mask**")
        st.table(attack_table(point))
    left, right = st.columns(2, gap="medium")
    with left, st.container(border=True):
        st.markdown("**Search for the strength**", help=ui.FORMULAS["strength"])
        method = unlearning_methods()[point.forgetting.method] if point.forgetting else unlearning_methods()["erase"]
        ui.chart(
            figures.forgetting_curve(point.curve, point.strength or 0.0, method.strength),
            alt=f"Retain against forget accuracy over the strength of the edit: {point.label}",
            key="forgetting-curve",
        )
    with right, st.container(border=True):
        st.markdown("**Relearning**", help=ui.FORMULAS["relearning"])
        ui.chart(
            figures.relearning(result["relearning_steps"], relearning_curves(point)),
            alt=f"Forget accuracy by relearning step: {point.label}",
            key="relearning",
        )
    before, after = st.columns(2, gap="medium")
    with before, st.container(border=True):
        st.markdown("**Confusion matrix, original network**")
        ui.chart(
            figures.confusion(np.array(result["confusion_before"]), classes),
            alt="Confusion matrix of the original network",
            key="confusion-before",
        )
    with after, st.container(border=True):
        st.markdown("**Confusion matrix, edited network**")
        ui.chart(
            figures.confusion(np.array(result["confusion"]), classes),
            alt=f"Confusion matrix of the edited network: {point.label}",
            key="confusion-after",
        )
    with st.container(border=True):
        st.markdown("**Accuracy of each class**", help=ui.FORMULAS["accuracy"])
        ui.chart(
            figures.per_class(result["per_class"], point.forget),
            alt=f"Accuracy of each class in the original and the edited network: {point.label}",
            key="per-class",
        )
    downloads(session, point)
