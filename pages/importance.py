"""Which components carry the network: all of them at a glance, then one group."""

import streamlit as st

from app import components as ui
from app import figures
from app.importance import colour_choice, focus_from_click, group_in_focus, read_group

session, study = ui.analysed()

left, middle, right = st.columns([2, 2, 1.4], gap="medium", vertical_alignment="bottom")
with left:
    name = group_in_focus(study)
with middle:
    eta = st.slider("HiFi threshold η", 0.5, 0.99, 0.8, 0.01, key="eta", bind="query-params", help=ui.FORMULAS["eta"])
with right:
    compensate = ui.compensation("compensation")

with st.container(border=True):
    title, colour = st.columns([1, 1], vertical_alignment="center")
    with title:
        st.subheader(
            "The whole network", anchor=False, help="One column a group, best at the bottom. Click to look into it."
        )
    with colour, st.container(horizontal=True, horizontal_alignment="right"):
        together = colour_choice() == "together"
    view = read_group(study, name, eta, compensate, together)
    ui.chart(
        figures.overview(view.strips, name, eta, together),
        alt=view.overview_in_words,
        key="overview",
        on_select=focus_from_click,
        selection_mode="points",
    )
    st.caption(view.overview_in_words)

st.subheader(name, anchor=False)
st.markdown(view.in_words)
one, two = st.columns(2, gap="medium")
with one, st.container(border=True):
    st.markdown("**Fidelity against size**", help=f"{ui.FORMULAS['fidelity']}\n\n{ui.FORMULAS['order']}")
    ui.chart(figures.curves(view.greedy, view.naive, eta, view.hifi), alt=view.in_words, key="curves")
with two, st.container(border=True):
    st.markdown("**Each component alone**", help=ui.FORMULAS["singleton"])
    ui.chart(figures.singletons(view.singletons, view.chosen), alt=view.singletons_in_words, key="singletons")
if st.toggle("Show each output on its own", key="outputs", bind="query-params"):
    with st.container(border=True):
        st.markdown(
            f"**Outputs of {view.consumer}**", help="Singleton fidelity before outputs are weighted by their energy."
        )
        ui.chart(
            figures.outputs(study.output_fidelity(name)),
            alt=f"Fidelity per output of {view.consumer}",
            key="per-output",
        )
