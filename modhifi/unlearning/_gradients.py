"""Reference methods that need gradients: gradient ascent on the forget set and fine-tuning on the retain set."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..plan import CurvePoint
from ._classes import Found, Task, curve_point

__all__ = ["ascent", "finetune"]

_RATE_UP, _STEPS_UP, _BATCH_UP = 1e-3, 60, 64
_RATE_DOWN, _EPOCHS_DOWN, _BATCH_DOWN = 1e-3, 5, 64
_MOMENTUM, _DECAY = 0.9, 5e-4


@torch.inference_mode(False)
def ascent(task: Task) -> Found:
    """Stochastic gradient ascent on the cross-entropy of the forget set, with BatchNorm in evaluation mode, until the first
    step that reaches the target. Raises `UserError` if none of `_STEPS_UP` steps does.
    """
    net = _trainable(task)
    optimizer = torch.optim.SGD(net.parameters(), lr=_RATE_UP, momentum=_MOMENTUM, maximize=True)
    batches = _batches(task, task.chosen, _BATCH_UP)
    points = [_point(task, net, 0)]
    for step in range(1, _STEPS_UP + 1):
        task.progress(step - 1, _STEPS_UP, "gradient ascent")
        _step(task, net, optimizer, *next(batches))
        points.append(_point(task, net, step))
        if points[-1].forget_accuracy <= task.target:
            break
    else:
        raise task.unreached(f"gradient ascent in {_STEPS_UP} steps never")
    return _found(task, net, points, "ascent")


@torch.inference_mode(False)
def finetune(task: Task) -> Found:
    """Stochastic gradient descent on the cross-entropy of the retain set, with BatchNorm in evaluation mode, for `_EPOCHS_DOWN`
    epochs or until the target is reached. It may not reach the target.
    """
    net = _trainable(task)
    optimizer = torch.optim.SGD(net.parameters(), lr=_RATE_DOWN, momentum=_MOMENTUM, weight_decay=_DECAY)
    points = [_point(task, net, 0)]
    steps = max(1, int((~task.chosen).sum()) // _BATCH_DOWN)
    batches = _batches(task, ~task.chosen, _BATCH_DOWN)
    for epoch in range(1, _EPOCHS_DOWN + 1):
        for step in range(steps):
            task.progress((epoch - 1) * steps + step, _EPOCHS_DOWN * steps, "fine-tuning on the retain set")
            _step(task, net, optimizer, *next(batches))
        points.append(_point(task, net, epoch))
        if points[-1].forget_accuracy <= task.target:
            break
    return _found(task, net, points, "finetune")


def _trainable(task: Task) -> nn.Module:
    return copy.deepcopy(task.model.module).eval().requires_grad_(True)


def _batches(task: Task, which: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields batches endlessly, shuffled again for every pass."""
    generator = torch.Generator().manual_seed(task.seed)
    numbers = torch.nonzero(which)[:, 0]
    while True:
        for part in numbers[torch.randperm(len(numbers), generator=generator)].split(size):
            yield task.images[part], task.labels[part]


def _step(task: Task, net: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    device = task.model.device
    with torch.enable_grad():
        loss = nn.functional.cross_entropy(net(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _point(task: Task, net: nn.Module, strength: int) -> CurvePoint:
    answers = torch.cat([net(batch.to(task.model.device)).argmax(1).cpu() for batch in task.images.split(128)])
    return curve_point(strength, answers, task.labels, task.chosen)


def _found(task: Task, net: nn.Module, points: list[CurvePoint], method: str) -> Found:
    before, after = task.model.module.state_dict(), net.state_dict()
    readers = task.study.structure.readers
    changed = {
        name: value.flatten(1) if name.removesuffix(".weight") in readers else value
        for name, value in after.items()
        if not torch.equal(value, before[name])
    }
    layers = sorted({name.rpartition(".")[0] for name in changed})
    return Found(tensors=changed, layers=layers, point=points[-1], curve=points, method=method)
