"""Sequential compensation of a language model, one decoder block at a time (see docs/theory.md, *Compensation*).

Two residual streams are kept for all samples, one of the original and one of the pruned network. In each block the layers
that read components, the attention projection and then the MLP projection, are fitted to the inputs that the pruned stream
gives them. The target is the original layer's output plus, since it is added to the stream, the drift of the stream so far:
``Y + (stream_original − stream_pruned)``. Only sums over rows are kept, ``E[x̂_S x̂_Sᵀ]`` and ``E[y x̂_Sᵀ]``: memory is
bounded by one block, its copy, and one layer's moments.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..fidelity import TAIL, Sums, fit_moments
from ..layers import Edit, Reached, bias_of
from ..models import CausalLM, held
from ..progress import Progress, silent
from ..statistics import FOLDS, Stream, entered
from ..study import Study
from ..surgery import remaining_columns
from ._fits import Fits

__all__ = ["sequential_blocks"]


@torch.inference_mode()
def sequential_blocks(
    study: Study,
    keep: Mapping[str, Sequence[int]],
    module: CausalLM,
    batches: Iterable[Tensor],
    samples: int,
    *,
    centred: bool = False,
    tail: float = TAIL,
    drift: bool = True,
    fits: Fits | None = None,
    progress: Progress = silent,
) -> tuple[dict[str, Edit], dict[str, float]]:
    """New weights for every layer that reads components, in the coordinates of the original network, and the ridge each was
    fitted with.

    Args:
        study: of ``module``; its structure says which layers read what.
        keep: the components kept in each group.
        module: the original network; it is not changed.
        batches: windows of tokens, (B, T) each, all but the last of one size.
        samples: number of windows.
        centred: whether the lost mean is restored by a constant.
        tail: see `modhifi.fidelity.fit_rows`.
        drift: whether a layer also corrects the drift of the stream so far.
        fits: those of an earlier run that did not end; new ones are added.
        progress: see `modhifi.progress`.
    """
    fits = Fits() if fits is None else fits
    original = entered(module, batches, samples)
    changed = original.copy()
    names: list[str] = []
    blocks = module.blocks()
    what = "sequential compensation, block by block"
    for number, (path, block) in enumerate(blocks):
        progress(number, len(blocks), what)
        block = held(block)
        pair = _Pair(module, number, block, copy.deepcopy(block), original, changed)
        made_up = drift and pair.adds()
        for part in (module.family.out, module.family.down):
            name = f"{path}.{part}"
            if name not in study.structure.readers:
                continue
            names.append(name)
            if name not in fits.edits:
                stays = remaining_columns(study.structure, name, pair.layer(part).weight, keep)
                fits.add(name, *pair.fit(part, stays, centred, tail, made_up))
            pair.change(part, fits.edits[name], centred)
        pair.forward()
    progress(len(blocks), len(blocks), what)
    return {name: fits.edits[name] for name in names}, {name: fits.ridges[name] for name in names}


@dataclass
class _Pair:
    """The original block ``number``, ``block``, its pruned copy ``twin``, and the input stream of each."""

    module: CausalLM
    number: int
    block: nn.Module
    twin: nn.Module
    original: Stream
    changed: Stream

    def layer(self, part: str) -> nn.Linear:
        """The layer of the pruned copy."""
        layer = self.twin.get_submodule(part)
        assert isinstance(layer, nn.Linear)
        return layer

    def _seen(
        self, block: nn.Module, stream: Stream, start: int, until: str = ""
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Runs ``block`` on the samples from ``start`` on, through the layer ``until`` or as a whole. Returns its input, and each
        layer's input and output, all (rows, channels); the block's own output has the name ``""``.
        """
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}

        def flat(values: Tensor) -> Tensor:
            return values.reshape(-1, values.shape[-1]).float()

        def note(part: str) -> Any:
            def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                inputs[part], outputs[part] = flat(args[0]), flat(output)
                if part == until:
                    raise Reached

            return hook

        states = stream.at(start)
        family = self.module.family
        hooks = [block.get_submodule(part).register_forward_hook(note(part)) for part in (family.out, family.down)]
        try:
            with contextlib.suppress(Reached):
                outputs[""] = flat(stream.run(self.number, block, states))
        finally:
            for hook in hooks:
                hook.remove()
        return flat(states), inputs, outputs

    def adds(self) -> bool:
        """Whether the two layers' outputs are added to the stream directly. In the smallest OPT models a normalisation
        follows.
        """
        family = self.module.family
        for start in self.original.starts()[:1]:
            states, _, outputs = self._seen(self.block, self.original, start)
            total = states + outputs[family.out] + outputs[family.down]
            rounding = 64 * torch.finfo(self.original.states.dtype).eps * float(total.abs().max())
            return bool((total - outputs[""]).abs().max() <= rounding)
        return False

    def _rows(self, part: str, stays: Tensor, drift: bool) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The number of the first sample, the kept inputs (r, n) and the targets (r, O) of the layer, batch by batch."""
        out = self.module.family.out
        bias = bias_of(self.layer(part)).float()
        for start in self.original.starts():
            states, _, outputs = self._seen(self.block, self.original, start, part)
            changed, inputs, now = self._seen(self.twin, self.changed, start, part)
            target = outputs[part] - bias
            if drift:
                target = target + states - changed
                if part != out:  # the MLP's output is added to a stream that already holds attention's
                    target = target + outputs[out] - now[out]
            yield start, inputs[part][:, stays], target

    def fit(self, part: str, stays: Tensor, centred: bool, tail: float, drift: bool) -> tuple[Edit, float]:
        """The layer's edit and its ridge."""
        layer = self.layer(part)
        device = layer.weight.device
        sums = [Sums(int(stays.sum()), layer.out_features, device) for _ in range(FOLDS)]
        for start, x, y in self._rows(part, stays, drift):
            tokens = self.original.states.shape[1]
            number = start + torch.arange(len(x), device=x.device) // tokens
            for fold, one in enumerate(sums):
                mine = number % FOLDS == fold
                one.add(x[mine], y[mine])
        folds = [one.averages() for one in sums if one.count]
        weight, shift, ridge = fit_moments(folds, layer.weight[:, stays], tail, centred)
        new = torch.zeros(layer.weight.shape, dtype=weight.dtype, device=weight.device)
        new[:, stays] = weight
        return Edit(new.cpu(), shift.cpu()), ridge

    def change(self, part: str, edit: Edit, centred: bool) -> None:
        """Writes the edit into the copy."""
        layer = self.layer(part)
        layer.weight.copy_(edit.weight)
        if centred:
            layer.bias = nn.Parameter((bias_of(layer) + edit.shift.to(layer.weight)), requires_grad=False)

    def forward(self) -> None:
        """Advances both streams past this block."""
        for block, stream in ((self.block, self.original), (self.twin, self.changed)):
            for start in stream.starts():
                stream.put(start, stream.run(self.number, block, stream.at(start)))
