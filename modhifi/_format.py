"""How things are written for people, in the command line, the report and the dashboard alike."""

from __future__ import annotations

from collections.abc import Sequence

from .components import Skipped

__all__ = ["by_reason", "listed", "number", "percent"]


def percent(value: float | None) -> str:
    """``98.40%``; a dash where there is none."""
    return "–" if value is None else f"{value:.2%}"


def number(value: float | None, digits: int = 0) -> str:
    """``40,551,040``; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def listed(names: Sequence[str], at_most: int = 3) -> str:
    """``a, b, c and 9 more``; all of them where one would be left over."""
    if len(names) <= at_most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:at_most])} and {len(names) - at_most} more"


def by_reason(skipped: Sequence[Skipped]) -> dict[str, list[str]]:
    """Reason → the names of what is left whole for it."""
    found: dict[str, list[str]] = {}
    for skip in skipped:
        found.setdefault(skip.reason, []).append(skip.name)
    return found
