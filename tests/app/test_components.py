"""Numbers as the pages format them."""

import pytest

from app.components import compact, percent, rounded
from modhifi.text import duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (75, "75 s"), (90, "2 min"), (600, "10 min"), (5399, "90 min"), (10335, "3 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_large_and_small_numbers() -> None:
    assert [rounded(value) for value in (0.012345, 5.987, 1012.4, 123456.7)] == ["0.0123", "5.99", "1,012", "123,457"]
    assert [compact(value) for value in (512, 127_000, 40_600_000, 2.1e9)] == ["512", "127 k", "40.6 M", "2.1 G"]
    assert (percent(None), percent(0.996, 2)) == ("n/a", "99.60%")
