"""Baseline scores of other methods, computed by torch-pruning on this project's groups.

Without labels: the norm of the weights that write a component (``l1``, ``l2``; Li et al. 2017), the norm of all weights
coupled to it (``group-norm``; Fang et al. 2023), ``lamp`` (Lee et al. 2021) and ``random``. With labels of the calibration
images and gradients of the loss: ``taylor`` (Molchanov et al. 2019) and ``hessian`` (optimal brain damage with the empirical
Fisher diagonal).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ..components import Group, Slice, Structure
from ..data import Data
from ..errors import UserError
from ..evaluation import match_labels
from ..layers import get_operator
from ..models import Model
from ..progress import Progress, silent

__all__ = ["baseline"]

_NEEDS_LABELS = ("taylor", "hessian")
_BATCH = 64


@torch.inference_mode(False)
def baseline(
    score: str, structure: Structure, model: Model, data: Data | None = None, seed: int = 0, progress: Progress = silent
) -> dict[str, Tensor]:
    """(C,) float64 per group, higher for more important components, scaled for comparison across groups as in torch-pruning: by
    the mean of the group (``lamp``: by the components still to be removed). The score of a head is the sum over its channels.

    Args:
        score: name of the score.
        structure: the structure of ``model``.
        model: the original network; it is not modified.
        data: labelled images, for ``taylor`` and ``hessian``.
        seed: seed of ``random``.
        progress: see `modhifi.progress`.

    Raises:
        UserError: if the score needs labels and ``data`` has none.
    """
    import torch_pruning as tp

    net = copy.deepcopy(model.module)
    if score in _NEEDS_LABELS:
        if data is None or data.labels is None:
            raise UserError(f"the score {score} needs labelled calibration images; choose a score that needs no labels")
        _gradients(net, match_labels(data, model), model, squared=score == "hessian", progress=progress)
    importance = {
        "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "group-norm": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "lamp": lambda: tp.importance.LAMPImportance(),
        "random": lambda: tp.importance.RandomImportance(),
        "taylor": lambda: tp.importance.GroupTaylorImportance(),
        "hessian": lambda: tp.importance.GroupHessianImportance(),
    }[score]()
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for group in structure.groups:
        if score == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(1 << 31, (1,), generator=generator)))
                found[group.name] = importance([(None, range(group.size))]).double()
            continue
        # Normalise only after cutting to the group: the vector is longer if components have several channels.
        normalizer, importance.normalizer = importance.normalizer, None
        value = importance(_items(net, group, writers_only=score in ("l1", "l2")))[: group.size].cpu()
        importance.normalizer = normalizer
        # If all weights are zero, the division by the mean gives NaN.
        found[group.name] = importance._normalize(value.clone(), normalizer).double().nan_to_num(0.0)
    return found


def _items(net: nn.Module, group: Group, *, writers_only: bool) -> Any:
    """The group in the form that torch-pruning's scores expect: layers with the channels of all components."""
    import torch_pruning as tp
    from torch_pruning._helpers import GroupItem
    from torch_pruning.dependency import Dependency, Node

    items = tp.dependency.Group()

    def add(part: Slice, layer: nn.Module, handler: Any) -> None:
        channels = torch.from_numpy(part.channels(group.size))
        component = torch.arange(group.size)[:, None].expand_as(channels).reshape(-1)
        order = channels.reshape(-1).argsort()  # some of the scores sort the channels
        node = Node(layer, None, part.layer)
        item = GroupItem(Dependency(handler, handler, node, node), channels.reshape(-1)[order].tolist())
        item.root_idxs = component[order].tolist()
        items._group.append(item)

    for part in (*group.producers, *(() if writers_only else group.through)):
        layer = dict(net.named_modules()).get(part.layer)
        if isinstance(layer, nn.Linear):
            add(part, layer, tp.prune_linear_out_channels)
        elif isinstance(layer, nn.Conv2d):
            add(part, layer, tp.prune_conv_out_channels)
        elif isinstance(layer, _BatchNorm):
            add(part, layer, tp.prune_batchnorm_out_channels)
    for reader in () if writers_only else group.consumers:
        layer = get_operator(net, reader.layer)
        add(reader, layer, tp.prune_linear_in_channels if isinstance(layer, nn.Linear) else tp.prune_conv_in_channels)
    return items


def _gradients(net: nn.Module, data: Data, model: Model, *, squared: bool, progress: Progress) -> None:
    """Fills ``.grad`` with the mean over images of the gradient of the cross-entropy, or of its square (``squared``)."""
    net.requires_grad_(True)
    total = {name: torch.zeros_like(parameter) for name, parameter in net.named_parameters()}
    done = 0
    with torch.enable_grad():
        for images, labels in _labelled(data, model, 1 if squared else _BATCH):
            progress(done, len(data), "computing gradients (uses labels)")
            net.zero_grad(set_to_none=True)
            F.cross_entropy(net(images), labels, reduction="sum").backward()
            for name, parameter in net.named_parameters():
                if parameter.grad is not None:
                    total[name] += parameter.grad.square() if squared else parameter.grad
            done += len(images)
    for name, parameter in net.named_parameters():
        parameter.grad = total[name] / len(data)
    progress(len(data), len(data), "computing gradients (uses labels)")


def _labelled(data: Data, model: Model, size: int) -> Iterable[tuple[Tensor, Tensor]]:
    for images, labels in data.batches(model.input):
        assert labels is not None
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            yield images[part].to(model.device), labels[part].to(model.device)
