"""Tables as the pages show them: values of a study, a plan or a measurement, with columns a person reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

import modhifi
from modhifi._format import by_reason, listed
from modhifi.components import Group

from .store import BoundPoint, Point

__all__ = [
    "bounds_table",
    "gains_table",
    "groups_table",
    "layers_table",
    "points_table",
    "skipped_table",
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


def gains_table(study: modhifi.Study) -> tuple[pd.DataFrame, Columns]:
    rows = [
        {"Layer": layer, "Largest": gain.maximum, "Root mean square": gain.rms, "Samples": gain.samples}
        for layer, gain in study.gains.items()
    ]
    number = st.column_config.NumberColumn
    return pd.DataFrame(rows), {"Largest": number(format="%.3g"), "Root mean square": number(format="%.3g")}


def layers_table(bound: BoundPoint) -> tuple[pd.DataFrame, Columns]:
    names = {
        "layer": "Layer",
        "gain": "Lipschitz, ≥",
        "local": "Local error",
        "alone_bound": "Bound",
        "measured": "Measured",
        "tightness": "Tightness",
    }
    table = pd.DataFrame(bound.rows)[list(names)].rename(columns=names)
    return table, {name: st.column_config.NumberColumn(format="%.3g") for name in list(names.values())[1:]}


def bounds_table(bounds: Sequence[BoundPoint]) -> tuple[pd.DataFrame, Columns]:
    rows = [
        {
            "Remains": 100 * b.choice.remain,
            "Plan": b.choice.label,
            "Bound": b.bound,
            "Measured": b.measured,
            "Tightness": b.tightness,
            "Samples": b.samples,
        }
        for b in bounds
    ]
    number = st.column_config.NumberColumn
    return pd.DataFrame(rows), {
        "Remains": number(format="%.0f%%"),
        "Bound": number(format="%.3g"),
        "Measured": number(format="%.3g"),
        "Tightness": number(format="%.1f×"),
    }


def points_table(points: Sequence[Point]) -> tuple[pd.DataFrame, Columns]:
    """Measured plans, the newest first."""
    rows = []
    for point in reversed(points):
        e = point.evaluation
        rows.append(
            {
                "Plan": point.label,
                "Accuracy": 100 * e["accuracy"],
                "Change": 100 * (e["accuracy"] - e["accuracy_before"]),
                "FLOPs": 100 * e["flops"] / e["flops_before"],
                "Parameters": 100 * e["params"] / e["params_before"],
                "Latency": e.get("latency_ms"),
                "Latency before": e.get("latency_ms_before"),
                "Images": e["samples"],
            }
        )
    number = st.column_config.NumberColumn
    return pd.DataFrame(rows), {
        "Accuracy": number(format="%.2f%%"),
        "Change": number("Change, points", format="%+.2f"),
        "FLOPs": number(format="%.1f%%"),
        "Parameters": number(format="%.1f%%"),
        "Latency": number("Latency, ms", format="%.2f"),
        "Latency before": number("before, ms", format="%.2f"),
    }
