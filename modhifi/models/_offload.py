"""Weights that accelerate keeps on disk or in another memory until their module runs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["held", "onloaded", "place_of", "whole"]


@contextlib.contextmanager
def onloaded(module: nn.Module) -> Iterator[None]:
    """Inside the context, the module's own weights can be read, wherever accelerate keeps them."""
    if not hasattr(module, "_hf_hook"):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


def held(module: nn.Module) -> nn.Module:
    """The module itself, or a copy with all its weights in memory if accelerate would otherwise load some at every call."""
    if not any(getattr(getattr(part, "_hf_hook", None), "offload", False) for part in module.modules()):
        return module
    from accelerate.hooks import remove_hook_from_submodules

    with contextlib.ExitStack() as stack:
        for part in module.modules():
            stack.enter_context(onloaded(part))
        twin = copy.deepcopy(module)
        remove_hook_from_submodules(twin)
    return twin


def whole(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """``tensor``, the entry ``name`` of the module's state dict, with its values loaded."""
    if not tensor.is_meta:
        return tensor
    parent, _, last = name.rpartition(".")
    owner = module.get_submodule(parent)
    with onloaded(owner):
        return getattr(owner, last).detach().cpu().clone()  # type: ignore[no-any-return]


def place_of(module: nn.Module) -> torch.device:
    """The device that the module runs on: that of its weights, or the one accelerate moves them to."""
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device
