"""The Bounds page: Lipschitz constants, bounds and measured errors."""

from functools import partial

import streamlit as st

from app import bounds as page
from app import components as ui
from app import figures
from app.tables import bounds_table, constants_table, layers_table, norms_table, slack_table

session, study = ui.analysed()

job = ui.latest_job(session, "constants")
left, right = st.columns([1.6, 1], gap="medium")
with left, st.container(border=True):
    title, which = st.columns([1, 1.3], vertical_alignment="center")
    with title:
        st.markdown("**Lipschitz constants**", help=f"{ui.FORMULAS['gain']} Click a layer to open it on *Importance*.")
    with which:
        text = "Statistic of the gains over samples; lower is less sensitive."
        statistic = ui.choice("Statistic", page.STATISTICS, "statistic", "maximum", text, hide_label=True)
    with st.container(horizontal=True):
        shown = page.constants_shown(study)
        if job is None or job.state != "running":
            page.estimate_more(session, study)
    notes = page.estimator_notes(study, shown, statistic)
    ui.chart(
        figures.constants(list(study.layers), page.series(study, shown, statistic), page.STATISTICS[statistic]),
        alt=f"Lipschitz constants from each layer to the logits, in forward order. {notes}",
        key="constants",
        on_select=partial(page.follow_click, study, "constants"),
        selection_mode="points",
    )
    st.caption(notes)
with right, st.container(border=True):
    st.markdown("**Has the estimate converged?**", help=ui.FORMULAS["convergence"])
    layer, gains = page.layer_in_focus(study)
    growth = gains.growth()
    summary = page.convergence_summary(gains, growth)
    ui.chart(figures.growth(growth), alt=f"{layer}: {summary}", key="growth")
    st.caption(summary)
    st.button(
        "Open on Importance",
        icon=":material/bar_chart_4_bars:",
        on_click=page.open_on_importance,
        args=(study, layer),
        key="open-layer",
    )

page.bound_controls(session)
bounds = page.measured_bounds(session)
left, right = st.columns(2, gap="medium")
with left, st.container(border=True):
    st.markdown("**Bound against measured error**", help=f"{ui.FORMULAS['bound']}\n\n{ui.FORMULAS['tightness']}")
    ui.chart(
        figures.bound_scatter(
            [b.report.measured for b in bounds],
            [b.report.bound for b in bounds],
            [b.label for b in bounds],
            page.layer_points(bounds),
        ),
        alt=page.scatter_summary(bounds),
        key="bound-scatter",
        on_select=partial(page.follow_click, study, "bound-scatter"),
        selection_mode="points",
    )
    st.caption(page.scatter_summary(bounds))
with right, st.container(border=True):
    st.markdown("**Where the slack comes from**", help=ui.FORMULAS["slack"])
    if bounds:
        chosen = st.selectbox("Plan", bounds, format_func=lambda b: b.label, key="bound-plan")
        table, columns = slack_table(chosen.report)
        st.dataframe(
            table, column_config=columns, hide_index=True, alt="Bound and tightness by granularity: layer, block, stage"
        )
        st.caption(page.held_out_summary(chosen.report))
    else:
        st.caption("No measurements yet.")

if bounds:
    st.subheader(
        "Layer by layer",
        anchor=False,
        help="Each layer is modified alone; all other layers keep their original weights.",
    )
    table, columns = layers_table(chosen.report)
    one, two = st.columns(2, gap="medium")
    with one:
        ui.chart(
            figures.tightness(table["Layer"].tolist(), table["Bound"].tolist(), table["Measured"].tolist()),
            alt=f"Bound and measured error for each layer of {chosen.label}",
            key="tightness",
            on_select=partial(page.follow_click, study, "tightness"),
            selection_mode="points",
        )
    with two:
        st.dataframe(
            table, column_config=columns, hide_index=True, height=300, alt="Bound and measured error of each layer"
        )
    with st.expander("All measured plans", icon=":material/table_rows:"):
        table, columns = bounds_table(bounds)
        st.dataframe(table, column_config=columns, hide_index=True, alt="Bound and measured error of each plan")
with st.expander("Constants as a table", icon=":material/table_rows:"):
    table, columns = constants_table(study)
    st.dataframe(table, column_config=columns, hide_index=True, alt="Lipschitz constants of each layer")
    if study.norms:
        st.markdown("**Smallest norm divided by, per LayerNorm**", help=ui.FORMULAS["norms"])
        table, columns = norms_table(study)
        st.dataframe(table, column_config=columns, hide_index=True, alt="Smallest norm that each LayerNorm divided by")
