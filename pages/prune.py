"""The Prune page: choose a budget, see the prediction at once, then measure."""

import streamlit as st

from app import components as ui
from app import figures, language
from app.outcome import result_row
from app.predictions import predictions
from app.prune import AXES, axis_choice, compare_controls, measured, note_on, point_from_click, prune_controls, quality
from app.tables import points_table
from modhifi.pruning import SHARES

session, study = ui.analysed()
tokens = language.is_language(study)
left, right = st.columns([1, 2.6], gap="medium")
with left, st.container(border=True):
    request = prune_controls(session, study, right)
with right:
    plan = request.allocation
    if request.problem is not None:
        ui.fault(request.problem)
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
        ]
        if not tokens:
            row.append(
                ui.Number(
                    "Predicted latency",
                    "n/a" if plan.milliseconds is None else f"{plan.milliseconds:.2f} ms",
                    ui.FORMULAS["table_ms"],
                    note="layers not timed" if request.dense_ms is None else f"of {request.dense_ms:.2f} ms",
                )
            )
        ui.numbers(row)
        ui.numbers(predictions(session, study, request.choice, plan))
    job = ui.latest_job(session, "measure")
    points = session.points()
    pruned = [point for point in points if point.kind == "prune"]
    one, two = st.columns(2, gap="small")
    with one, st.container(border=True):
        kept, sensitive = st.tabs(["Components kept", "Sensitivity"])
        if plan is not None:
            names = list(plan.counts)
            with kept:
                ui.chart(
                    figures.allocation(names, [plan.counts[n] for n in names], [g.size for g in study.groups]),
                    alt=f"Components kept per group for {request.choice.label}",
                    key="allocation-figure",
                )
            with sensitive:
                st.caption(ui.FORMULAS["sensitivity"])
                ui.chart(
                    figures.sensitivity(
                        names, SHARES, session.library.queries.sensitivity(session.source, request.choice)
                    ),
                    alt="Estimated RMS error of the logits if only one group is cut, by the share of it that is kept",
                    key="sensitivity-figure",
                )
    with two, st.container(border=True):
        better = "Down" if tokens else "Up"
        st.markdown(
            "**Measured plans**", help=f"{better} and left is better. Click a point to make it the current plan."
        )
        axis = axis_choice(study)
        asked = {"flops": flops, "params": params} if plan else {}
        if plan is not None and plan.milliseconds is not None and request.dense_ms:
            asked["latency_ms"] = plan.milliseconds / request.dense_ms
        measure = quality(pruned, tokens)
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
compare_controls(session, study, request)
if not pruned:
    st.caption("No measurements yet. Press *Measure* to add this plan to the chart.")
else:
    point = ui.current_plan(session)
    if point is not None:
        result_row(point)
        note_on(session, point)
    table, columns = language.points_table(pruned) if tokens else points_table(pruned)
    st.dataframe(
        table, column_config=columns, hide_index=True, alt="Measured plans, newest first, and the original network"
    )
