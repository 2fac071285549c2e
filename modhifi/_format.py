"""How a figure is written for people, in the command line and in the report alike."""

__all__ = ["number", "percent"]


def percent(value: float | None) -> str:
    """``98.40%``; a dash where there is none."""
    return "–" if value is None else f"{value:.2%}"


def number(value: float | None, digits: int = 0) -> str:
    """``40,551,040``; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"
