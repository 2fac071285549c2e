"""The Model page: choose a network and its images, run the analysis, and see the network's groups."""

from functools import partial

import streamlit as st

from app import components as ui
from app import figures, network
from app.model_form import FORM_OPEN, model_form
from app.session import current, focus
from app.stored import stored
from app.tables import groups_table, skipped_table
from app.texts import plain
from modhifi.specs import TokenSpec

session = current()
# Collapsed unless the user opens it; submitting the form collapses it again.
with st.expander("Choose another network or other images", key=FORM_OPEN, icon=":material/add:", on_change="rerun"):
    model_form(session.library)
stored(session)
session, study = ui.analysed()

dense = study.dense
tokens = study.model.input if isinstance(study.model.input, TokenSpec) else None
ui.numbers(
    [
        ui.Number("Parameters", ui.compact(dense.params), ui.FORMULAS["params"]),
        ui.Number("FLOPs (MACs)", ui.compact(dense.flops), ui.FORMULAS["flops"]),
        ui.Number(
            "Groups",
            str(len(study.groups)),
            "Coupled components that the same layers write and read: channels inside a block or of a residual "
            "stream, hidden neurons, or attention heads.",
        ),
        ui.Number(
            "Components",
            str(sum(g.size for g in study.groups)),
            "Components in all groups: everything that could be removed.",
        ),
        ui.Number("Vocabulary", str(tokens.vocabulary), "Distinct tokens.")
        if tokens
        else ui.Number("Output classes", str(len(study.model.classes)), "Classes that the network predicts."),
        ui.Number(
            "Samples",
            str(study.data.samples),
            f"Windows of {tokens.context} tokens in the statistics. More is more accurate."
            if tokens
            else "Unlabelled images in the statistics. More is more accurate.",
        ),
    ]
)
warning = study.sample_warning()
if warning:
    st.warning(plain(f"{warning}."), icon=":material/group_add:")
blocks = network.read_map(study)
with st.container(border=True):
    title, colour = st.columns([1, 1], vertical_alignment="center")
    with title:
        st.subheader(
            "Map",
            anchor=False,
            help="One bar per group, at the layer that writes it and as high as it has components; below, the "
            "residual streams. Click a group to put it into focus on every page.",
        )
    with colour, st.container(horizontal=True, horizontal_alignment="right"):
        coloured = network.map_colour()
    ui.chart(
        figures.network_map(blocks, coloured, network.COLOURS[coloured], focus(study)),
        alt=network.map_summary(blocks),
        key="network-map",
        on_select=partial(ui.focus_from_click, "network-map"),
        selection_mode="points",
    )
    st.caption(plain(network.map_summary(blocks)))
left, right = st.columns([3, 2] if study.skipped else [4, 1], gap="medium")
with left:
    st.subheader("Groups", anchor=False)
    table, columns = groups_table(study)
    st.dataframe(
        table, column_config=columns, hide_index=True, height=320, alt="The groups of components, in forward order"
    )
with right:
    st.subheader("Not prunable", anchor=False)
    if study.skipped:
        with st.container(height=320, border=False):
            st.table(
                skipped_table(study),
                border="horizontal",
                hide_index=True,
                alt="Layers whose output channels cannot be removed, and the reason",
            )
    else:
        st.caption("None: every channel, neuron and head belongs to a group.")
st.caption(f"Study folder, also for the command line: {plain(session.library.store.study_path(session.source.id))}")
