"""Choose a budget, see at once what it is predicted to cost, measure what it really costs."""

import streamlit as st

from app import components as ui
from app import figures
from app.prune import measured, point_from_click, prune_controls
from app.tables import points_table

session, study = ui.analysed()
left, right = st.columns([1, 2.6], gap="medium")
with left, st.container(border=True):
    wish = prune_controls(session, study, right)
with right:
    plan = wish.allocation
    if wish.problem is not None:
        st.error(wish.problem, icon=":material/error:")
    if plan is not None:
        flops, params = plan.cost.flops / study.dense.flops, plan.cost.params / study.dense.params
        ui.numbers(
            [
                ui.Number(
                    "FLOPs",
                    ui.percent(flops),
                    ui.FORMULAS["flops"],
                    note=f"{ui.compact(plan.cost.flops)} of {ui.compact(study.dense.flops)}",
                ),
                ui.Number(
                    "Parameters",
                    ui.percent(params),
                    ui.FORMULAS["params"],
                    note=f"{ui.compact(plan.cost.params)} of {ui.compact(study.dense.params)}",
                ),
                ui.Number(
                    "Predicted fidelity", f"{plan.mean_fidelity:.4f}", ui.FORMULAS["fidelity"], note="over all groups"
                ),
                ui.Number("Predicted bound", f"{plan.bound:.3g}", ui.FORMULAS["bound"], note="RMS over the logits"),
            ]
        )
    job = ui.latest_job(session, "measure")
    points = session.points()
    pruned = [point for point in points if point.kind == "prune"]
    one, two = st.columns(2, gap="small")
    with one, st.container(border=True):
        st.markdown("**What stays**", help="How many components of each group the plan keeps.")
        if plan is not None:
            names = list(plan.counts)
            ui.chart(
                figures.allocation(names, [plan.counts[n] for n in names], [g.size for g in study.groups]),
                alt=f"Components kept per group for {wish.choice.label}",
                key="allocation-figure",
            )
    with two, st.container(border=True):
        st.markdown("**What it costs**", help=f"{ui.FORMULAS['accuracy']} Click a point to make it the current plan.")
        dense = pruned[-1].evaluation["accuracy_before"] if pruned else None
        ui.chart(
            figures.trade_off(
                measured(pruned), dense, flops if plan else None, session.plan.id if session.plan else None
            ),
            alt=f"Accuracy against FLOPs of {len(pruned)} measured plans",
            key="trade-off",
            on_select=point_from_click,
            selection_mode="points",
        )
if not pruned:
    st.caption("Nothing measured yet: press Measure, and the point appears in the chart.")
else:
    point = ui.current_plan(session)
    ui.before_and_after(point)
    table, columns = points_table(pruned)
    st.dataframe(table, column_config=columns, hide_index=True, alt="Measured plans, the newest first")
