"""Studies of language models, one decoder block at a time: finished blocks are written to disk and memory-mapped."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ..errors import UserError
from ..layers import flat_weight, get_operator
from ..models import CausalLM, Model, onloaded
from ..progress import Progress
from ..statistics import collect_blocks
from ._folder import layer_tensors, read_columns, read_layer
from ._layer import LayerStats
from ._study import Study

__all__ = ["derive_blocks"]


def derive_blocks(
    study: Study,
    model: Model,
    batches: Iterable[Tensor],
    samples: int,
    numbers: range,
    folder: Path | None,
    keep: bool,
    progress: Progress,
) -> None:
    """Fills ``study`` with the layers of ``model``, their scores and curves.

    With a ``folder``, the layers of each block are written there as soon as they are complete and memory-mapped from then on,
    so that the moments of only one block are in memory. Without ``keep`` this process only contributes its sums.

    Raises `UserError` if a layer's input is not finite.
    """
    net = model.module
    assert isinstance(net, CausalLM)
    columns = {name: read_columns(study.structure, name) for name in study.structure.readers}
    for path, moments in collect_blocks(
        net, columns, batches, samples, seed=study.data.seed, numbers=numbers, progress=progress
    ):
        if not keep:
            continue
        for name in moments:
            if not bool(torch.isfinite(moments[name].seconds).all()):
                raise UserError(f"the input of {name} is not finite on this data; check the weights and their dtype")
            layer = get_operator(net, name)
            with onloaded(layer):
                weight = flat_weight(layer).cpu().float().clone()
            study.layers[name] = LayerStats(weight, moments[name], columns[name])
        for group in study.groups:
            if group.name.startswith(f"{path}."):
                study.derive("full", study.centred, group.name, device=model.device)
        for name in moments if folder is not None else ():
            assert folder is not None
            file = folder / f"{name}.safetensors"
            safetensors.torch.save_file(layer_tensors(study.layers[name]), file)
            about = study.layers[name].moments
            study.layers[name] = read_layer(file, about.counts, about.positions, columns[name])
            del about
        del moments  # free them before the next block is accumulated
