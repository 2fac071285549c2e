"""Lipschitz constants from a layer's output to the network's, estimated on data (theory, section 5).

*Directional*: ``K_l = max_x ‖h_l(z + e) − h_l(z)‖ / ‖e‖`` with ``e`` the error that an edit of layer ``l`` makes. It is the
largest gain that was seen on the samples in that direction, hence a **lower** bound of the true constant.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from .._operators import Edit, edited
from ..progress import Progress, silent

__all__ = ["Gain", "directional", "gain_of"]


class Gain(BaseModel):
    """How much an error at a layer's output grew on its way to the logits: largest and root-mean-square ratio over samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    maximum: float
    rms: float
    samples: int


def gain_of(local: Tensor, reached: Tensor) -> Gain:
    """From the squared norms of the local errors and of what reached the output, (N,) each. Samples without a local
    error say nothing and are left out; with none left both gains are 0.
    """
    seen = local > 0
    local, reached = local[seen].double(), reached[seen].double()
    if not len(local):
        return Gain(maximum=0.0, rms=0.0, samples=0)
    return Gain(
        maximum=float((reached / local).max().sqrt()),
        rms=float((reached.sum() / local.sum()).sqrt()),
        samples=len(local),
    )


def directional(
    module: nn.Module, edits: Mapping[str, Edit], images: Tensor, *, batch_size: int = 64, progress: Progress = silent
) -> dict[str, Gain]:
    """The directional gain of each edited layer alone, the rest of the network as it is.

    ``images``: (N, 3, H, W) on the CPU. One forward pass for each layer, and one more.
    """
    device = next(module.parameters()).device
    batches = list(images.split(batch_size))
    gains = {}
    with torch.inference_mode():
        plain = [module(batch.to(device)) for batch in batches]
        for done, (name, edit) in enumerate(edits.items()):
            progress(done, len(edits), "estimating Lipschitz constants")
            local: list[Tensor] = []
            reached: list[Tensor] = []

            def see(_: str, difference: Tensor, local: list[Tensor] = local) -> None:
                local.append(difference.flatten(1).double().square().sum(1).cpu())

            with edited(module, {name: edit}, see):
                for batch, before in zip(batches, plain, strict=True):
                    after = module(batch.to(device))
                    reached.append((after - before).flatten(1).double().square().sum(1).cpu())
            # A layer may see a sample in several rows of its batch.
            gains[name] = gain_of(torch.cat(local).reshape(len(images), -1).sum(1), torch.cat(reached))
    progress(len(edits), len(edits), "estimating Lipschitz constants")
    return gains
