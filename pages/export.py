"""Take away the plan, the changed network and the report."""

import streamlit as st

from app import components as ui
from app.commands import commands
from app.export import downloads
from app.outcome import before_and_after

session, study = ui.analysed()
point = ui.current_plan(session)
if point is None:
    st.info(
        "No plan yet: measure one on *Prune*, or let the network forget a class on *Forget*.", icon=":material/info:"
    )
    st.stop()
before_and_after(point)
downloads(session, point)
st.subheader("The same from the command line", anchor=False)
st.caption("The downloaded plan is measured again by `python -m modhifi evaluate plan.zip`, with the same result.")
plan = session.library.store.plan(session.source.id, point.id)
# Without colours of a language, which are too pale to read.
st.code(commands(session.source, plan, point), language=None, wrap_lines=True)
