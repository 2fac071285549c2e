"""Verification of groups by trial removal: groups whose removal does not do what masking does are not pruned, and the reason is
recorded.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..components import Group, Structure
from ..errors import UserError
from ..layers import LAYERS, copied, flat_weight, get_operator, shaped_weight, widened
from ..models import CausalLM
from ..progress import Progress, silent
from ._remove import remaining_columns, remove

__all__ = ["TOLERANCE", "answer", "difference", "distance", "verified"]

# The removed and the masked network may differ by the rounding of single precision only. Relative to the largest logit.
TOLERANCE = 1e-3
# In double precision, and in single precision on weights of ordinary size.
_EXACT, _SINGLE = 1e-8, 1e-4
# A network of tokens is run on this many of each window: enough for every head and neuron, and few logits.
_TOKENS = 64
# Choices of components that all groups are tried with, of a different share of each group.
_DRAWS = 3
# Each group is also tried by itself as long as this costs no more multiply-accumulates altogether.
_ALONE = 5e9
_DEPENDS = "the network's code depends on how many there are"


@torch.inference_mode(False)
@torch.no_grad()
def verified(structure: Structure, module: nn.Module, example: Tensor, *, progress: Progress = silent) -> Structure:
    """``structure`` without the groups for which removal and masking give different outputs.

    Some components of every group are removed at once, and the output is compared with that of the network in which the columns
    that read these components are zero. If the two differ, the groups are bisected until each faulty group is isolated. Half of
    every group is removed first, then random numbers, and in small networks half of each group by itself. It is done in double
    precision and with random weights, so that no path of the network is dead and nothing hides in rounding; for a language
    model, and where that is impossible, in single precision and with the network's own weights.
    """
    distance(*(answer(module, example),) * 2)  # is it finite?
    trial = _Trial(structure, module, example)
    reasons: dict[str, str] = {}
    rounds: list[Sequence[Group]] = [structure.groups] * (1 if trial.language else _DRAWS)
    if not trial.language and structure.cost().flops * len(example) * 2 * len(structure.groups) <= _ALONE:
        rounds += [[group] for group in structure.groups]
    for number, groups in enumerate(rounds):
        progress(number, len(rounds), "verifying groups")
        stack = [[group for group in groups if group.name not in reasons]]
        while stack:
            some = stack.pop()
            reason = trial.fault(some, number) if some else None
            if reason is not None and len(some) == 1:
                reasons[some[0].name] = reason
            elif reason is not None:
                half = len(some) // 2
                stack += [some[:half], some[half:]]
    progress(len(rounds), len(rounds), "verifying groups")
    return structure.without(reasons) if reasons else structure


class _Trial:
    def __init__(self, structure: Structure, module: nn.Module, example: Tensor) -> None:
        self.structure = structure
        self.language = isinstance(module, CausalLM)
        self.net, self.example, self.tolerance = copied(module).eval(), example, TOLERANCE
        if self.language or next(module.parameters()).device.type == "mps":  # has no double precision
            return
        for dtype, tolerance in ((torch.float64, _EXACT), (torch.float32, _SINGLE)):
            for random in (True, False):
                net = copied(module).eval().to(dtype)
                x = example.to(dtype) if example.is_floating_point() else example
                if random:
                    _excite(net)
                try:
                    finite = bool(answer(net, x).isfinite().all())
                except Exception:  # a network that makes tensors of single precision itself, for example
                    continue
                if finite:
                    self.net, self.example, self.tolerance = net, x, tolerance
                    return

    def fault(self, groups: Sequence[Group], number: int) -> str | None:
        """Why the ``groups`` cannot be pruned together; None if they can."""
        generator = torch.Generator().manual_seed(number)
        keep = {}
        for group in groups:
            half = number == 0 or number >= _DRAWS
            count = (group.size + 1) // 2 if half else int(torch.randint(1, group.size, (), generator=generator))
            keep[group.name] = torch.randperm(group.size, generator=generator)[:count].tolist()
        removed = copy.deepcopy(self.net)
        try:
            remove(removed, self.structure, keep)
            after = answer(removed, self.example)
        except Exception as error:  # a network that was cut in the wrong place may raise anything
            return f"{_DEPENDS}: the pruned network fails ({type(error).__name__})"
        before = self._masked(keep)
        if before.shape == after.shape and distance(before, after) <= self.tolerance:
            return None
        return f"{_DEPENDS}: the outputs of the pruned and the masked network differ"

    def _masked(self, keep: Mapping[str, Sequence[int]]) -> Tensor:
        own: dict[str, Tensor] = {}
        for name, read in self.structure.readers.items():
            if not any(group.name in keep for group, _ in read):
                continue
            layer = get_operator(self.net, name)
            own[name] = layer.weight.detach().clone()
            flat = flat_weight(layer).clone()
            flat[:, ~remaining_columns(self.structure, name, flat, keep)] = 0.0
            layer.weight.copy_(shaped_weight(layer, flat))
        try:
            return answer(self.net, self.example)
        finally:
            for name, weight in own.items():
                get_operator(self.net, name).weight.copy_(weight)


def _excite(net: nn.Module) -> None:
    """Random weights in place that pass on signals of about the size that they receive."""
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    for module in net.modules():
        for name, value in module.named_parameters(recurse=False):
            if isinstance(module, LAYERS) and name == "weight":
                value.copy_(noise(value) * math.sqrt(2 / max(1, value[0].numel())))
            else:
                value.add_(0.3 * noise(value))
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.copy_(0.3 * noise(module.running_mean))
            module.running_var.copy_(0.5 + noise(module.running_var).abs())


def difference(masked: nn.Module, removed: nn.Module, example: Tensor) -> float:
    """The largest difference between the outputs of the two networks, relative to the largest output of the masked one; inf if
    only the removed network's output is not finite. Raises `UserError` if the masked network's output is not.
    """
    return distance(answer(masked, example), answer(removed, example))


def answer(net: nn.Module, example: Tensor) -> Tensor:
    """The output for ``example``, float32 or wider: weights in half precision compute in single precision, since their own
    rounding would hide what the comparison looks for. Of tokens (B, T), only the first `_TOKENS` are run.
    """
    if example.ndim == 2 and not example.is_floating_point():
        example = example[:, :_TOKENS]
    with torch.inference_mode(), widened(net):
        output: Tensor = net(example)
    return output.to(torch.promote_types(output.dtype, torch.float32))


def distance(before: Tensor, after: Tensor) -> float:
    """`difference` for outputs that are already known."""
    if not bool(torch.isfinite(before).all()):
        raise UserError("the network's output is not finite; check its weights, --mean and --std")
    off = float((before - after).abs().max()) / max(1e-6, float(before.abs().max()))
    return off if math.isfinite(off) else math.inf
