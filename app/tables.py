"""Tables as the pages show them: values of a study, a plan or a measurement, with columns a person reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

import modhifi
from modhifi._format import by_reason, listed
from modhifi.bounds import BoundReport, Grain
from modhifi.components import Group
from modhifi.lipschitz import ESTIMATORS

from .store import BoundPoint, Point

__all__ = [
    "bounds_table",
    "constants_table",
    "groups_table",
    "layers_table",
    "norms_table",
    "points_table",
    "skipped_table",
    "slack_table",
]

Columns = dict[str, Any]
_SHARE = st.column_config.ProgressColumn


def groups_table(study: modhifi.Study, eta: float = 0.8) -> tuple[pd.DataFrame, Columns]:
    rows = [
        {
            "Group": group.name,
            "Kind": group.kind,
            "Components": group.size,
            "HiFi set": study.hifi_size(group.name, eta, "greedy", "full"),
            "Share": 100 * study.hifi_size(group.name, eta, "greedy", "full") / group.size,
            "Read by": _readers(group),
        }
        for group in study.groups
    ]
    help_ = f"The fewest components whose fidelity reaches {eta:.0%}, with full compensation."
    return pd.DataFrame(rows), {
        "HiFi set": st.column_config.NumberColumn(f"HiFi set, η = {eta}", help=help_),
        "Share": _SHARE("of the group", format="%.0f%%", min_value=0, max_value=100, help=help_),
    }


def _readers(group: Group) -> str:
    """The layer that reads a group, or how many."""
    return group.consumers[0].layer if len(group.consumers) == 1 else f"{len(group.consumers)} layers"


def skipped_table(study: modhifi.Study) -> pd.DataFrame:
    rows = [{"Channels of": listed(names), "Why": reason} for reason, names in by_reason(study.skipped).items()]
    return pd.DataFrame(rows, columns=["Channels of", "Why"])


def constants_table(study: modhifi.Study) -> tuple[pd.DataFrame, Columns]:
    rows = []
    for layer in study.layers:
        row: dict[str, Any] = {"Layer": layer}
        for name, by_layer in study.gains.items():
            title = ESTIMATORS[name].heading
            row |= {f"{title} ≥": by_layer[layer].maximum, f"{title}, RMS": by_layer[layer].rms}
        if study.certified:
            row[f"{ESTIMATORS['certified'].heading} ≤"] = study.certified[layer].value
        rows.append(row)
    table = pd.DataFrame(rows)
    return table, {name: st.column_config.NumberColumn(format="%.3g") for name in table.columns[1:]}


def norms_table(study: modhifi.Study) -> tuple[pd.DataFrame, Columns]:
    rows = [
        {"LayerNorm": name, "Smallest": float(norms.min()), "Median": float(norms.median()), "Samples": len(norms)}
        for name, norms in study.norms.items()
    ]
    return pd.DataFrame(rows), {name: st.column_config.NumberColumn(format="%.3g") for name in ("Smallest", "Median")}


def layers_table(report: BoundReport) -> tuple[pd.DataFrame, Columns]:
    names = {
        "layer": "Layer",
        "gain": "Lipschitz, ≥",
        "local": "Local error",
        "predicted": "Predicted",
        "alone_bound": "Bound",
        "measured": "Measured",
        "tightness": "Tightness",
    }
    table = pd.DataFrame([row.model_dump() for row in report.rows])[list(names)].rename(columns=names)
    return table, {name: st.column_config.NumberColumn(format="%.3g") for name in list(names.values())[1:]}


def slack_table(report: BoundReport) -> tuple[pd.DataFrame, Columns]:
    steps: dict[str, BoundReport | Grain] = {"layer": report, **report.grains}
    rows = [
        {
            "Swapped in by": name,
            "Steps": one.steps if isinstance(one, Grain) else len(one.rows),
            "Bound": one.bound,
            "Tightness": one.tightness,
            "Largest": one.slack_maximum,
            "Adding up": one.slack_sum,
        }
        for name, one in steps.items()
    ]
    number = st.column_config.NumberColumn
    return pd.DataFrame(rows), {
        "Bound": number(format="%.3g"),
        "Tightness": number(
            format="%.1f×", help="Bound over measured error: the product of the two columns that follow."
        ),
        "Largest": number(format="%.1f×", help="What the largest gain costs in place of each layer's typical one."),
        "Adding up": number(format="%.1f×", help="What it costs to add up errors that partly cancel."),
    }


def bounds_table(bounds: Sequence[BoundPoint]) -> tuple[pd.DataFrame, Columns]:
    rows = [
        {
            "Remains": 100 * b.choice.remain,
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
        "Remains": number(format="%.0f%%"),
        **{name: number(format="%.3g") for name in ("Predicted", "Bound", "Measured")},
        **{name: number(format="%.1f×") for name in ("Tightness", "By stage")},
        "Layers alone": number(format="%.1f×", help="Median tightness of the layers changed alone."),
        "Broken": number(format="%.2f%%", help="Errors of a layer alone on samples that its constant is not from."),
    }


def _row(plan: str, e: Mapping[str, Any], when: str, note: str) -> dict[str, Any]:
    """What an evaluation says of the network after (``when`` empty) or ``_before``."""
    return {
        "Plan": plan,
        "Accuracy": 100 * e[f"accuracy{when}"],
        "Change": 100 * (e[f"accuracy{when}"] - e["accuracy_before"]),
        "FLOPs": 100 * e[f"flops{when}"] / e["flops_before"],
        "Parameters": 100 * e[f"params{when}"] / e["params_before"],
        "Latency": e.get(f"latency_ms{when}"),
        "Latency before": e.get("latency_ms_before"),
        "Images": e["samples"],
        "Note": note,
    }


def points_table(points: Sequence[Point]) -> tuple[pd.DataFrame, Columns]:
    """Measured plans, the newest first, and the unchanged network as the newest found it."""
    rows = [_row(point.label, point.evaluation, "", point.note) for point in reversed(points)]
    if points:
        rows.append(_row("Unchanged network", points[-1].evaluation, "_before", ""))
    number = st.column_config.NumberColumn
    return pd.DataFrame(rows), {
        "Accuracy": number(format="%.2f%%"),
        "Change": number("Change, points", format="%+.2f"),
        "FLOPs": number(format="%.1f%%"),
        "Parameters": number(format="%.1f%%"),
        "Latency": number("Latency, ms", format="%.2f"),
        "Latency before": number("before, ms", format="%.2f"),
    }
