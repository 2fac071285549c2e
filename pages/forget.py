"""Make the network forget classes, and test whether it did."""

import numpy as np
import streamlit as st

from app import components as ui
from app import figures
from app.forget import forget_controls, forgotten, in_words, numbers_of

session, study = ui.analysed()
with st.container(border=True):
    forget_controls(session, study)
ui.latest_job(session, "forget")
point = forgotten(session)
if point is not None:
    ui.numbers(numbers_of(point))
    st.markdown(in_words(point))
    result = point.evaluation
    classes = list(result["per_class"])
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
