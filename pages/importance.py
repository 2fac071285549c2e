"""The Importance page: all components at a glance, then one group in detail."""

from functools import partial

import streamlit as st

from app import components as ui
from app import figures
from app.addresses import is_number, is_switch, tell_unfit
from app.importance import (
    about,
    colour_choice,
    component_in_focus,
    read_classes,
    read_group,
    read_overview,
    show_exemplars,
)
from app.session import focus
from app.texts import plain
from modhifi.specs import InputSpec

session, study = ui.analysed()

name = focus(study)
left, right = st.columns([2, 1.2], gap="medium", vertical_alignment="bottom")
with left:
    tell_unfit("eta", "HiFi threshold", is_number(0.5, 0.99))
    eta = st.slider("HiFi threshold η", 0.5, 0.99, 0.8, 0.01, key="eta", bind="query-params", help=ui.FORMULAS["eta"])
with right:
    compensate = ui.compensation("compensation")

with st.container(border=True):
    title, colour = st.columns([1, 1], vertical_alignment="center")
    with title:
        st.subheader(
            "All groups",
            anchor=False,
            help="One column per group, most important component at the bottom. Click a column for details.",
        )
    with colour, st.container(horizontal=True, horizontal_alignment="right"):
        cumulative = colour_choice() == "together"
    # Scalar compensation is derived for the group in focus only; for all groups it would take minutes.
    full = compensate == "scalar"
    overview = read_overview(study, eta, "full" if full else compensate, cumulative)
    ui.chart(
        figures.overview(overview.strips, name, eta, cumulative),
        alt=overview.summary,
        key="overview",
        on_select=partial(ui.focus_from_click, "overview"),
        selection_mode="points",
    )
    st.caption(f"{overview.summary}{' Shown here with full compensation; scalar below.' if full else ''}")

st.subheader(plain(name), anchor=False)
st.caption(about(study, name))
if not ui.derived(session, compensate, name):
    st.stop()
view = read_group(study, name, eta, compensate)
st.markdown(view.summary)
one, two = st.columns(2, gap="medium")
with one, st.container(border=True):
    st.markdown("**Fidelity against size**", help=f"{ui.FORMULAS['fidelity']}\n\n{ui.FORMULAS['order']}")
    ui.chart(figures.curves(view.greedy, view.naive, eta, view.hifi), alt=view.summary, key="curves")
with two, st.container(border=True):
    st.markdown("**Singleton fidelity**", help=ui.FORMULAS["singleton"])
    ui.chart(figures.singletons(view.singletons, view.chosen), alt=view.singletons_summary, key="singletons")
classes = read_classes(study, name)
if not study.model.classes:
    st.caption(
        "The views by class and the top-activating images are omitted: language models have no classes and no images, and other "
        "networks whose answer is a map or a number have no classes."
    )
    st.stop()
with st.container(border=True):
    st.markdown("**Fidelity by class**", help=ui.FORMULAS["class"])
    if classes.names:
        ui.chart(
            figures.by_class(classes.table, classes.names, classes.components),
            alt=f"Fidelity of each component of {name} for each class",
            key="by-class",
        )
    st.caption(classes.summary)
if isinstance(study.model.input, InputSpec):
    with st.container(border=True):
        st.markdown("**Top-activating images**", help=ui.FORMULAS["exemplars"])
        component = component_in_focus(classes.components, name)
        show_exemplars(session, name, component)
tell_unfit("outputs", "Show individual outputs", is_switch)
if st.toggle("Show individual outputs", key="outputs", bind="query-params"):
    with st.container(border=True):
        st.markdown(f"**Outputs of {plain(view.consumer)}**", help=ui.FORMULAS["output"])
        ui.chart(
            figures.outputs(study.output_fidelity(name)),
            alt=f"Fidelity per output of {view.consumer}",
            key="per-output",
        )
