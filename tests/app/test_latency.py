"""Latencies of plans that were timed at different times, side by side: relative to the same run, marked, or noise."""

from datetime import datetime
from typing import Any

import pytest

from app.language import points_table as language_table
from app.latency import Relative, relative_latency
from app.outcome import WITHIN_NOISE, latency_number
from app.selection import Choice, LabelledData
from app.store import Point
from app.tables import points_table


def evaluation(now: float | None, before: float | None, spread: float | None = 0.1, **more: Any) -> dict[str, Any]:
    return {
        "accuracy": 0.97,
        "accuracy_before": 0.99,
        "flops": 50,
        "flops_before": 100,
        "params": 60,
        "params_before": 100,
        "samples": 500,
        "latency_ms": now,
        "latency_ms_before": before,
        "latency_spread_ms": spread,
        "latency_spread_ms_before": spread,
    } | more


def point(name: str, made: float, result: dict[str, Any]) -> Point:
    return Point(
        id=name,
        kind="prune",
        label=name,
        measured_on=LabelledData(),
        evaluation=result,
        choice=Choice(),
        made=made,
        note="a note",
    )


def test_spread_of_a_ratio() -> None:
    found = relative_latency(evaluation(6.0, 10.0, spread=0.5))
    assert found is not None
    assert found.share == pytest.approx(0.6)
    assert found.spread == pytest.approx(0.6 * ((0.5 / 6) ** 2 + (0.5 / 10) ** 2) ** 0.5)
    assert not found.within_noise
    assert relative_latency(evaluation(6.0, 10.0, spread=None)) == Relative(0.6, None)
    assert relative_latency(evaluation(None, 10.0)) is None
    assert relative_latency(evaluation(6.0, None)) is None


def test_plans_timed_under_different_load_are_compared_with_their_own_original() -> None:
    """The second run was timed while the machine was twice as slow: its milliseconds do not compare, its share does."""
    quiet, busy = evaluation(6.0, 10.0, 0.3), evaluation(10.0, 20.0, 0.6)
    table, columns = points_table([point("quiet", 1_000_000.0, quiet), point("busy", 1_003_600.0, busy)])
    second, first, original = table.to_dict("records")
    assert (first["Plan"], first["Latency"], first["Latency, ms"], first["Original, ms"]) == ("quiet", 60, 6, 10)
    assert (second["Plan"], second["Latency"], second["Latency, ms"], second["Original, ms"]) == ("busy", 50, 10, 20)
    assert second["Latency"] < first["Latency"], "although it took more milliseconds"
    assert first["Spread"] == pytest.approx(100 * 0.6 * ((0.3 / 6) ** 2 + (0.3 / 10) ** 2) ** 0.5)
    assert first["Timed"].to_pydatetime() == datetime.fromtimestamp(1_000_000.0)
    assert (second["Timed"] - first["Timed"]).total_seconds() == 3600
    assert (original["Plan"], original["Latency"], original["Latency, ms"]) == ("Original network", 100, 20)
    assert original["Timed"] == second["Timed"], "it was timed with the newest plan"
    assert "same run" in columns["Latency"]["help"]
    assert "timed" in columns["Timed"]["help"]


def test_plans_without_a_latency_have_none() -> None:
    table, _ = points_table([point("a", 1.0, evaluation(None, None, None))])
    assert table["Latency"].isna().tolist() == [True, True]
    assert table["Spread"].isna().tolist() == [True, True]


@pytest.mark.parametrize(
    ("now", "spread", "flops", "delta"),
    [
        (6.0, 0.2, 50, "-40.0%"),
        (9.8, 0.5, 50, None),
        (10.4, 0.5, 50, None),
        (12.0, 0.5, 50, "+20.0%"),
        (6.0, 0.2, 100, None),  # the same shape
        (9.8, None, 50, "-2.0%"),  # measured before spreads were recorded
    ],
)
def test_a_change_smaller_than_the_spread_is_noise(
    now: float, spread: float | None, flops: int, delta: str | None
) -> None:
    number = latency_number(evaluation(now, 10.0, spread, flops=flops))
    assert number is not None
    assert number.value == f"{now:.2f} ms"
    assert (number.delta, number.note) == (delta, WITHIN_NOISE if delta is None else None)
    assert number.good == "down" or delta is None
    assert "of the original network's 10.00 ms" in number.help


def test_throughput_is_compared_with_the_same_run() -> None:
    speeds = {"prefill_tokens_per_second": 300.0, "prefill_tokens_per_second_before": 200.0}
    speeds |= {"decode_tokens_per_second": None, "decode_tokens_per_second_before": None}
    text = {"perplexity": 2.6, "perplexity_before": 2.5, "tokens": 999}
    table, columns = language_table([point("a", 1_000_000.0, evaluation(2.0, 3.0, 0.1, **speeds, **text))])
    plan, original = table.to_dict("records")
    assert (plan["Prefill"], plan["Prefill, tokens/s"], original["Prefill"]) == (150, 300, 100)
    assert table["Decode"].isna().all()
    relative = ((0.1 / 2) ** 2 + (0.1 / 3) ** 2) ** 0.5
    assert (plan["Spread"], original["Spread"]) == (pytest.approx(150 * relative), 0)
    assert original["Timed"].to_pydatetime() == datetime.fromtimestamp(1_000_000.0)
    assert "same run" in columns["Prefill"]["help"]
