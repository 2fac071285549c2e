"""The Modalities page: how modalities compete in joint training, and what gradient modulation changes."""

import streamlit as st

from app import components as ui
from app import figures
from app import modalities as page
from app.texts import plain
from modhifi.multimodal import TITLES
from modhifi.multimodal import in_words as described

with st.container(border=True):
    page.form()
page.running_jobs()
run = page.chosen_run()
if run is None:
    st.caption("No runs yet. Choose the settings, then press *Train*.")
    st.stop()
st.caption(plain(described(run)))
ui.numbers(page.accuracy_numbers(run))
st.markdown(page.summary_of(run))
title, which = st.columns([1, 1.3], vertical_alignment="center")
with title:
    st.subheader("Training", anchor=False, help="Lines are means over seeds; shaded areas are the range over seeds.")
with which:
    method = page.method_choice(run)
left, right = st.columns(2, gap="medium")
with left, st.container(border=True):
    st.markdown("**Training curves by modality**", help=ui.FORMULAS["mono"])
    ui.chart(
        figures.training(run, method),
        alt=f"Validation accuracy by epoch of the model and of each modality's output: {TITLES[method]}",
        key="training",
    )
with right, st.container(border=True):
    st.markdown("**Gradient coefficients**", help=ui.FORMULAS["agm"])
    ui.chart(
        figures.coefficients(run, method),
        alt=f"Factor on the gradient of each modality by epoch: {TITLES[method]}",
        key="coefficients",
    )
st.subheader(
    "Comparison of methods",
    anchor=False,
    help="On test data. Bars are means over seeds, whiskers one standard deviation.",
)
left, middle, right = st.columns(3, gap="medium")
with left, st.container(border=True):
    st.markdown("**Test accuracy**", help=ui.FORMULAS["balance"])
    ui.chart(figures.accuracies(run), alt="Test accuracy of each method, and of each modality alone", key="accuracies")
with middle, st.container(border=True):
    st.markdown("**Modalities alone and in the joint model**", help=ui.FORMULAS["alone"])
    ui.chart(
        figures.modality_accuracies(run),
        alt="Test accuracy of each modality in a network trained on it alone and inside each joint model",
        key="alone",
    )
with right, st.container(border=True):
    st.markdown("**Competition strength**", help=ui.FORMULAS["competition"])
    ui.chart(figures.competition(run), alt="Competition strength of each modality under each method", key="competition")
with st.expander("All numbers", icon=":material/table_rows:"):
    st.dataframe(
        page.run_table(run), hide_index=True, alt="Every method and each modality alone, mean and standard deviation"
    )
