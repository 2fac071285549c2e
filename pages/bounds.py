"""From local errors to the error of the whole network: estimated constants, bounds, measurements."""

import streamlit as st

from app import components as ui
from app import figures
from app.bounds import bound_controls, in_words, measured_bounds
from app.tables import bounds_table, gains_table, layers_table

session, study = ui.analysed()

left, right = st.columns(2, gap="medium")
with left, st.container(border=True):
    st.markdown("**Estimated Lipschitz constants**", help=ui.FORMULAS["gain"])
    layers, values = list(study.gains), list(study.gains.values())
    seen = f"Lower bounds of the true constants, from {values[0].samples if values else 0} samples."
    ui.chart(
        figures.gains(layers, [v.maximum for v in values], [v.rms for v in values]),
        alt=f"Estimated Lipschitz constant of the tail after each layer. {seen}",
        key="gains",
    )
    st.caption(seen)
with right, st.container(border=True):
    st.markdown("**Bound against measured error**", help=f"{ui.FORMULAS['bound']}\n\n{ui.FORMULAS['tightness']}")
    bounds = measured_bounds(session)
    ui.chart(
        figures.bound_scatter(
            [b.measured for b in bounds], [b.bound for b in bounds], [b.choice.remain for b in bounds]
        ),
        alt=in_words(bounds),
        key="bound-scatter",
    )
    st.caption(in_words(bounds))
bound_controls(session)

if bounds:
    st.subheader("Layer by layer", anchor=False)
    chosen = st.selectbox(
        "Plan",
        bounds,
        format_func=lambda b: b.choice.label,
        help="Each layer is changed alone, the others stay as they are.",
    )
    table, columns = layers_table(chosen)
    one, two = st.columns(2, gap="medium")
    with one:
        ui.chart(
            figures.tightness(table["Layer"], table["Bound"], table["Measured"]),
            alt=f"Bound and measured error for each layer of {chosen.choice.label}",
            key="tightness",
        )
    with two:
        st.dataframe(
            table, column_config=columns, hide_index=True, height=300, alt="Bound and measured error of each layer"
        )
    with st.expander("All measured plans", icon=":material/table_rows:"):
        table, columns = bounds_table(bounds)
        st.dataframe(table, column_config=columns, hide_index=True, alt="Bound and measured error of each plan")
with st.expander("Constants as a table", icon=":material/table_rows:"):
    table, columns = gains_table(study)
    st.dataframe(table, column_config=columns, hide_index=True, alt="Estimated Lipschitz constants")
