"""Make the network forget classes, and test whether it did."""

import numpy as np
import streamlit as st

from app import components as ui
from app import figures
from app.export import downloads
from app.forget import curves_of, forget_controls, forgotten, in_words, living_of, numbers_of, report_of
from modhifi.unlearning import unlearning_methods

session, study = ui.analysed()
if not study.model.classes:
    st.info("A language model has no classes to forget. Prune it, or choose a classifier on the Model page.")
    st.stop()
with st.container(border=True):
    chosen = forget_controls(session, study)
ui.latest_job(session, "forget")
with st.container(border=True):
    living, words = living_of(study, chosen)
    st.markdown(
        "**Where the class lives**" if len(chosen) == 1 else "**Where the classes live**", help=ui.FORMULAS["living"]
    )
    if living.components:
        ui.chart(
            figures.living(living.table, living.classes, living.components, chosen),
            alt=f"Fidelity of the most specific components for each class. {words}",
            key="living",
        )
    st.caption(words)
point = forgotten(session)
if point is not None:
    result = point.evaluation
    classes = list(study.model.classes)  # of which the test images may lack some
    ui.numbers(numbers_of(point))
    left, right = st.columns([1, 1], gap="medium")
    with left, st.container(border=True, height="stretch"):
        st.markdown("**Is it forgotten?**")
        st.markdown(in_words(point))
    with right, st.container(border=True, height="stretch"):
        st.markdown("**Beside the unchanged network and a logit mask**")
        st.table(report_of(point))
    left, right = st.columns(2, gap="medium")
    with left, st.container(border=True):
        st.markdown("**The strength that was searched**", help=ui.FORMULAS["strength"])
        method = unlearning_methods()[point.forgetting.method] if point.forgetting else unlearning_methods()["erase"]
        ui.chart(
            figures.forgetting_curve(point.curve, point.strength or 0.0, method.strength),
            alt=f"Retain against forget accuracy over the strength of the edit: {point.label}",
            key="forgetting-curve",
        )
    with right, st.container(border=True):
        st.markdown("**Relearning**", help=ui.FORMULAS["relearning"])
        ui.chart(
            figures.relearning(result["relearning_steps"], curves_of(point)),
            alt=f"Forget accuracy over steps of relearning: {point.label}",
            key="relearning",
        )
    before, after = st.columns(2, gap="medium")
    with before, st.container(border=True):
        st.markdown("**Confusion before**")
        ui.chart(
            figures.confusion(np.array(result["confusion_before"]), classes),
            alt="Confusion matrix of the network as it was",
            key="confusion-before",
        )
    with after, st.container(border=True):
        st.markdown("**Confusion after**")
        ui.chart(
            figures.confusion(np.array(result["confusion"]), classes),
            alt=f"Confusion matrix: {point.label}",
            key="confusion-after",
        )
    with st.container(border=True):
        st.markdown("**Accuracy of each class**", help=ui.FORMULAS["accuracy"])
        ui.chart(
            figures.per_class(result["per_class"], point.forget),
            alt=f"Accuracy of each class before and after: {point.label}",
            key="per-class",
        )
    downloads(session, point)
