"""Closed-form unlearning from second moments of the forget set and the retain set, one solution per layer on the original
network: the ridge of docs/theory.md, *Pruning and unlearning*, and the subspaces of Kodge, Saha and Roy (TMLR 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Literal

from torch import Tensor

from ..evaluation import classifier_of
from ..layers import Edit, flat_weight, get_operator
from ..plan import CurvePoint
from ..progress import prefixed
from ..statistics import Moments, collect
from ._algebra import combined_projection, eigen, forgetting_ridge, scaled_space
from ._classes import Found, Task
from ._search import TRIALS, curve, smallest

__all__ = ["closed_form", "subspaces"]

_DEPTH = 2
_WEAKEST, _STRONGEST = 1e-4, 1e4
# α of the retain space, from no protection to protecting nearly everything; and the α of the forget space to try.
_RETAINED = (1.0, 1e5)
_FORGET = (3.0, 30.0, 300.0)


def closed_form(task: Task, depth: int | None, towards: Literal["zero", "mean"]) -> Found:
    """`forgetting_ridge` in the last ``depth`` layers (2 by default), including the one that writes the logits."""
    layers = _readers(task)[-(depth or _DEPTH) :]
    forget, retain = _moments(task, layers)
    weights = {name: flat_weight(get_operator(task.model.module, name)).cpu().double() for name in layers}

    @lru_cache(maxsize=2)
    def edits(strength: float) -> dict[str, Edit]:
        found = {}
        for name, weight in weights.items():
            target = weight @ retain[name].mean.cpu() if towards == "mean" else weight.new_zeros(len(weight))
            second_r, second_f = retain[name].second.cpu(), forget[name].second.cpu()
            new = forgetting_ridge(weight, second_r, second_f, forget[name].mean.cpu(), target, strength)
            found[name] = Edit(new, weight.new_zeros(len(weight)))
        return found

    tried = smallest(task, edits, _WEAKEST, _STRONGEST, _counter(task, TRIALS))
    if not tried:
        raise task.unreached(f"no λ up to {_STRONGEST:g} in the last {len(layers)} layers")
    points = curve(task, edits, tried)
    return _found(edits(tried[-1]), layers, points, tried[-1], f"ridge, towards {towards}")


def subspaces(task: Task) -> Found:
    """`specific_projection` in every layer that reads components and in the classifier. The authors search both α on a grid.
    Here, for each of three α of the forget space, the α of the retain space is searched for the smallest edit that reaches
    the target.
    """
    layers = _readers(task)
    forget, retain = _moments(task, layers)
    weights = {name: flat_weight(get_operator(task.model.module, name)).cpu().double() for name in layers}
    weakest, strongest = 1 / _RETAINED[1], 1 / _RETAINED[0]
    step = _counter(task, TRIALS * len(_FORGET))
    spaces = {name: (eigen(retain[name].second.cpu()), eigen(forget[name].second.cpu())) for name in layers}
    best: tuple[float, float, list[float]] | None = None

    def edits(scale: float, strength: float) -> dict[str, Edit]:
        found = {}
        for name, weight in weights.items():
            of_rest, of_forget = spaces[name]
            keep = combined_projection(scaled_space(of_rest, 1 / strength), scaled_space(of_forget, scale))
            found[name] = Edit(weight @ keep, weight.new_zeros(len(weight)))
        return found

    for scale in _FORGET:
        tried = smallest(task, partial(edits, scale), weakest, strongest, step)
        if tried:
            kept = task.accuracy(edits(scale, tried[-1]), ~task.chosen)
            if best is None or kept > best[0]:
                best = (kept, scale, tried)
    if best is None:
        raise task.unreached("no projection")
    _, scale, tried = best
    points = curve(task, partial(edits, scale), tried)
    return _found(edits(scale, tried[-1]), layers, points, tried[-1], f"subspace, α_f = {scale:g}")


def _readers(task: Task) -> list[str]:
    """The consumers that are not too wide for dense second moments, in forward order, and the classifier last."""
    layers = [name for name in task.study.structure.readers if not task.study.layers[name].wide]
    head = classifier_of(task.model)
    return [*(name for name in layers if name != head), *([] if head is None else [head])]


def _moments(task: Task, layers: Sequence[str]) -> tuple[dict[str, Moments], dict[str, Moments]]:
    """Layer → moments on the forget set, and layer → moments on the retain set."""
    both = []
    for which, what in ((task.chosen, "forget set: "), (~task.chosen, "retain set: ")):
        images: Tensor = task.images[which]
        found = collect(
            task.model.module,
            {name: {} for name in layers},
            partial(_from, images),
            len(images),
            seed=task.seed,
            progress=prefixed(task.progress, what),
        )
        both.append(found.moments)
    return both[0], both[1]


def _from(images: Tensor, start: int) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = images[start:].split(128)
    return parts


def _counter(task: Task, total: int) -> Callable[[], None]:
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        task.progress(done, total, "searching for the strength")

    return step


def _found(edits: dict[str, Edit], layers: list[str], points: list[CurvePoint], taken: float, method: str) -> Found:
    return Found(
        tensors={f"{name}.weight": edit.weight.float() for name, edit in edits.items()},
        layers=layers,
        point=next(point for point in points if point.strength == taken),
        curve=points,
        method=method,
    )
