"""Gains of finite errors: an error is added to a layer's output, and its effect on the network's output is measured.

Each layer and batch takes one pass from the layer on (`Replay`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..layers import Change, Edit, Replay, batched, change_of, changed, get_operator
from ..progress import Progress, silent
from ._gains import Gains

__all__ = ["directional", "moved_by", "pairs", "random"]

_NEVER = 1e30

Shape = Callable[[int], Change]
"""Maps the number of samples in a batch to the change that is made to it."""


def directional(
    module: nn.Module,
    edits: Mapping[str, Edit],
    images: Tensor,
    *,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> dict[str, Gains]:
    """``‖h_l(z + e) − h_l(z)‖ / ‖e‖`` at each sample, with ``e`` the error that the edit of layer ``l`` makes there; the rest
    of the network is unchanged.

    ``images``: (N, 3, H, W) on the CPU; ``batch_size``: as many as fit into a gigabyte by default.
    """
    return _run(module, _fixed(module, edits), images, batch_size, progress)[0]


def random(
    module: nn.Module,
    layers: Sequence[str],
    images: Tensor,
    *,
    scale: float = 1.0,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> dict[str, Gains]:
    """`directional` with ``e`` drawn isotropically: normal, its size ``scale`` times the root-mean-square of the layer's output
    for the sample. Shows the effect of an error without a preferred direction.
    """
    device = next(module.parameters()).device
    generator = torch.Generator(device=device).manual_seed(seed)

    def noise(output: Tensor, samples: int) -> Tensor:
        rows = output.reshape(samples, -1)
        drawn = torch.randn(rows.shape, generator=generator, device=output.device, dtype=output.dtype)
        return (drawn * rows.square().mean(1, keepdim=True).sqrt() * scale).reshape(output.shape)

    shapes = {name: _of_output(noise) for name in layers}
    return _run(module, shapes, images, batch_size, progress)[0]


def pairs(
    module: nn.Module,
    layers: Sequence[str],
    images: Tensor,
    *,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> dict[str, Gains]:
    """``‖h_l(z') − h_l(z)‖ / ‖z' − z‖`` with ``z'`` the layer's output for another sample, the previous one in the batch;
    everything beside the layer remains that of the first sample. Batches have at least two samples.
    """

    def other(output: Tensor, samples: int) -> Tensor:
        return output.roll(output.shape[0] // samples, 0) - output

    return _run(module, {name: _of_output(other) for name in layers}, images, batch_size, progress, at_least=2)[0]


def moved_by(
    module: nn.Module,
    edits: Mapping[str, Edit],
    images: Tensor,
    *,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> tuple[dict[str, Gains], dict[str, Tensor]]:
    """`directional`, and the difference at the network's output, (N, K) for each layer."""
    return _run(module, _fixed(module, edits), images, batch_size, progress, keep=True)


def flipping(logits: Tensor, difference: Tensor) -> Tensor:
    """(2, B) float64: the smallest multiple of ``difference`` (B, K), and of its opposite, that makes another logit as large as
    the largest of ``logits`` (B, K); 10³⁰ if none does.
    """
    logits, difference = logits.double(), difference.double()
    top = logits.argmax(1, keepdim=True)
    behind = logits.gather(1, top) - logits
    found = []
    for sign in (1.0, -1.0):
        gained = sign * (difference - difference.gather(1, top))
        multiple = torch.where(gained > 0, behind / torch.where(gained > 0, gained, 1.0), _NEVER)
        found.append(multiple.scatter(1, top, _NEVER).amin(1).clamp(max=_NEVER))
    return torch.stack(found)


def _fixed(module: nn.Module, edits: Mapping[str, Edit]) -> dict[str, Shape]:
    def always(change: Change) -> Shape:
        return lambda _: change

    return {name: always(change_of(get_operator(module, name), edit)) for name, edit in edits.items()}


def _of_output(error: Callable[[Tensor, int], Tensor]) -> Shape:
    """A change that depends only on the layer's output and the number of samples."""
    return lambda samples: lambda _, __, output: error(output, samples)


def _run(
    module: nn.Module,
    shapes: Mapping[str, Shape],
    images: Tensor,
    batch_size: int | None,
    progress: Progress,
    at_least: int = 1,
    keep: bool = False,
) -> tuple[dict[str, Gains], dict[str, Tensor]]:
    """The gains and, with ``keep``, the differences at the network's output, (N, K) for each layer."""
    local: dict[str, list[Tensor]] = {name: [] for name in shapes}
    reached: dict[str, list[Tensor]] = {name: [] for name in shapes}
    moved: dict[str, list[Tensor]] = {name: [] for name in shapes}
    flips: dict[str, list[Tensor]] = {name: [] for name in shapes}

    here: list[Tensor] = []

    def see(_: str, difference: Tensor) -> None:
        # A layer may see a sample in several rows of its batch, and run several times.
        here.append(difference.reshape(samples, -1).square().sum(1).cpu())

    with torch.no_grad():
        batches = list(batched(module, images, batch_size, at_least))
        done, total = 0, len(batches) * len(shapes)
        for batch in batches:
            replay = Replay(module, batch)
            samples = len(batch)
            for name, shape in shapes.items():
                progress(done, total, "estimating Lipschitz constants")
                done += 1
                with replay.at(name), changed(module, {name: shape(samples)}, see):
                    difference = (module(batch) - replay.output).flatten(1)
                if here:
                    local[name].append(torch.stack(here).sum(0))
                    here.clear()
                reached[name].append(difference.cpu().double().square().sum(1))
                if replay.output.ndim == 2 and replay.output.shape[1] > 1:
                    flips[name].append(flipping(replay.output, difference).cpu())
                if keep:
                    moved[name].append(difference.cpu())
        progress(total, total, "estimating Lipschitz constants")
    gains = {
        name: Gains(
            torch.cat(local[name]) if local[name] else torch.zeros(0),
            torch.cat(reached[name]) if reached[name] else torch.zeros(0, dtype=torch.float64),
            torch.cat(flips[name], 1) if flips[name] else None,
        )
        for name in shapes
    }
    return gains, {name: torch.cat(found) if found else torch.zeros(0, 1) for name, found in moved.items()}
