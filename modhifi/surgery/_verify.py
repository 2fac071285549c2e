"""Verification of groups by trial removal: groups that the tracer misread are not pruned, and the reason is recorded."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..components import Group, Structure
from ..errors import UserError
from ..layers import get_operator, widened
from ..progress import Progress, silent
from ._remove import remaining_columns, remove

__all__ = ["TOLERANCE", "answer", "difference", "distance", "verified"]

# The removed and the masked network may differ by the rounding of single precision only. Relative to the largest logit.
TOLERANCE = 1e-3
# A network of tokens is run on this many of each window: enough for every head and neuron, and few logits.
_TOKENS = 64


@torch.inference_mode(False)
@torch.no_grad()
def verified(structure: Structure, module: nn.Module, example: Tensor, *, progress: Progress = silent) -> Structure:
    """``structure`` without the groups for which removal and masking give different outputs.

    A random half of every group is removed at once, and the output is compared with that of the network in which the columns
    that read these components are zero. If the two differ, the groups are bisected until each faulty group is isolated.
    """
    reasons: dict[str, str] = {}
    stack: list[Sequence[Group]] = [structure.groups] if structure.groups else []
    while stack:
        progress(len(structure.groups) - sum(map(len, stack)), len(structure.groups), "verifying groups")
        groups = stack.pop()
        reason = _fault(structure, module, example, groups)
        if reason is None:
            continue
        if len(groups) == 1:
            reasons[groups[0].name] = reason
        else:
            half = len(groups) // 2
            stack += [groups[:half], groups[half:]]
    return structure.without(reasons) if reasons else structure


def _fault(structure: Structure, net: nn.Module, example: Tensor, groups: Sequence[Group]) -> str | None:
    generator = torch.Generator().manual_seed(0)
    keep = {
        group.name: torch.randperm(group.size, generator=generator)[: (group.size + 1) // 2].tolist()
        for group in groups
    }
    masked, removed = copy.deepcopy(net), copy.deepcopy(net)
    for name in structure.readers:
        layer = get_operator(masked, name)
        flat = layer.weight.data.flatten(1)
        flat[:, ~remaining_columns(structure, name, flat, keep)] = 0.0
    try:
        remove(removed, structure, keep)
        off = difference(masked, removed, example)
    except UserError:
        raise
    except Exception as error:  # a network that was cut in the wrong place may raise anything
        return f"misread by the tracer: the pruned network fails ({type(error).__name__})"
    if off <= TOLERANCE:
        return None
    return "misread by the tracer: the outputs of the pruned and the masked network differ"


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
