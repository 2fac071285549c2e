"""Lipschitz constants of a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..data import Data
from ..errors import UserError
from ..layers import Edit, batched, in_single
from ..lipschitz import Gains, Sample, Upper, estimators, smallest_norms
from ..models import Model
from ..progress import Progress, prefixed, silent
from ..specs import ArraySpec, InputSpec, TokenSpec
from ._study import Study
from ._tables import VARIANCE

__all__ = ["CONSTANTS", "CONSTANT_SAMPLES", "estimate", "usual"]

CONSTANTS = ("directional", "jacobian")
CONSTANT_SAMPLES = 64
# Fewer than images: every token is a position, and the logits of all tokens are compared.
_WINDOWS = 8


def usual(given: InputSpec | TokenSpec | ArraySpec) -> tuple[tuple[str, ...], int]:
    """The default estimators and number of samples for a network with this input."""
    if isinstance(given, TokenSpec):
        return ("directional",), _WINDOWS
    if isinstance(given, ArraySpec) and given.form != "classes":  # the Jacobians of as many outputs would take too long
        return ("directional",), CONSTANT_SAMPLES
    return CONSTANTS, CONSTANT_SAMPLES


def estimate(
    study: Study,
    model: Model,
    data: Data,
    names: Sequence[str] | None = None,
    *,
    samples: int | None = None,
    progress: Progress = silent,
) -> None:
    """Estimates the Lipschitz constants of every layer on ``samples`` of ``data`` and adds them to the study, together with the
    smallest norm that each LayerNorm divides by. The estimators and the number of samples default to `usual`. Cancelling leaves
    the study unchanged.

    Raises `UserError` for an unknown estimator, one that does not support the network, or fewer than two samples.
    """
    default, many = usual(model.input)
    names, samples = default if names is None else names, samples or many
    if not names:
        return
    known = estimators()
    for name in names:
        if name not in known:
            raise UserError(f"unknown estimator {name!r}; choose one of {', '.join(known)}")
    suited = estimators(language=model.tokens is not None)
    if not set(names) <= set(suited):
        raise UserError(f"constants of language models are estimated by {', '.join(suited)}; omit the other estimators")
    if samples < 2:
        raise UserError(f"constants need at least 2 samples, not {samples}")
    inputs = torch.cat([batch for batch, _ in data.take(samples, data.seed).batches(model.input)])
    # On a CPU, single precision is not only more exact but several times faster.
    module = in_single(model.module) if model.device.type == "cpu" else model.module
    sample = Sample(module, list(study.layers), inputs, _Halves(study), study.data.seed, tuple(names))
    gains, upper = dict(study.gains), study.certified
    for name, one in suited.items():
        if name in names:
            found = one.estimate(sample, prefixed(progress, f"{one.title}: "))
            if one.claim == "upper":
                upper = dict(cast(Mapping[str, Upper], found))
            else:
                gains[name] = dict(cast(Mapping[str, Gains], found))
    norms = study.norms or smallest_norms(module, inputs)
    study.tables[VARIANCE] = _variance(module, inputs)
    study.gains, study.certified, study.norms = gains, upper, norms


@torch.no_grad()
def _variance(module: nn.Module, inputs: Tensor) -> Tensor:
    """(1,) float64: ``E‖f − E f‖²`` of one sample's output; of a language model, summed over the tokens of a window, whose mean
    is taken over all tokens.
    """
    square, total, rows = 0.0, torch.zeros(()), 0
    for batch in batched(module, inputs, None):
        answer = module(batch)
        flat = answer.reshape(-1, answer.shape[-1]).double()
        square, total, rows = square + float(flat.square().sum()), total.to(flat) + flat.sum(0), rows + len(flat)
    spread = (square - float(total.square().sum()) / rows) / len(inputs)
    return torch.tensor([max(0.0, spread)], dtype=torch.float64)


class _Halves(Mapping[str, Edit]):
    """For each layer, the edit whose error the directional constants are measured with: half of the components it reads
    removed, the rest compensated. Edits are made on demand: all of them in double precision would take twice the memory of
    the model.
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
