"""What each modality contributes to a model's output: the Shapley value over modalities (theory, section 7).

With ``f(S)`` the output when all modalities but those of ``S`` are muted, and M modalities in all,

    φ_m = Σ_{S ∌ m} |S|! (M−1−|S|)! / M! · ( f(S ∪ {m}) − f(S) ) ,        Σ_m φ_m = f(all) − f(∅)

With ``f(∅) := 0``, which needs no pass, they split the output exactly; for two modalities that is the paper's
``φ_a = ½[f(a,v) − f(0,v) + f(a,0)]`` (AGM, Li et al., ICCV 2023). It holds for any architecture.
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
    """Every set of modalities that is neither empty nor all of them: 2^M − 2, small ones first."""
    return [
        frozenset(chosen) for size in range(1, len(modalities)) for chosen in itertools.combinations(modalities, size)
    ]


def share(present: Coalition, weights: Mapping[str, float]) -> float:
    """With which factor ``f(present)`` stands in ``Σ_m weights_m φ_m``.

    Integers up to the last division: equal weights give exactly 0 for every set but all modalities, whose factor they are.
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
    """φ_m (B, K) of each modality from the outputs (B, K) of all coalitions, the whole among them.

    Without an entry for the empty one ``f(∅)`` is 0 and the values add up to ``f(all)``, otherwise to ``f(all) − f(∅)``.
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
    """The same inputs with all modalities but ``present`` replaced: by zeros, or by ``baseline`` (a sample or a batch each).

    Raises `UserError` for a baseline of a modality that there is not.
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
    """Inside, BatchNorm uses its running statistics and leaves them alone: muted inputs are not of the distribution."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True


def mono_modal_outputs(model: nn.Module, inputs: Inputs, baseline: Inputs | None = None) -> dict[str, Tensor]:
    """φ_m (B, K) of each modality, ``f(∅)`` taken as 0; with BatchNorm in evaluation mode throughout."""
    given = named(inputs)
    with muted(model):
        outputs = {
            present: call(model, mute(given, present, baseline), inputs)
            for present in (*coalitions(list(given)), frozenset(given))
        }
    return shapley_values(outputs, list(given))
