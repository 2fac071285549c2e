"""Choose a network and its images, run the analysis, see what the network is made of."""

from functools import partial

import streamlit as st

from app import components as ui
from app import figures, network
from app.model_form import FORM_OPEN, model_form
from app.session import current, focus
from app.tables import groups_table, skipped_table
from modhifi.specs import TokenSpec

session = current()
# Only a person opens it, and a form that was sent closes.
with st.expander("Choose another network or other images", key=FORM_OPEN, icon=":material/add:", on_change="rerun"):
    model_form(session.library)
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
            "Sets of components of one kind, each with the layers that write and read them: channels inside a block or of a "
            "residual stream, hidden neurons, attention heads.",
        ),
        ui.Number("Components", str(sum(g.size for g in study.groups)), "All that could be removed, one by one."),
        ui.Number("Vocabulary", str(tokens.vocabulary), "Tokens that the model tells apart.")
        if tokens
        else ui.Number("Classes", str(len(study.model.classes)), "What the network tells apart."),
        ui.Number(
            "Samples",
            str(study.data.samples),
            f"Windows of {tokens.context} tokens that the statistics were taken from."
            if tokens
            else "Unlabelled images that the statistics were taken from.",
        ),
    ]
)
blocks = network.read_map(study)
with st.container(border=True):
    title, colour = st.columns([1, 1], vertical_alignment="center")
    with title:
        st.subheader(
            "Map",
            anchor=False,
            help="A bar a group, where it is written and as high as it has components; below, the residual streams. A click "
            "makes a group the one that every page speaks of.",
        )
    with colour, st.container(horizontal=True, horizontal_alignment="right"):
        coloured = network.map_colour()
    ui.chart(
        figures.network_map(blocks, coloured, network.COLOURS[coloured], focus(study)),
        alt=network.in_words(blocks),
        key="network-map",
        on_select=partial(ui.focus_from_click, "network-map"),
        selection_mode="points",
    )
    st.caption(network.in_words(blocks))
left, right = st.columns([3, 2] if study.skipped else [4, 1], gap="medium")
with left:
    st.subheader("Groups", anchor=False)
    table, columns = groups_table(study)
    st.dataframe(
        table, column_config=columns, hide_index=True, height=320, alt="The groups of components, in forward order"
    )
with right:
    st.subheader("Left whole", anchor=False)
    if study.skipped:
        with st.container(height=320, border=False):
            st.table(skipped_table(study), border="horizontal", hide_index=True, alt="Channels left whole, and why")
    else:
        st.caption("Nothing: every channel, neuron and head belongs to a group.")
st.caption(
    f"The study is kept in `{session.library.store.study_path(session.source.id)}`; the command line reads it too."
)
