"""Lipschitz constants as a study keeps them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._operators import Edit
from ..data import Data
from ..errors import UserError
from ..lipschitz import ESTIMATORS, certified, jacobian, moved_by, pairs, random, smallest_norms
from ..models import Model
from ..progress import Progress, prefixed, silent
from ._types import Study

__all__ = ["CONSTANTS", "CONSTANT_SAMPLES", "estimate"]

CONSTANTS = ("directional", "jacobian")
CONSTANT_SAMPLES = 64


def estimate(
    study: Study,
    model: Model,
    data: Data,
    estimators: Sequence[str] = CONSTANTS,
    *,
    samples: int = CONSTANT_SAMPLES,
    progress: Progress = silent,
) -> None:
    """Adds to the study the constants of every layer by each of the named estimators, on ``samples`` of ``data``, and the
    smallest norms that its LayerNorms divide by. Nothing is added if it is cancelled on the way.

    Where `directional` is asked for too, `jacobian` begins with what that saw arrive at the logits and needs one round.

    Raises `UserError` for an unknown estimator or no samples.
    """
    unknown = [name for name in estimators if name not in ESTIMATORS]
    if unknown:
        raise UserError(f"unknown estimator {unknown[0]!r}; one of {', '.join(ESTIMATORS)}")
    if samples < 2:
        raise UserError(f"constants need at least 2 samples, not {samples}")
    images = torch.cat([batch for batch, _ in data.take(samples, data.seed).batches(model.input)])
    net, layers = model.module, list(study.layers)
    gains, upper, start = {}, study.certified, None
    if "directional" in estimators:
        gains["directional"], start = moved_by(net, _halves(study), images, progress=_told(progress, "directional"))
    if "jacobian" in estimators:
        gains["jacobian"] = jacobian(
            net,
            layers,
            images,
            start=start,
            rounds=2 if start is None else 1,
            progress=_told(progress, "jacobian"),
        )
    if "random" in estimators:
        gains["random"] = random(net, layers, images, seed=study.data.seed, progress=_told(progress, "random"))
    if "pairs" in estimators:
        gains["pairs"] = pairs(net, layers, images, progress=_told(progress, "pairs"))
    if "certified" in estimators:
        upper = certified(net, layers, images, progress=_told(progress, "certified"))
    norms = study.norms or smallest_norms(net, images)
    study.gains, study.certified, study.norms = study.gains | gains, upper, norms


def _told(progress: Progress, name: str) -> Progress:
    return prefixed(progress, f"{ESTIMATORS[name].title}: ")


def _halves(study: Study) -> dict[str, Edit]:
    """The direction in which a constant is estimated: half of what the layer reads removed, the rest compensated."""
    keep = {group.name: study.order(group.name)[: (group.size + 1) // 2].tolist() for group in study.structure.groups}
    return {layer: study.edit(layer, keep, "full") for layer in study.layers}
