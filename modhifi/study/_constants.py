"""Lipschitz constants as a study keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from .._operators import Edit
from ..data import Data
from ..errors import UserError
from ..lipschitz import ESTIMATORS, certified, directional, jacobian, moved_by, pairs, random, smallest_norms
from ..models import InputSpec, Model, TokenSpec
from ..progress import Progress, prefixed, silent
from ._types import Study

__all__ = ["CONSTANTS", "CONSTANT_SAMPLES", "estimate", "estimators_for", "usual"]

CONSTANTS = ("directional", "jacobian")
CONSTANT_SAMPLES = 64
# Every token of a window is a position, and all logits of all of them are compared.
_WINDOWS = 8
_OF_LANGUAGE = ("directional", "random", "pairs")


def usual(given: InputSpec | TokenSpec) -> tuple[tuple[str, ...], int]:
    """The estimators, and the number of samples, for a network that takes this, unless others are asked for."""
    return (("directional",), _WINDOWS) if isinstance(given, TokenSpec) else (CONSTANTS, CONSTANT_SAMPLES)


def estimators_for(given: InputSpec | TokenSpec) -> tuple[str, ...]:
    """All that there are for a network that takes this."""
    return _OF_LANGUAGE if isinstance(given, TokenSpec) else tuple(ESTIMATORS)


def estimate(
    study: Study,
    model: Model,
    data: Data,
    estimators: Sequence[str] | None = None,
    *,
    samples: int | None = None,
    progress: Progress = silent,
) -> None:
    """Adds to the study the constants of every layer by each of the named estimators, on ``samples`` of ``data``, and the
    smallest norms that its LayerNorms divide by; `usual` ones if none are named. Nothing is added if it is cancelled on the way.

    Where `directional` is asked for too, `jacobian` begins with what that saw arrive at the logits and needs one round.

    Raises `UserError` for an unknown estimator or no samples.
    """
    named, many = usual(model.input)
    estimators, samples = named if estimators is None else estimators, samples or many
    if not estimators:
        return
    unknown = [name for name in estimators if name not in ESTIMATORS]
    if unknown:
        raise UserError(f"unknown estimator {unknown[0]!r}; one of {', '.join(ESTIMATORS)}")
    if not set(estimators) <= set(estimators_for(model.input)):
        raise UserError(
            f"the constants of language models are estimated by {', '.join(_OF_LANGUAGE)}; leave the others away"
        )
    if samples < 2:
        raise UserError(f"constants need at least 2 samples, not {samples}")
    images = torch.cat([batch for batch, _ in data.take(samples, data.seed).batches(model.input)])
    net, layers = model.module, list(study.layers)
    gains, upper, start = {}, study.certified, None
    if "directional" in estimators and "jacobian" not in estimators:
        gains["directional"] = directional(net, _Halves(study), images, progress=_told(progress, "directional"))
    elif "directional" in estimators:
        gains["directional"], start = moved_by(net, _Halves(study), images, progress=_told(progress, "directional"))
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


class _Halves(Mapping[str, Edit]):
    """The direction in which a constant is estimated: half of what the layer reads removed, the rest compensated. Each is
    made when it is asked for; in double precision all of them would be twice a large model.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.keep = {
            group.name: study.order(group.name)[: (group.size + 1) // 2].tolist() for group in study.structure.groups
        }

    def __getitem__(self, layer: str) -> Edit:
        return self.study.edit(layer, self.keep, "full")

    def __iter__(self) -> Iterator[str]:
        return iter(self.study.layers)

    def __len__(self) -> int:
        return len(self.study.layers)
