"""How values are formatted for people, on the command line, in reports and on the dashboard alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

__all__ = ["distinct", "duration", "listed", "number", "percent", "visible"]


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names without spaces around them; those that occur twice, and empty ones, are followed by their index."""
    found = [name.strip() for name in names]
    while True:
        times = Counter(found)
        if max(times.values(), default=1) == 1 and "" not in times:
            return tuple(found)
        found = [n if n and times[n] == 1 else f"{n} ({i})".strip() for i, n in enumerate(found)]


def percent(value: float | None) -> str:
    """``98.40%``; a dash for None."""
    return "–" if value is None else f"{value:.2%}"


def number(value: float | None, digits: int = 0) -> str:
    """``40,551,040``; a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}"


def listed(names: Sequence[str], at_most: int = 3) -> str:
    """``a, b, c and 9 more``; all names if only one would be omitted."""
    if len(names) <= at_most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:at_most])} and {len(names) - at_most} more"


def duration(seconds: float) -> str:
    """A rough duration: 75 as 75 s, 600 as 10 min, 10800 as 3 h."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{round(seconds / length)} {unit}"
    return f"{max(1, round(seconds))} s"


def visible(text: str) -> str:
    """The text with an escape in place of every character that cannot be seen, which could reverse or hide parts of it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
