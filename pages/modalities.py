"""Several modalities trained together: how they compete, and what modulating their gradients changes."""

import streamlit as st

from app import components as ui
from app import modalities as page
from app import modality_figures as figures
from modhifi.multimodal import TITLES
from modhifi.multimodal import in_words as described

with st.container(border=True):
    page.form()
page.watch()
run = page.chosen_run()
if run is None:
    st.caption("Nothing trained yet: choose what to train and press Train.")
    st.stop()
st.caption(described(run))
ui.numbers(page.numbers_of(run))
st.markdown(page.in_words(run))
title, which = st.columns([1, 1.3], vertical_alignment="center")
with title:
    st.subheader("How it was trained", anchor=False, help="Mean over seeds; behind it from the lowest to the highest.")
with which:
    method = page.with_and_without(run)
left, right = st.columns(2, gap="medium")
with left, st.container(border=True):
    st.markdown("**Training curves per modality**", help=ui.FORMULAS["mono"])
    ui.chart(
        figures.training(run, method),
        alt=f"Validation accuracy by epoch, of the model and of each modality in it: {TITLES[method]}",
        key="training",
    )
with right, st.container(border=True):
    st.markdown("**Coefficients over time**", help=ui.FORMULAS["agm"])
    ui.chart(
        figures.coefficients(run, method),
        alt=f"What the gradient of each modality was multiplied by, by epoch: {TITLES[method]}",
        key="coefficients",
    )
st.subheader(
    "Methods side by side", anchor=False, help="On test images; bars are means over seeds, whiskers one deviation."
)
left, middle, right = st.columns(3, gap="medium")
with left, st.container(border=True):
    st.markdown("**Accuracy**", help=ui.FORMULAS["balance"])
    ui.chart(figures.accuracies(run), alt="Test accuracy of each method, and of each modality alone", key="accuracies")
with middle, st.container(border=True):
    st.markdown("**Each modality, alone and together**", help=ui.FORMULAS["alone"])
    ui.chart(
        figures.alone_and_together(run),
        alt="Test accuracy of each modality as a network of its own and inside each joint model",
        key="alone",
    )
with right, st.container(border=True):
    st.markdown("**Competition strength**", help=ui.FORMULAS["competition"])
    ui.chart(figures.competition(run), alt="Competition strength of each modality under each method", key="competition")
with st.expander("All numbers", icon=":material/table_rows:"):
    st.dataframe(page.table_of(run), hide_index=True, alt="Every method and each modality alone, mean and deviation")
