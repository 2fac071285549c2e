"""What a measured plan costs and saves, in a row of numbers with what they were before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from .components import FORMULAS, Number, compact, numbers, percent
from .store import Point

__all__ = ["before_and_after", "points"]


def before_and_after(point: Point) -> None:
    """Draws the row."""
    e = point.evaluation
    numbers(_of_classifier(point.kind, e) if e.get("perplexity") is None else _of_language(e))


def _of_classifier(kind: str, e: Mapping[str, Any]) -> list[Number]:
    same = e["flops"] == e["flops_before"]
    text = f"{FORMULAS['accuracy']} Here {e['samples']}; before: {percent(e['accuracy_before'], 2)}."
    row = [points("Accuracy", e, "accuracy", text, "up", 2)]
    if kind == "unlearn":
        row.append(points("Forget accuracy", e, "forget_accuracy", "Accuracy on the forgotten classes.", "down"))
        row.append(points("Retain accuracy", e, "retain_accuracy", "Accuracy on the other classes.", "up"))
    if kind == "prune" or not same:
        row.append(_changed("FLOPs", e, "flops", compact(e["flops"]), FORMULAS["flops"]))
        row.append(_changed("Parameters", e, "params", compact(e["params"]), FORMULAS["params"]))
    if e["latency_ms"] is not None and e["latency_ms_before"] is not None:
        value, before = f"{e['latency_ms']:.2f} ms", f"{e['latency_ms_before']:.2f} ms before"
        # A network of the same shape takes the same time: a difference would be noise, and is not painted as a change.
        row.append(
            Number("Latency", value, FORMULAS["latency_ms"], note=before)
            if same
            else _changed("Latency", e, "latency_ms", value, FORMULAS["latency_ms"])
        )
    return row


def _of_language(e: Mapping[str, Any]) -> list[Number]:
    text = (
        f"exp of the mean −log p of {e['tokens']:,} tokens, in windows of {e['context']} that begin {e['stride']} after one"
        f" another; before: {e['perplexity_before']:.3f}."
    )
    row = [
        _changed("Perplexity", e, "perplexity", f"{e['perplexity']:.3f}", text, "down"),
        _changed("Parameters", e, "params", compact(e["params"]), FORMULAS["params"], "down"),
        _changed("FLOPs", e, "flops", compact(e["flops"]), FORMULAS["flops"], "down"),
    ]
    for title, name, help_ in (
        ("Read", "prefill_tokens_per_second", "Tokens a second that are read at once, a whole window."),
        (
            "Written",
            "decode_tokens_per_second",
            "Tokens a second that are written one by one, with the key-value cache.",
        ),
    ):
        row.append(_changed(title, e, name, f"{e[name]:,.0f}/s", help_, "up"))
    return row


def points(
    label: str, e: Mapping[str, Any], name: str, help_: str, good: Literal["up", "down"], digits: int = 1
) -> Number:
    """An accuracy of an evaluation, with its change in percentage points."""
    value, before = e[name], e.get(f"{name}_before")
    change = None if value is None or before is None else f"{100 * (value - before):+.{digits}f}"
    if change is None or float(change) == 0:
        return Number(label, percent(value, digits), help_, note=None if change is None else "unchanged")
    return Number(label, percent(value, digits), help_, f"{change} points", good)


def _changed(
    label: str, e: Mapping[str, Any], name: str, value: str, help_: str, good: Literal["up", "down"] = "down"
) -> Number:
    """A quantity of an evaluation, with its change in per cent."""
    change = f"{100 * (e[name] / e[f'{name}_before'] - 1):+.1f}"
    if float(change) == 0:
        return Number(label, value, help_, note="unchanged")
    return Number(label, value, help_, f"{change}%", good)
