"""Search for the smallest strength that reaches the target: an ascending scan, then bisection, on a logarithmic scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..layers import Edit
from ..plan import CurvePoint
from ._classes import Task

__all__ = ["TRIALS", "curve", "smallest"]

# Strengths of the scan, evenly spaced on the logarithmic scale, and bisections between the first one that reaches the
# target and the one before it.
_SCAN, _STEPS = 10, 4
TRIALS = _SCAN + _STEPS
"""The largest number of strengths that are tried."""


def smallest(
    task: Task, edits: Callable[[float], Mapping[str, Edit]], low: float, high: float, step: Callable[[], None]
) -> list[float]:
    """The strengths between ``low`` and ``high`` that were tried, the chosen one last; [] if none brings forget accuracy down
    to the target. Strengths are tried in ascending order, because forget accuracy is not monotonic: a layer that is negated
    as a whole may predict as before. ``step`` is called after every trial.
    """
    tried: list[float] = []

    def reaches(strength: float) -> bool:
        tried.append(strength)
        found = task.accuracy(edits(strength), task.chosen) <= task.target
        step()
        return found

    ratio = (high / low) ** (1 / (_SCAN - 1))
    ladder = [low * ratio**number for number in range(_SCAN - 1)] + [high]
    first = next((number for number, strength in enumerate(ladder) if reaches(strength)), None)
    if first is None:
        return []
    best = ladder[first]
    below = ladder[first - 1] if first else best
    for _ in range(_STEPS if first else 0):
        middle = (below * best) ** 0.5
        if reaches(middle):
            best = middle
        else:
            below = middle
    tried.remove(best)
    return [*tried, best]


def curve(task: Task, edits: Callable[[float], Mapping[str, Edit]], strengths: list[float]) -> list[CurvePoint]:
    """Forget and retain accuracy at each strength, in ascending order, starting with the original network at 0."""
    points = [task.measured(0.0, {})]
    for number, strength in enumerate(sorted(set(strengths))):
        task.progress(number, len(strengths), "measuring forget and retain accuracy")
        points.append(task.measured(strength, edits(strength)))
    return points
