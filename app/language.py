"""What the pages say of language models in place of accuracy, classes and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

import modhifi
from modhifi.models import TokenSpec

from .store import Point
from .tables import Columns

__all__ = ["COMPARED", "is_language", "points_table"]

COMPARED = ("width", "width-one-shot", "free", "cholesky", "magnitude", "chance")
"""What a comparison of methods begins with."""


def is_language(study: modhifi.Study) -> bool:
    return isinstance(study.model.input, TokenSpec)


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
