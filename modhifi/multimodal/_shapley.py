"""Contribution of each modality to a model's output: the Shapley value over modalities (AGM, Li et al., ICCV 2023).

With M modalities and ``f(S)`` the output when all modalities outside ``S`` are muted,

    φ_m = Σ_{S ∌ m} |S|! (M−1−|S|)! / M! · ( f(S ∪ {m}) − f(S) ) ,        Σ_m φ_m = f(all) − f(∅)

With ``f(∅) := 0``, which needs no forward pass, the values add up to the output exactly. For two modalities this is the paper's
``φ_a = ½[f(a,v) − f(0,v) + f(a,0)]``. It holds for any architecture; see docs/theory.md, *Modality balance*.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError
from ._inputs import Inputs, call, named

__all__ = ["coalitions", "mono_modal_outputs", "mute", "muted", "share", "shapley_values"]

Coalition = frozenset[str]


def coalitions(modalities: Collection[str]) -> list[Coalition]:
    """All 2^M − 2 sets of modalities except the empty and the full one, smallest first."""
    return [
        frozenset(chosen) for size in range(1, len(modalities)) for chosen in itertools.combinations(modalities, size)
    ]


def share(present: Coalition, weights: Mapping[str, float]) -> float:
    """The factor of ``f(present)`` in ``Σ_m weights_m φ_m``.

    Factorials are integers up to the final division, so equal weights give exactly that weight for the full set and 0 for every
    other.
    """
    total, size = len(weights), len(present)
    inside = sum(weight for name, weight in weights.items() if name in present)
    if size == total:
        return inside / total
    outside = sum(weight for name, weight in weights.items() if name not in present)
    return (
        math.factorial(size - 1)
        * math.factorial(total - size - 1)
        * ((total - size) * inside - size * outside)
        / math.factorial(total)
        if size
        else -outside / total
    )


def shapley_values(outputs: Mapping[Coalition, Tensor], modalities: Sequence[str]) -> dict[str, Tensor]:
    """φ_m (B, K) of each modality, from the outputs (B, K) of all coalitions including the full set.

    Without an entry for the empty set ``f(∅)`` is 0 and the values add up to ``f(all)``, otherwise to ``f(all) − f(∅)``.
    """
    values = {}
    for name in modalities:
        weights = {other: float(other == name) for other in modalities}
        values[name] = sum(
            (share(present, weights) * output for present, output in outputs.items()),
            start=torch.zeros_like(next(iter(outputs.values()))),
        )
    return values


def mute(inputs: Mapping[str, Tensor], present: Collection[str], baseline: Inputs | None = None) -> dict[str, Tensor]:
    """The inputs with all modalities outside ``present`` replaced by ``baseline`` (a sample or a batch each) or by zeros.

    Raises `UserError` for a baseline of an unknown modality.
    """
    baseline = {} if baseline is None else named(baseline)
    if unknown := [name for name in baseline if name not in inputs]:
        raise UserError(f"the baseline names {', '.join(unknown)}; the modalities are {', '.join(inputs)}")
    found = {}
    for name, one in inputs.items():
        if name in present:
            found[name] = one
        elif name in baseline:
            found[name] = baseline[name].to(one).expand_as(one)
        else:
            found[name] = torch.zeros_like(one)
    return found


@contextlib.contextmanager
def muted(model: nn.Module) -> Iterator[None]:
    """Runs BatchNorm in evaluation mode inside the context, because muted inputs are not from the training distribution."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True


def mono_modal_outputs(model: nn.Module, inputs: Inputs, baseline: Inputs | None = None) -> dict[str, Tensor]:
    """φ_m (B, K) of each modality, with ``f(∅) := 0`` and BatchNorm in evaluation mode throughout."""
    given = named(inputs)
    with muted(model):
        outputs = {
            present: call(model, mute(given, present, baseline), inputs)
            for present in (*coalitions(list(given)), frozenset(given))
        }
    return shapley_values(outputs, list(given))
