"""Language models: perplexity and throughput in place of accuracy and latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

import modhifi
from modhifi.specs import TokenSpec

from .formulas import FORMULAS
from .latency import relative_latency
from .store import Point
from .tables import Columns, closeness, closeness_columns, timed

__all__ = ["is_language", "points_table"]


def is_language(study: modhifi.Study) -> bool:
    return isinstance(study.model.input, TokenSpec)


def _row(plan: str, point: Point, when: str, note: str) -> dict[str, Any]:
    """One row: the modified model (``when`` empty) or the original one (``_before``)."""
    e: Mapping[str, Any] = point.evaluation
    speeds = {"prefill": "prefill_tokens_per_second", "decode": "decode_tokens_per_second"}
    now = {title: e.get(f"{name}{when}") for title, name in speeds.items()}

    def share(title: str) -> float | None:
        speed, original = now[title], e.get(f"{speeds[title]}_before")
        return 100 * speed / original if speed and original else None

    latency = relative_latency(e)  # of one window; prefill is its tokens over it
    spread = None if latency is None or latency.spread is None else 100 * latency.spread / latency.share**2
    return {
        "Plan": plan,
        "Perplexity": e[f"perplexity{when}"],
        "× original": e[f"perplexity{when}"] / e["perplexity_before"],
        **closeness(e, bool(when)),
        "Parameters": 100 * e[f"params{when}"] / e["params_before"],
        "FLOPs": 100 * e[f"flops{when}"] / e["flops_before"],
        "Prefill": share("prefill"),
        "Spread": 0.0 if when else spread,
        "Decode": share("decode"),
        "Prefill, tokens/s": now["prefill"],
        "Decode, tokens/s": now["decode"],
        "Timed": timed(point),
        "Tokens": e["tokens"],
        "Note": note,
    }


def points_table(points: Sequence[Point]) -> tuple[pd.DataFrame, Columns]:
    """Measured plans of a language model, newest first, and the original model as measured with the newest."""
    rows = [_row(point.label, point, "", point.note) for point in reversed(points)]
    if points:
        rows.append(_row("Original model", points[-1], "_before", ""))
    number = st.column_config.NumberColumn
    same_run = "In per cent of the original model's, measured in turns in the same run: comparable between rows."
    return pd.DataFrame(rows), {
        "Perplexity": number(format="%.3f", help="Lower is better; 1 is the minimum."),
        "× original": number(format="%.3f", help="Lower is better: perplexity over that of the original model."),
        **closeness_columns(),
        "Parameters": number(format="%.1f%%", help=FORMULAS["params"]),
        "FLOPs": number(format="%.1f%%", help=FORMULAS["flops"]),
        "Prefill": number(format="%.1f%%", help=f"{FORMULAS['prefill']} {same_run}"),
        "Spread": number(
            "± points",
            format="%.1f",
            help="Uncertainty of *Prefill* in percentage points: the interquartile ranges of both models' rounds, combined.",
        ),
        "Decode": number(format="%.1f%%", help=f"{FORMULAS['decode']} {same_run}"),
        "Prefill, tokens/s": number(format="%.0f", help=FORMULAS["prefill"]),
        "Decode, tokens/s": number(format="%.0f", help=FORMULAS["decode"]),
        "Timed": st.column_config.DatetimeColumn(
            format="D MMM, HH:mm",
            help="When the row was measured. Tokens/s from different times also differ by the load of the machine.",
        ),
        "Tokens": number(help="Test tokens that were judged."),
    }
