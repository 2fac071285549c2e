"""One pass over unlabelled data, then everything that can be derived from it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from .._operators import flat_weight, get_operator
from ..components import enumerate_components
from ..data import Data
from ..errors import UserError
from ..lipschitz import directional
from ..models import Model
from ..progress import Progress, silent
from ..statistics import collect
from ._tables import tabulate
from ._types import LayerStats, Study

__all__ = ["analyze"]

RIDGE = 1e-6
GAIN_SAMPLES = 64


def analyze(
    model: Model,
    data: Data,
    samples: int = 512,
    *,
    seed: int = 0,
    batch_size: int = 128,
    ridge: float = RIDGE,
    out: str | Path | None = None,
    progress: Progress = silent,
) -> Study:
    """Collects the statistics of ``model`` on ``samples`` unlabelled images of ``data`` and derives scores and curves.

    Args:
        model: the network; it is not changed.
        data: images; labels are not looked at.
        samples: how many images are drawn, without replacement, by ``seed``; all if there are fewer.
        seed: of the draw and of the positions looked at.
        batch_size: images in one forward pass.
        ridge: added to the second moments, relative to the mean of their diagonal.
        out: a folder to save the study in.
        progress: see `modhifi.progress`.

    Raises:
        UserError: if there are no images, or the network has no component that can be removed, or its input produces values
            that are not finite.
    """
    began = time.perf_counter()
    drawn = data.take(samples, seed)
    if not len(drawn):
        raise UserError(f"{data.spec} has no images in its {data.split} split")
    progress(0, 1, "tracing the network")
    structure = enumerate_components(model.module, model.example())
    if not structure.groups:
        reasons = "; ".join(f"{skip.name}: {skip.reason}" for skip in structure.skipped[:3])
        raise UserError(f"{model.spec} has no components that can be removed ({reasons})")
    names = list(dict.fromkeys(consumer.layer for group in structure.groups for consumer in group.consumers))
    first: list[Tensor] = []

    def batches() -> Iterator[Tensor]:
        for images, _ in drawn.batches(model.input, batch_size):
            if sum(map(len, first)) < GAIN_SAMPLES:
                first.append(images)
            yield images

    moments = collect(model.module, names, batches(), len(drawn), seed=seed, progress=progress)
    layers = {}
    for name in names:
        if not bool(torch.isfinite(moments[name].second).all()):
            raise UserError(f"the input of {name} is not finite on this data; check the weights, --mean and --std")
        weight = flat_weight(get_operator(model.module, name)).cpu().float().clone()
        layers[name] = LayerStats(weight, moments[name])
    tables: dict[str, Tensor] = {}
    for done, group in enumerate(structure.groups):
        progress(done, len(structure.groups), "deriving scores and curves")
        tables |= tabulate(group, layers, ridge)
    study = Study(model.ref, drawn.ref, structure, layers, {}, tables, ridge, 0.0)
    # The direction in which a constant is estimated: half of the group's components removed, the rest compensated.
    halves = {
        consumer.layer: study.edit(
            consumer, study.order(group.name, centred=True)[: (group.size + 1) // 2].tolist(), "full"
        )
        for group in structure.groups
        for consumer in group.consumers
    }
    study.gains = directional(model.module, halves, torch.cat(first)[:GAIN_SAMPLES], progress=progress)
    study.seconds = time.perf_counter() - began
    if out is not None:
        study.save(out)
    return study
