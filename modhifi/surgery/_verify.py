"""Every group tried out: what the tracer misread is left whole, with the reason, before anybody plans with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._operators import get_operator
from ..components import Group, Structure
from ..errors import UserError
from ..progress import Progress, silent
from ._remove import remaining_columns, remove

__all__ = ["answer", "difference", "distance", "tolerance", "verified"]

# Removed and masked network may differ by rounding only: relative to the largest logit, in float32.
TOLERANCE = 1e-3


@torch.inference_mode(False)
@torch.no_grad()
def verified(structure: Structure, module: nn.Module, example: Tensor, *, progress: Progress = silent) -> Structure:
    """``structure`` without the groups whose removal does not give what masking gives.

    A random half of every group is removed at once and the answer compared with that of the network in which the columns
    that read them are zero. If they differ, the groups are split in two until the ones at fault stand alone.
    """
    reasons: dict[str, str] = {}
    stack: list[Sequence[Group]] = [structure.groups] if structure.groups else []
    while stack:
        progress(len(structure.groups) - sum(map(len, stack)), len(structure.groups), "trying out removals")
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
    except Exception as error:  # whatever a network does that was cut in the wrong place
        return f"misread by the tracer: without some of them the network fails ({type(error).__name__})"
    if off <= TOLERANCE:
        return None
    return "misread by the tracer: removing some of them gives another answer than masking them"


def difference(masked: nn.Module, removed: nn.Module, example: Tensor) -> float:
    """The largest difference between the two networks' answers, relative to the masked one's largest; inf where only the
    removed one's are not finite. Raises `UserError` if the masked one's are not.
    """
    return distance(answer(masked, example), answer(removed, example))


def answer(net: nn.Module, example: Tensor) -> Tensor:
    with torch.inference_mode():
        return net(example).float()  # type: ignore[no-any-return]


def distance(before: Tensor, after: Tensor) -> float:
    """As `difference`, of the answers."""
    if not bool(torch.isfinite(before).all()):
        raise UserError("the network's answers are not finite; check its weights, --mean and --std")
    off = float((before - after).abs().max()) / max(1e-6, float(before.abs().max()))
    return off if math.isfinite(off) else math.inf


def tolerance(net: nn.Module) -> float:
    """`TOLERANCE` for weights of single precision, and in proportion to how coarsely others are rounded."""
    coarseness = torch.finfo(next(net.parameters()).dtype).eps / torch.finfo(torch.float32).eps
    return min(0.05, TOLERANCE * max(1.0, coarseness))
