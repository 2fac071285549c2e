"""The smallest strength that reaches the target, with few evaluations: bisection on a logarithmic scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .._operators import Edit
from ..plan import CurvePoint
from ._classes import Task

__all__ = ["curve", "smallest"]

_STEPS = 7  # for a range of 400 a factor of 1.05 between neighbours at the end


def smallest(
    task: Task, edits: Callable[[float], Mapping[str, Edit]], low: float, high: float, step: Callable[[], None]
) -> list[float]:
    """The strengths between ``low`` and ``high`` that were tried, the one to take last; [] if even ``high`` does not bring the
    accuracy on the forget samples down to the target. ``step`` is called after every trial.
    """
    tried = [high]
    reached = task.accuracy(edits(high), task.chosen) <= task.target
    step()
    if not reached:
        return []
    for _ in range(_STEPS):
        middle = (low * high) ** 0.5
        tried.append(middle)
        if task.accuracy(edits(middle), task.chosen) <= task.target:
            high = middle
        else:
            low = middle
        step()
    tried.remove(high)
    return [*tried, high]


def curve(task: Task, edits: Callable[[float], Mapping[str, Edit]], strengths: list[float]) -> list[CurvePoint]:
    """What each strength does to both kinds of samples, beginning with the unchanged network."""
    points = [task.point(0.0, {})]
    for number, strength in enumerate(sorted(set(strengths))):
        task.progress(number, len(strengths), "forget against retain accuracy")
        points.append(task.point(strength, edits(strength)))
    return points
