"""What a batch of several modalities looks like, and what must hold before anything is computed from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError

__all__ = ["Inputs", "call", "check", "check_targets", "named"]

Inputs = Mapping[str, Tensor] | Sequence[Tensor]
"""A dict, or a tuple, of modalities, each (B, …); a model takes it as its only argument."""


def named(inputs: Inputs) -> dict[str, Tensor]:
    """Modality → tensor; those of a tuple are called 0, 1, … in turn."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    return {str(place): one for place, one in enumerate(inputs)}


def call(model: nn.Module, inputs: dict[str, Tensor], like: Inputs) -> Tensor:
    """The model's logits (B, K) for named inputs, in the form (dict or tuple) that ``like`` has."""
    output = model(inputs if isinstance(like, Mapping) else tuple(inputs.values()))
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise UserError("the model must give one tensor of logits (samples, classes) for a batch of modalities")
    return output


def check_targets(targets: Tensor, classes: int) -> None:
    """Raises `UserError` unless targets (B,) are class indices below ``classes``."""
    if not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise UserError(f"targets must be class indices from 0 to {classes - 1}")


def check(inputs: dict[str, Tensor], targets: Tensor, modalities: Sequence[str] | None = None) -> None:
    """Raises `UserError` if ``inputs`` cannot be learned from: fewer than two modalities or others than ``modalities``, batch
    sizes that differ from each other or from ``targets``' (B,), an empty batch, values that are not finite.
    """
    if modalities is not None and set(inputs) != set(modalities):
        missing = [name for name in modalities if name not in inputs]
        wrong = (
            f"lacks {', '.join(missing)}" if missing else f"has {', '.join(sorted(set(inputs) - set(modalities)))} too"
        )
        raise UserError(f"this batch {wrong}; every batch needs the modalities {', '.join(modalities)}")
    if len(inputs) < 2:
        raise UserError(
            f"modalities compete where there are at least two; this batch has {', '.join(inputs) or 'none'}"
        )
    sizes = {name: len(one) for name, one in inputs.items()}
    if set(sizes.values()) != {len(targets)}:
        counted = ", ".join(f"{count} of {name}" for name, count in sizes.items())
        raise UserError(
            f"batch sizes differ: {counted}, {len(targets)} targets; give every sample all of its modalities"
        )
    if not len(targets):
        raise UserError("this batch is empty; leave it out")
    for name, one in inputs.items():
        if not bool(torch.isfinite(one).all()):
            raise UserError(f"modality {name} has NaN or infinite values in this batch; clean the data before training")
