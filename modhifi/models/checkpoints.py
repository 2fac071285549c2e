"""Reading untrusted checkpoints: tensors only, never code, and a one-line error if a file does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..files import check_regular
from ..text import number
from ._opening import read_file
from ._wrappers import aligned, without_prefixes, without_wrappers

__all__ = ["MOST_CLASSES", "fill", "located", "read_checkpoint", "rows_of"]

MOST_CLASSES = 100_000
"""The limit of the classes of a network and of data: lists of their names are made from numbers in files."""
_SHOWN = 3


def located(path: str | Path) -> tuple[Path, str | None]:
    """The file that ``FILE`` or ``FILE#NAME`` names, and which of its state dicts."""
    whole = Path(path).expanduser()
    name, sign, key = whole.name.rpartition("#")
    if sign and name and not whole.exists():
        return whole.with_name(name), key
    return whole, None


def read_checkpoint(path: str | Path, *, plain: bool = False) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors`` or ``.pt/.pth/.th/.ckpt/.bin/.pth.tar`` file, on the CPU, without wrappers and
    prefixes. ``FILE#NAME`` chooses one of several, such as ``last.pt#ema``. The index of a sharded checkpoint
    (``….safetensors.index.json``) stands for all its parts. ``plain``: the file is a state dict and is taken as it is.

    Pickles are opened with ``weights_only=True``, so that nothing in the file can run. Raises `UserError` if the file is
    missing, damaged, of another type, or contains anything but dense tensors of real numbers whose values it holds.
    """
    path, key = located(path)
    check_regular(path, "the checkpoint")
    content = read_file(path)
    state = _checked(content if plain else without_wrappers(content, path, key), path)
    for name, value in state.items():
        fault = _fault(value)
        if fault is not None:
            raise UserError(f"{path} cannot be used: {name} {fault}; save model.state_dict() of a plain network")
    return state if plain else without_prefixes(state)


def _fault(value: Tensor) -> str | None:
    """Why this tensor is no dense array of real numbers, all of them in the file; None if it is."""
    if type(value) not in (Tensor, nn.Parameter) or value.is_nested:
        return f"is a {type(value).__name__} of a special kind, not a plain tensor"
    if value.is_meta:
        return "has a shape but no values"
    if value.layout != torch.strided:
        return "is sparse"
    if value.is_quantized:
        return "is quantised"
    if value.is_complex():
        return "has complex values"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"claims {number(value.numel())} values and holds fewer"
    return None


def rows_of(state: Mapping[str, Tensor], name: str) -> int | None:
    """The number of classes that the classifier's weight ``name`` in ``state`` has; None if there is no such tensor.

    Raises `UserError` if it is no matrix, or has more than `MOST_CLASSES` rows: a network is built with that many.
    """
    if name not in state:
        return None
    head = state[name]
    if head.ndim < 2 or not head.numel() or len(head) > MOST_CLASSES:
        raise UserError(
            f"the checkpoint has {name} of the shape {_shape(head)}, which is no classifier of 1 to {MOST_CLASSES:,}"
            " classes; use another checkpoint"
        )
    return len(head)


def fill(module: nn.Module, state: Mapping[str, Tensor], what: str, path: str | Path) -> None:
    """Copies all of ``state`` into ``module``, under the names that fit (`aligned`). ``what`` names the network in
    error messages.

    Raises `UserError` that lists the first missing keys, unexpected keys and mismatched shapes, or the first tensors with
    values that are not finite or with negative variances; the module is then unchanged.
    """
    own = module.state_dict()
    state = aligned(state, own, path)
    # A counter that inference never reads; checkpoints from before PyTorch 0.4.1 lack it.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name}: {_shape(state[name])} instead of {_shape(own[name])}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    faults = [
        _list("missing", missing),
        _list("unexpected", unexpected),
        _list("with another shape", shapes),
    ]
    if any(faults):
        raise UserError(f"{path} is not a checkpoint of {what}: {'; '.join(fault for fault in faults if fault)}")
    kinds = [name for name, value in state.items() if own[name].is_floating_point() and not value.is_floating_point()]
    if kinds:
        raise UserError(
            f"{path} has whole numbers for weights of {what}: {_list('tensors', kinds)}; use a checkpoint that is not quantised"
        )
    # As the network will hold them: a large float64 is infinite in single precision.
    broken = [name for name, value in state.items() if not bool(torch.isfinite(value.to(own[name].dtype)).all())]
    if broken:
        raise UserError(
            f"{path} contains values that are not finite: {_list('tensors', broken)}; use another checkpoint"
        )
    negative = [
        name for name in own if name.endswith("running_var") and name in state and bool((state[name] < 0).any())
    ]
    if negative:
        raise UserError(f"{path} contains negative variances: {_list('tensors', negative)}; use another checkpoint")
    module.load_state_dict(dict(state), strict=False)


def _checked(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} contains no state dict (a mapping from names to tensors); save model.state_dict()")
    for name, value in content.items():
        if not isinstance(name, str):
            raise UserError(
                f"{path} contains no state dict: a name is a {type(name).__name__}; save model.state_dict()"
            )
        if not isinstance(value, Tensor):
            raise UserError(
                f"{path} contains no state dict: {name!r} is a {type(value).__name__}, not a tensor; save model.state_dict()"
            )
    return dict(content)


def _shape(tensor: Tensor) -> str:
    return "×".join(str(n) for n in tensor.shape) or "scalar"


def _list(what: str, items: list[str]) -> str:
    """``2 missing (a, b)`` with at most three names; empty if there are none."""
    if not items:
        return ""
    more = ", …" if len(items) > _SHOWN else ""
    return f"{len(items)} {what} ({', '.join(items[:_SHOWN])}{more})"
