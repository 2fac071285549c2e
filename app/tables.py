"""Tables of a study, a plan or a measurement, with the configuration of their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pandas as pd
import streamlit as st

import modhifi
from modhifi.bounds import BoundReport, Grain
from modhifi.components import Group
from modhifi.lipschitz import estimators
from modhifi.text import listed

from .formulas import FORMULAS
from .latency import Relative, relative_latency
from .store import BoundPoint, Point
from .texts import plain

__all__ = [
    "Columns",
    "bounds_table",
    "closeness",
    "closeness_columns",
    "constants_table",
    "groups_table",
    "layers_table",
    "norms_table",
    "points_table",
    "skipped_table",
    "slack_table",
    "timed",
]

Columns = dict[str, Any]
"""Streamlit's configuration of a table, by column."""


def groups_table(study: modhifi.Study, eta: float = 0.8) -> tuple[pd.DataFrame, Columns]:
    """Every group in forward order, with the size of its HiFi set."""
    sizes = [study.hifi_size(group.name, eta, "greedy", "full") for group in study.groups]
    rows = [
        {
            "Group": group.name,
            "Kind": group.kind,
            "Components": group.size,
            "HiFi set": size,
            "Share": 100 * size / group.size,
            "Read by": _readers(group),
        }
        for group, size in zip(study.groups, sizes, strict=True)
    ]
    text = f"The fewest components whose fidelity reaches {eta:.0%} with full compensation. Lower: more can be removed."
    return pd.DataFrame(rows), {
        "HiFi set": st.column_config.NumberColumn(f"HiFi set, η = {eta}", help=text),
        "Share": st.column_config.ProgressColumn(
            "of the group", format="%.0f%%", min_value=0, max_value=100, help=text
        ),
    }


def _readers(group: Group) -> str:
    """The layer that reads a group, or how many."""
    return group.consumers[0].layer if len(group.consumers) == 1 else f"{len(group.consumers)} layers"


def skipped_table(study: modhifi.Study) -> pd.DataFrame:
    """Layers whose output channels cannot be removed, by reason; for `st.table`, whose cells are Markdown."""
    rows = [
        {"Layers": plain(listed(names)), "Reason": plain(reason)}
        for reason, names in study.structure.skipped_by_reason.items()
    ]
    return pd.DataFrame(rows, columns=["Layers", "Reason"])


def constants_table(study: modhifi.Study) -> tuple[pd.DataFrame, Columns]:
    """One row per layer, two columns per estimator."""
    rows = []
    for layer in study.layers:
        row: dict[str, Any] = {"Layer": layer}
        for name, by_layer in study.gains.items():
            title = estimators()[name].heading
            row |= {f"{title} ≥": by_layer[layer].maximum, f"{title}, RMS": by_layer[layer].rms}
        if study.certified:
            row[f"{estimators()['certified'].heading} ≤"] = study.certified[layer].value
        rows.append(row)
    table = pd.DataFrame(rows)
    text = "Logit error per unit of local error; lower is less sensitive."
    return table, {name: st.column_config.NumberColumn(format="%.3g", help=text) for name in table.columns[1:]}


def norms_table(study: modhifi.Study) -> tuple[pd.DataFrame, Columns]:
    """The smallest norms that each LayerNorm divided by."""
    rows = [
        {"LayerNorm": name, "Smallest": float(norms.min()), "Median": float(norms.median()), "Samples": len(norms)}
        for name, norms in study.norms.items()
    ]
    text = "Over positions of a sample; higher magnifies less."
    return pd.DataFrame(rows), {
        name: st.column_config.NumberColumn(format="%.3g", help=f"{name} over samples. {text}")
        for name in ("Smallest", "Median")
    }


def layers_table(report: BoundReport) -> tuple[pd.DataFrame, Columns]:
    """Every modified layer of a plan."""
    columns = {
        "layer": ("Layer", "", ""),
        "gain": ("Lipschitz ≥", "%.3g", "Largest gain on the test samples; lower is less sensitive."),
        "local": ("Local error", "%.3g", "RMS error of the layer's output; lower is better."),
        "predicted": ("Predicted", "%.3g", "Constant times local error, from the study alone; lower is better."),
        "alone_bound": (
            "Bound",
            "%.3g",
            "Bound on the RMS logit error if this layer alone is modified; lower is better.",
        ),
        "measured": ("Measured", "%.3g", "RMS logit error if this layer alone is modified; lower is better."),
        "tightness": ("Tightness", "%.1f×", "Bound over measured error; lower is better, 1× is perfect."),
    }
    titles = {name: title for name, (title, _, _) in columns.items()}
    table = pd.DataFrame([row.model_dump() for row in report.rows])[list(titles)].rename(columns=titles)
    return table, {
        title: st.column_config.NumberColumn(format=format_, help=text)
        for title, format_, text in columns.values()
        if format_
    }


def slack_table(report: BoundReport) -> tuple[pd.DataFrame, Columns]:
    """The bound at three granularities, and the two factors of its tightness."""
    steps: dict[str, BoundReport | Grain] = {"layer": report, **report.grains}
    rows = [
        {
            "Granularity": name,
            "Steps": one.steps if isinstance(one, Grain) else len(one.rows),
            "Bound": one.bound,
            "Tightness": one.tightness,
            "Worst-case gain": one.slack_maximum,
            "Summation": one.slack_sum,
        }
        for name, one in steps.items()
    ]
    number = st.column_config.NumberColumn
    return pd.DataFrame(rows), {
        "Granularity": st.column_config.TextColumn(help="Layers are replaced one layer, block or stage at a time."),
        "Steps": number(help="Terms of the sum."),
        "Bound": number(format="%.3g", help="On the RMS error of the logits; lower is better."),
        "Tightness": number(
            format="%.1f×", help="Lower is better. Bound over measured error: the product of the next two columns."
        ),
        "Worst-case gain": number(
            format="%.1f×", help="Lower is better. Slack because the largest gain stands for all samples."
        ),
        "Summation": number(format="%.1f×", help="Lower is better. Slack because errors are added that partly cancel."),
    }


def bounds_table(bounds: Sequence[BoundPoint]) -> tuple[pd.DataFrame, Columns]:
    """One row per measured plan."""
    rows = [
        {
            "FLOPs kept": 100 * b.choice.remain,
            "Plan": b.label,
            "Predicted": b.report.predicted,
            "Bound": b.report.bound,
            "Measured": b.report.measured,
            "Tightness": b.report.tightness,
            "By stage": b.report.grains["stage"].tightness,
            "Layers alone": b.report.median_tightness,
            "Broken": 100 * b.report.held_out.layers if b.report.held_out else None,
            "Samples": b.report.samples,
        }
        for b in bounds
    ]
    number = st.column_config.NumberColumn
    return pd.DataFrame(rows), {
        "FLOPs kept": number(format="%.0f%%", help="The budget: fraction of the FLOPs that remain."),
        "Predicted": number(format="%.3g", help="Bound from the study alone, with constants of the original network."),
        "Bound": number(format="%.3g", help="On the RMS error of the logits; lower is better."),
        "Measured": number(format="%.3g", help="RMS error of the logits; lower is better."),
        "Tightness": number(format="%.1f×", help="Bound over measured error; lower is better, 1× is perfect."),
        "By stage": number(format="%.1f×", help="Tightness when all layers of a stage are replaced together."),
        "Layers alone": number(format="%.1f×", help="Median tightness of the layers modified one by one."),
        "Broken": number(
            format="%.2f%%",
            help="Single-layer errors above their bound if constants come from other samples; expected share 1/(N + "
            "1).",
        ),
        "Samples": number(help="Test samples."),
    }


def timed(point: Point) -> datetime:
    """When a plan was measured, in the server's local time."""
    return datetime.fromtimestamp(point.made)


def closeness(e: Mapping[str, Any], original: bool) -> dict[str, float | None]:
    """The columns that say how close the answers are to the original network's; it agrees with itself. None in plans that were
    measured by earlier versions.
    """
    if original:
        return {"Agreement": 100.0, "Relative error": 0.0, "KL": 0.0}
    agreement = e.get("agreement")
    return {
        "Agreement": None if agreement is None else 100 * agreement,
        "Relative error": e.get("relative_error"),
        "KL": e.get("kl"),
    }


def closeness_columns() -> Columns:
    """How `closeness` is shown."""
    number = st.column_config.NumberColumn
    return {
        "Agreement": number(format="%.2f%%", help=FORMULAS["agreement"]),
        "Relative error": number(format="%.4f", help=FORMULAS["relative_error"]),
        "KL": number("KL, nats", format="%.4f", help=FORMULAS["kl"]),
    }


def _row(plan: str, point: Point, original: bool) -> dict[str, Any]:
    """One row: the modified network, or the ``original`` as measured in the same run."""
    e, when = point.evaluation, "_before" if original else ""
    latency = relative_latency(e)
    if original and latency is not None:
        latency = Relative(1.0, 0.0)  # relative to itself
    accuracy, before = e[f"accuracy{when}"], e["accuracy_before"]
    return {
        "Plan": plan,
        "Accuracy": None if accuracy is None else 100 * accuracy,
        "Change": None if accuracy is None or before is None else 100 * (accuracy - before),
        **closeness(e, original),
        "FLOPs": 100 * e[f"flops{when}"] / e["flops_before"],
        "Parameters": 100 * e[f"params{when}"] / e["params_before"],
        "Latency": None if latency is None else 100 * latency.share,
        "Spread": None if latency is None or latency.spread is None else 100 * latency.spread,
        "Latency, ms": e.get(f"latency_ms{when}"),
        "Original, ms": e.get("latency_ms_before"),
        "Timed": timed(point),
        "Images": e["samples"],
        "Note": "" if original else point.note,
    }


def points_table(points: Sequence[Point]) -> tuple[pd.DataFrame, Columns]:
    """Measured plans, newest first, and the original network as measured with the newest."""
    rows = [_row(point.label, point, original=False) for point in reversed(points)]
    if points:
        rows.append(_row("Original network", points[-1], original=True))
    number = st.column_config.NumberColumn
    return pd.DataFrame(rows), {
        "Accuracy": number(format="%.2f%%", help=FORMULAS["accuracy"]),
        "Change": number(
            "Change, points", format="%+.2f", help="Higher is better. Accuracy minus that of the original network."
        ),
        **closeness_columns(),
        "FLOPs": number(format="%.1f%%", help=f"{FORMULAS['flops']} In per cent of the original network's."),
        "Parameters": number(format="%.1f%%", help=f"{FORMULAS['params']} In per cent of the original network's."),
        "Latency": number(format="%.1f%%", help=FORMULAS["relative_latency"]),
        "Spread": number("± points", format="%.1f", help=FORMULAS["latency_spread"]),
        "Latency, ms": number(format="%.2f", help=f"{FORMULAS['latency_ms']} See *Timed* before comparing rows."),
        "Original, ms": number(format="%.2f", help="Latency of the original network in the same run."),
        "Timed": st.column_config.DatetimeColumn(format="D MMM, HH:mm", help=FORMULAS["timed"]),
        "Images": number(help="Test images."),
    }
