"""Choose a budget, see at once what it is predicted to cost, measure what it really costs."""

import streamlit as st

from app import components as ui
from app import figures, language
from app.outcome import before_and_after
from app.prune import AXES, axis_choice, compare_controls, measured, note_on, point_from_click, prune_controls
from app.tables import points_table
from modhifi.pruning import SHARES

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
        row = [
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
        if not language.is_language(study):
            row.append(
                ui.Number(
                    "Latency",
                    "n/a" if plan.milliseconds is None else f"{plan.milliseconds:.2f} ms",
                    ui.FORMULAS["table_ms"],
                    note="not timed yet" if wish.dense_ms is None else f"of {wish.dense_ms:.2f} ms",
                )
            )
        ui.numbers(row)
    job = ui.latest_job(session, "measure")
    points = session.points()
    pruned = [point for point in points if point.kind == "prune"]
    one, two = st.columns(2, gap="small")
    with one, st.container(border=True):
        stays, sensitive = st.tabs(["What stays", "Sensitivity"])
        if plan is not None:
            names = list(plan.counts)
            with stays:
                ui.chart(
                    figures.allocation(names, [plan.counts[n] for n in names], [g.size for g in study.groups]),
                    alt=f"Components kept per group for {wish.choice.label}",
                    key="allocation-figure",
                )
            with sensitive:
                st.caption(ui.FORMULAS["sensitivity"])
                ui.chart(
                    figures.sensitivity(
                        names, SHARES, session.library.queries.sensitivity(session.source, wish.choice)
                    ),
                    alt="Estimated error of the logits when only one group is cut, for several shares of it",
                    key="sensitivity-figure",
                )
    with two, st.container(border=True):
        st.markdown("**What it costs**", help=f"{ui.FORMULAS['accuracy']} Click a point to make it the current plan.")
        axis = axis_choice(study)
        asked = {"flops": flops, "params": params} if plan else {}
        if plan is not None and plan.milliseconds is not None and wish.dense_ms:
            asked["latency_ms"] = plan.milliseconds / wish.dense_ms
        tokens = language.is_language(study)
        measure = figures.PERPLEXITY if tokens else figures.ACCURACY
        ui.chart(
            figures.trade_off(
                measured(pruned, measure, axis),
                measure.of(pruned[-1].evaluation, "_before") if pruned else None,
                asked.get(axis),
                session.plan.id if session.plan else None,
                AXES[axis],
                measure,
            ),
            alt=f"{measure.name.capitalize()} against {AXES[axis]} of {len(pruned)} measured plans",
            key="trade-off",
            on_select=point_from_click,
            selection_mode="points",
        )
compare_controls(session, study, wish)
if not pruned:
    st.caption("Nothing measured yet: press Measure, and the point appears in the chart.")
else:
    point = ui.current_plan(session)
    before_and_after(point)
    note_on(session, point)
    table, columns = language.points_table(pruned) if tokens else points_table(pruned)
    st.dataframe(
        table, column_config=columns, hide_index=True, alt="Measured plans, the newest first, and the unchanged network"
    )
