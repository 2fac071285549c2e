"""The result of a measured plan as a row of numbers, each with its change against the original network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from .components import FORMULAS, Number, compact, numbers, percent, rounded
from .latency import relative_latency
from .store import Point

__all__ = ["WITHIN_NOISE", "accuracy_number", "latency_number", "result_row"]

WITHIN_NOISE = "within noise"
"""Stands in place of a change in latency that is no larger than the spread of the measurement."""


def result_row(point: Point) -> None:
    """Draws the row."""
    e = point.evaluation
    numbers(_classifier_numbers(point.kind, e) if e.get("perplexity") is None else _language_numbers(e))


def _classifier_numbers(kind: str, e: Mapping[str, Any]) -> list[Number]:
    same_shape = e["flops"] == e["flops_before"]
    text = f"{FORMULAS['accuracy']} {e['samples']} images; original network: {percent(e['accuracy_before'], 2)}."
    row = [] if e["accuracy"] is None else [accuracy_number("Accuracy", e, "accuracy", text, "up", 2)]
    row += _closeness_numbers(e) if kind == "prune" else []
    if kind == "unlearn":
        row.append(accuracy_number("Forget accuracy", e, "forget_accuracy", FORMULAS["forget_accuracy"], "down"))
        row.append(accuracy_number("Retain accuracy", e, "retain_accuracy", FORMULAS["retain_accuracy"], "up"))
    if kind == "prune" or not same_shape:
        row.append(_change_number("FLOPs", e, "flops", compact(e["flops"]), FORMULAS["flops"]))
        row.append(_change_number("Parameters", e, "params", compact(e["params"]), FORMULAS["params"]))
    latency = latency_number(e)
    return row if latency is None else [*row, latency]


def _closeness_numbers(e: Mapping[str, Any]) -> list[Number]:
    """How close the answers are to the original network's; [] for plans measured by earlier versions."""
    if e.get("agreement") is None:
        return []
    seen = e.get("calibration_samples")
    note = f"{seen:,} calibration samples among them" if seen else None
    text = f"{FORMULAS['agreement']} {e['samples']:,} samples."
    row = [Number("Agreement", percent(e["agreement"], 2), text, note=note)]
    for title, name in (("Relative error", "relative_error"), ("KL divergence", "kl")):
        if e.get(name) is not None:
            row.append(Number(title, rounded(e[name]), FORMULAS[name], note="nats" if name == "kl" else None))
    return row


def latency_number(e: Mapping[str, Any]) -> Number | None:
    """Latency with its change, `WITHIN_NOISE` if that is no larger than the spread; None if not measured."""
    relative = relative_latency(e)
    if relative is None:
        return None
    value = f"{e['latency_ms']:.2f} ms"
    spread = "" if relative.spread is None else f", spread {100 * relative.spread:.1f} points"
    text = (
        f"{FORMULAS['latency_ms']} Here: {100 * relative.share:.1f}% of the original network's "
        f"{e['latency_ms_before']:.2f} ms{spread}."
    )
    # Networks of the same shape take the same time, so any difference is noise.
    if relative.within_noise or e["flops"] == e["flops_before"]:
        return Number("Latency", value, text, note=WITHIN_NOISE)
    return _change_number("Latency", e, "latency_ms", value, text)


def _language_numbers(e: Mapping[str, Any]) -> list[Number]:
    text = (
        f"Lower is better. exp of the mean −log p over {e['tokens']:,} tokens, in windows of {e['context']} tokens "
        f"that start {e['stride']} apart; original model: {e['perplexity_before']:.3f}."
    )
    row = [
        _change_number("Perplexity", e, "perplexity", f"{e['perplexity']:.3f}", text, "down"),
        *_closeness_numbers(e),
        _change_number("Parameters", e, "params", compact(e["params"]), FORMULAS["params"], "down"),
        _change_number("FLOPs", e, "flops", compact(e["flops"]), FORMULAS["flops"], "down"),
    ]
    relative = relative_latency(e)
    for title, name in (("Prefill", "prefill_tokens_per_second"), ("Decode", "decode_tokens_per_second")):
        if e.get(name) is None or not e.get(f"{name}_before"):
            continue
        value, help_ = f"{e[name]:,.0f} tokens/s", FORMULAS[title.lower()]
        if title == "Prefill" and relative is not None and relative.within_noise:  # a window over its latency
            row.append(Number(title, value, help_, note=WITHIN_NOISE))
        else:
            row.append(_change_number(title, e, name, value, help_, "up"))
    return row


def accuracy_number(
    label: str, e: Mapping[str, Any], name: str, help_: str, good: Literal["up", "down"], digits: int = 1
) -> Number:
    """An accuracy of an evaluation, with its change in percentage points."""
    value, before = e[name], e.get(f"{name}_before")
    change = None if value is None or before is None else f"{100 * (value - before):+.{digits}f}"
    if change is None or float(change) == 0:
        return Number(label, percent(value, digits), help_, note=None if change is None else "unchanged")
    return Number(label, percent(value, digits), help_, f"{change} points", good)


def _change_number(
    label: str, e: Mapping[str, Any], name: str, value: str, help_: str, good: Literal["up", "down"] = "down"
) -> Number:
    """A quantity of an evaluation, with its change in per cent."""
    change = f"{100 * (e[name] / e[f'{name}_before'] - 1):+.1f}"
    if float(change) == 0:
        return Number(label, value, help_, note="unchanged")
    return Number(label, value, help_, f"{change}%", good)
