"""Batches of several modalities and the checks they must pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError

__all__ = ["Inputs", "call", "check", "check_targets", "named"]

Inputs = Mapping[str, Tensor] | Sequence[Tensor]
"""A dict or tuple with one tensor (B, …) per modality: the only argument of a multimodal model."""


def named(inputs: Inputs) -> dict[str, Tensor]:
    """Modality → tensor; the modalities of a tuple are named 0, 1, …"""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    return {str(place): one for place, one in enumerate(inputs)}


def call(model: nn.Module, inputs: dict[str, Tensor], like: Inputs) -> Tensor:
    """The model's logits (B, K) for named inputs, passed as a dict or tuple like ``like``."""
    output = model(inputs if isinstance(like, Mapping) else tuple(inputs.values()))
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise UserError("the model must return one tensor of logits (samples, classes) for a batch of modalities")
    return output


def check_targets(targets: Tensor, classes: int) -> None:
    """Raises `UserError` unless ``targets`` (B,) are class indices below ``classes``."""
    if not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise UserError(f"targets must be class indices from 0 to {classes - 1}")


def check(inputs: dict[str, Tensor], targets: Tensor, modalities: Sequence[str] | None = None) -> None:
    """Raises `UserError` if ``inputs`` are unsuitable for training: fewer than two modalities, modalities other than
    ``modalities``, batch sizes that differ from each other or from ``targets`` (B,), an empty batch, or values that are not
    finite.
    """
    if modalities is not None and set(inputs) != set(modalities):
        missing = [name for name in modalities if name not in inputs]
        wrong = (
            f"is missing {', '.join(missing)}"
            if missing
            else f"also has {', '.join(sorted(set(inputs) - set(modalities)))}"
        )
        raise UserError(f"this batch {wrong}; every batch needs the modalities {', '.join(modalities)}")
    if len(inputs) < 2:
        raise UserError(f"modality balance needs at least two modalities; this batch has {', '.join(inputs) or 'none'}")
    sizes = {name: len(one) for name, one in inputs.items()}
    if set(sizes.values()) != {len(targets)}:
        counted = ", ".join(f"{count} of {name}" for name, count in sizes.items())
        raise UserError(f"batch sizes differ: {counted}, {len(targets)} targets; every sample needs all modalities")
    if not len(targets):
        raise UserError("this batch is empty; skip it")
    for name, one in inputs.items():
        if not bool(torch.isfinite(one).all()):
            raise UserError(f"modality {name} has NaN or infinite values in this batch; clean the data before training")
