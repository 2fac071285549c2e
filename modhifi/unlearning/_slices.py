"""Unlearning by selecting (output, component) slices of weights in the last layers.

*Published* (ModHiFi, Alg. 1 and 2): slices are ranked by singleton fidelity on the forget set only. The top k are set to zero
in BatchNorm networks and negated in LayerNorm networks; nothing is compensated.

*Contrastive*: slices are ranked by fidelity on the forget set minus fidelity on the retain set. The top k are set to zero,
and the remaining slices of each output are scaled to reconstruct it on the retain set as well as possible (Prop. 3.8).

The paper leaves k and the layers to the user. Here both are searched: for the last one to four layers, the smallest fraction of
slices that brings forget accuracy down to the target; of these depths, the one with the highest retain accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..fidelity import gram
from ..layers import Edit
from ..progress import prefixed
from ..specs import Compensation
from ..statistics import collect, collect_singletons
from ..study import Study
from ._classes import Found, Task
from ._search import TRIALS, curve, smallest

__all__ = ["contrastive", "published"]

_DEEPEST = 4
_WEAKEST, _STRONGEST = 0.002, 1.0
# Ridge on the Gram matrices, relative to their mean diagonal.
_RIDGE = 1e-4


def published(task: Task, depth: int | None) -> Found:
    """ModHiFi-U as published: zeroes slices, or negates them in networks with LayerNorm (Alg. 1 and 2)."""
    layers = _layers(task, depth)
    negate = any(isinstance(module, nn.LayerNorm) for module in task.model.module.modules())
    columns = {name: _slices(task.study, name) for name in layers}
    scores = _scores(task, columns, task.chosen, "forget set")
    factor = -1.0 if negate else 0.0

    def edits(chosen: Sequence[str], strength: float) -> dict[str, Edit]:
        found = {}
        for name in chosen:
            weight = task.study.layers[name].weight.double()
            factors = torch.where(_top(scores[name], strength), factor, 1.0).double()
            found[name] = _scaled(weight, columns[name], factors)
        return found

    return _best(task, layers, depth, edits, "published, negation" if negate else "published, zeroing", "none")


def contrastive(task: Task, depth: int | None) -> Found:
    """Zeroes slices with high fidelity on the forget set and low fidelity on the retain set; compensates on the retain set."""
    layers = [name for name in _layers(task, depth) if not task.study.layers[name].wide]
    if not layers:
        raise UserError(
            "contrastive needs dense moments, and the last layers are too wide for them; choose another method"
        )
    columns = {name: _slices(task.study, name) for name in layers}
    on_forget = _scores(task, columns, task.chosen, "forget set")
    on_rest = _scores(task, columns, ~task.chosen, "retain set")
    retained = task.images[~task.chosen]
    moments = collect(
        task.model.module,
        {name: {} for name in layers},
        lambda start: retained[start:].split(128),
        len(retained),
        seed=task.seed,
        progress=prefixed(task.progress, "retain set: "),
    ).moments
    grams = {}
    for name in layers:
        weight, slices = task.study.layers[name].weight.double(), columns[name]
        second = moments[name].second.cpu().double()
        each = gram(second, weight, slices)  # (O, C, C)
        pull = _RIDGE * each.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)
        grams[name] = each + pull[:, None, None] * torch.eye(len(slices), dtype=each.dtype)

    def edits(chosen: Sequence[str], strength: float) -> dict[str, Edit]:
        found = {}
        for name in chosen:
            kept = ~_top(on_forget[name] - on_rest[name], strength)  # (O, C)
            # δ* = G_SS⁻¹ G_S· 1 with its own subset S per output: rows and columns outside S become the identity.
            both = kept[:, :, None] & kept[:, None, :]
            same = torch.eye(kept.shape[1], dtype=torch.float64)
            wanted = grams[name].sum(2) * kept
            factor = torch.linalg.cholesky(torch.where(both, grams[name], same))
            scale = torch.cholesky_solve(wanted[:, :, None], factor)[:, :, 0] * kept
            found[name] = _scaled(task.study.layers[name].weight.double(), columns[name], scale)
        return found

    return _best(task, layers, depth, edits, "contrastive", "scalar")


def _layers(task: Task, depth: int | None) -> list[str]:
    """The layers that can be edited, last one first, at most ``depth`` (4 by default)."""
    order = [name for name in task.study.structure.readers if _editable(task.study, name)][::-1]
    if not order:
        raise UserError(
            "no layer of this network reads components from inside a block; use the method subspace or mask"
        )
    return order[: depth or _DEEPEST]


def _editable(study: Study, layer: str) -> bool:
    """Whether the layer reads only components from inside a block. Layers that read a residual stream depend on every earlier
    block, and editing the layer that writes the logits would only mask a logit.
    """
    logits = layer == list(study.structure.readers)[-1] and len(study.layers[layer].weight) == len(study.model.classes)
    streams = any(group.kind == "stream" for group, _ in study.structure.readers[layer])
    return not (logits or streams)


def _slices(study: Study, layer: str) -> Tensor:
    """(C, k): the columns of each component that the layer reads, or of each channel if components differ in size."""
    read = study.structure.readers[layer]
    if len({consumer.block for _, consumer in read}) == 1:
        return torch.cat([torch.from_numpy(consumer.columns(group.size)) for group, consumer in read])
    pixels = read[0][1].pixels
    return torch.cat([torch.from_numpy(consumer.columns(group.size)).reshape(-1, pixels) for group, consumer in read])


def _scores(task: Task, columns: Mapping[str, Tensor], which: Tensor, what: str) -> dict[str, Tensor]:
    """Layer → (O, C) singleton fidelity of its slices on these samples. All positions are used, because the samples are few and
    single slices are ranked.
    """
    images = task.images[which]
    return collect_singletons(
        task.model.module,
        columns,
        images.split(128),
        len(images),
        size=lambda positions: positions,
        progress=task.progress,
        what=what,
    )


def _top(scores: Tensor, fraction: float) -> Tensor:
    """(O, C) bool: the ``fraction`` of slices with the highest scores, at least one."""
    chosen = torch.zeros(scores.numel(), dtype=torch.bool)
    chosen[scores.flatten().topk(max(1, round(fraction * scores.numel()))).indices] = True
    return chosen.reshape(scores.shape)


def _scaled(weight: Tensor, columns: Tensor, factors: Tensor) -> Edit:
    """The edit that multiplies each slice by its factor (O, C)."""
    new = weight.clone()
    new[:, columns.reshape(-1)] *= factors.repeat_interleave(columns.shape[1], dim=1)
    return Edit(new, weight.new_zeros(weight.shape[0]))


def _best(
    task: Task,
    layers: list[str],
    depth: int | None,
    edits: Callable[[Sequence[str], float], dict[str, Edit]],
    method: str,
    compensate: Compensation,
) -> Found:
    """The smallest strength that reaches the target at each depth (or at ``depth``); of these, the highest retain accuracy."""
    depths = range(1, len(layers) + 1) if depth is None else [len(layers)]
    best: tuple[float, int, list[float]] | None = None
    total, done = len(depths) * TRIALS, 0

    def step() -> None:
        nonlocal done
        done += 1
        task.progress(done, total, "searching for the strength")

    for deep in depths:
        chosen = layers[:deep]
        tried = smallest(task, partial(edits, chosen), _WEAKEST, _STRONGEST, step)
        if tried:
            kept = task.accuracy(edits(chosen, tried[-1]), ~task.chosen)
            if best is None or kept > best[0]:
                best = (kept, deep, tried)
    if best is None:
        raise task.unreached(f"no strength up to {_STRONGEST:.0%} of the slices in the last {len(layers)} layers")
    chosen = layers[: best[1]]
    points = curve(task, lambda strength: edits(chosen, strength), best[2])
    taken = best[2][-1]
    return Found(
        tensors={f"{name}.weight": edit.weight.float() for name, edit in edits(chosen, taken).items()},
        layers=chosen,
        point=next(point for point in points if point.strength == taken),
        curve=points,
        method=method,
        compensate=compensate,
    )
