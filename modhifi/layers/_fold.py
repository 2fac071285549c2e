"""Copies of networks whose weights are plain parameters."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm

__all__ = ["copied", "fold"]

_HOOKS = {"WeightNorm": remove_weight_norm, "SpectralNorm": remove_spectral_norm}


def copied(module: nn.Module) -> nn.Module:
    """A deep copy of ``module``, folded."""
    for part in module.modules():
        # What a hook computed in an earlier pass is no leaf of autograd and cannot be copied; the next pass computes it again.
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                vars(part)[name] = value.detach()
    net = copy.deepcopy(module)
    fold(net)
    return net


@torch.inference_mode(False)
@torch.enable_grad()
def fold(module: nn.Module) -> None:
    """Replaces weights that are computed from others (weight and spectral normalisation, and any `torch.nn.utils.parametrize`)
    by their values, in place.
    """
    for part in module.modules():
        if parametrize.is_parametrized(part):
            # torch's own removal would take the weight from copies too, which have the same class.
            values = {name: getattr(part, name) for name in part.parametrizations}  # type: ignore[union-attr]
            part.__class__ = parametrize.type_before_parametrizations(part)
            del part.parametrizations
            for name, value in values.items():
                setattr(part, name, nn.Parameter(value.detach(), requires_grad=False))
        for hook in list(part._forward_pre_hooks.values()):
            remove = _HOOKS.get(type(hook).__name__)
            if remove is not None:
                name = hook.name  # type: ignore[attr-defined]
                remove(part, name)
                value = getattr(part, name).detach()
                if name in vars(part):
                    delattr(part, name)
                setattr(part, name, nn.Parameter(value, requires_grad=False))
