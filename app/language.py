"""What the pages say of language models in place of accuracy, classes and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

import modhifi
from modhifi.models import TokenSpec

from . import figures
from .components import FORMULAS, changed, compact, numbers
from .figures import TradeOff
from .store import Point
from .tables import Columns

__all__ = ["COMPARED", "before_and_after", "is_language", "points_table", "trade_off"]

COMPARED = ("width", "width-one-shot", "free", "cholesky", "magnitude", "chance")
"""What a comparison of methods begins with."""


def is_language(study: modhifi.Study) -> bool:
    return isinstance(study.model.input, TokenSpec)


def before_and_after(point: Point) -> None:
    """What a measured plan of a language model costs and saves."""
    e = point.evaluation
    text = (
        f"exp of the mean −log p of {e['tokens']:,} tokens, in windows of {e['context']} that begin {e['stride']} after one"
        f" another; before: {e['perplexity_before']:.3f}."
    )
    row = [
        changed("Perplexity", e, "perplexity", f"{e['perplexity']:.3f}", text, "down"),
        changed("Parameters", e, "params", compact(e["params"]), FORMULAS["params"], "down"),
        changed("FLOPs", e, "flops", compact(e["flops"]), FORMULAS["flops"], "down"),
    ]
    for title, name, help_ in (
        ("Read", "prefill_tokens_per_second", "Tokens a second that are read at once, a whole window."),
        (
            "Written",
            "decode_tokens_per_second",
            "Tokens a second that are written one by one, with the key-value cache.",
        ),
    ):
        row.append(changed(title, e, name, f"{e[name]:,.0f}/s", help_, "up"))
    numbers(row)


def trade_off(
    points: Sequence[TradeOff], dense: float | None, planned: float | None, chosen: str | None, axis: str
) -> go.Figure:
    """`figures.trade_off` with perplexity, which ``accuracy`` of the points holds, lower being better."""
    shown = [figures.TradeOff(p.id, p.label, p.share, p.accuracy / 100, p.cost) for p in points]
    figure = figures.trade_off(shown, None if dense is None else dense / 100, planned, chosen, axis)
    for trace in figure.data:
        trace.hovertemplate = trace.hovertemplate.replace("accuracy %{y:.2f}%", "perplexity %{y:.3f}")
    values = [p.accuracy for p in points if p.share is not None] + ([] if dense is None else [dense])
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.12 * (high - low) or 0.05 * high
    figure.update_yaxes(title="perplexity", ticksuffix="", range=[low - margin, high + margin])
    return figure


def _row(plan: str, e: Mapping[str, Any], when: str, note: str) -> dict[str, Any]:
    """What an evaluation says of the model after (``when`` empty) or ``_before``."""
    return {
        "Plan": plan,
        "Perplexity": e[f"perplexity{when}"],
        "× unchanged": e[f"perplexity{when}"] / e["perplexity_before"],
        "Parameters": 100 * e[f"params{when}"] / e["params_before"],
        "FLOPs": 100 * e[f"flops{when}"] / e["flops_before"],
        "Read": e[f"prefill_tokens_per_second{when}"],
        "Written": e[f"decode_tokens_per_second{when}"],
        "Tokens": e["tokens"],
        "Note": note,
    }


def points_table(points: Sequence[Point]) -> tuple[pd.DataFrame, Columns]:
    """Measured plans of a language model, the newest first, and the unchanged model as the newest found it."""
    rows = [_row(point.label, point.evaluation, "", point.note) for point in reversed(points)]
    if points:
        rows.append(_row("Unchanged model", points[-1].evaluation, "_before", ""))
    number = st.column_config.NumberColumn
    return pd.DataFrame(rows), {
        "Perplexity": number(format="%.3f"),
        "× unchanged": number(format="%.3f"),
        "Parameters": number(format="%.1f%%"),
        "FLOPs": number(format="%.1f%%"),
        "Read": number("Read, tokens/s", format="%.0f"),
        "Written": number("Written, tokens/s", format="%.0f"),
    }
