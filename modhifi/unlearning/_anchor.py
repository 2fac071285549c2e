"""BatchNorm anchored to the retain set: statistics, scale and shift change together, so that the network does not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..plan import Plan, Settings
from ..surgery import apply
from ._classes import Task

__all__ = ["anchor"]


@torch.inference_mode()
def anchor(task: Task, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """New statistics, scale and shift of every BatchNorm of the edited network, which leave its function unchanged."""
    norms = [name for name, module in task.model.module.named_modules() if _anchorable(module)]
    if not norms:
        return {}
    plan = Plan(kind="unlearn", model=task.study.model, calibration=task.data, settings=Settings()).with_tensors(
        tensors
    )
    net = apply(plan, task.model, masked=True).module
    sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def note(name: str, x: Tensor) -> None:
        # MPS has no float64.
        x = (x.cpu() if x.device.type == "mps" else x).transpose(0, 1).flatten(1).double()
        first, second, count = sums.get(name, (torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), 0))
        sums[name] = first + x.sum(1), second + x.square().sum(1), count + x.shape[1]

    hooks = [
        net.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
        for name in norms
    ]
    try:
        retained = task.images[~task.chosen].split(128)
        for number, batch in enumerate(retained):
            task.progress(number, len(retained), "anchoring BatchNorm")
            net(batch.to(task.model.device))
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[str, Tensor] = {}
    for name in norms:
        norm = net.get_submodule(name)
        assert isinstance(norm, _BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        first, second, count = sums[name]
        first, second = first.cpu(), second.cpu()
        mean = first / count
        variance = (second / count - mean.square()).clamp(min=0) * (count / max(1, count - 1))
        gain = norm.weight.cpu().double() / (norm.running_var.cpu().double() + norm.eps).sqrt()
        new = {
            "running_mean": mean,
            "running_var": variance,
            "weight": gain * (variance + norm.eps).sqrt(),
            "bias": norm.bias.cpu().double() + gain * (mean - norm.running_mean.cpu().double()),
        }
        found |= {f"{name}.{what}": value.float() for what, value in new.items()}
    return found


def _anchorable(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.track_running_stats and module.affine
