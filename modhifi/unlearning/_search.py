"""The smallest strength that reaches the target, with few evaluations: a ladder, then bisection, on a logarithmic scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..layers import Edit
from ..plan import CurvePoint
from ._classes import Task

__all__ = ["TRIALS", "curve", "smallest"]

# Strengths on the way up, evenly spaced on the logarithmic scale, and bisections between the first that reaches the target and
# the one before it.
_SCAN, _STEPS = 10, 4
TRIALS = _SCAN + _STEPS
"""At most so many strengths are tried."""


def smallest(
    task: Task, edits: Callable[[float], Mapping[str, Edit]], low: float, high: float, step: Callable[[], None]
) -> list[float]:
    """The strengths from ``low`` to ``high`` that were tried, the one to take last; [] if none of them brings the accuracy on the
    forget samples down to the target. More is not always lower (a layer that is negated as a whole may answer as before), which
    is why they are tried from below. ``step`` is called after every trial.
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
    """What each strength does to both kinds of samples, beginning with the unchanged network."""
    points = [task.measured(0.0, {})]
    for number, strength in enumerate(sorted(set(strengths))):
        task.progress(number, len(strengths), "forget against retain accuracy")
        points.append(task.measured(strength, edits(strength)))
    return points
