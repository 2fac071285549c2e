"""The Export page: download the plan, the modified network and a report."""

import streamlit as st

from app import components as ui
from app.commands import commands
from app.export import downloads
from app.outcome import result_row

session, study = ui.analysed()
point = ui.current_plan(session)
if point is None:
    st.info("No plan yet. Measure one on *Prune*, or forget a class on *Forget*.", icon=":material/info:")
    st.stop()
result_row(point)
downloads(session, point)
st.subheader("Reproduce on the command line", anchor=False)
st.caption("`python -m modhifi evaluate plan.zip` measures the downloaded plan again, with the same result.")
plan = session.library.store.plan(session.source.id, point.id)
# No syntax highlighting: its colours have too little contrast.
st.code(commands(session.source, plan, point), language=None, wrap_lines=True)
