"""Reading untrusted checkpoints: tensors only, never code, and a one-line error if a file does not fit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import UserError

__all__ = ["fill", "read_checkpoint"]

_SUFFIXES = (".pt", ".pth", ".th")
_WRAPPERS = ("state_dict", "model")
# DataParallel, DistributedDataParallel and torch.compile prepend these to every key.
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 3


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors`` or ``.pt/.pth/.th`` file, on the CPU, without wrappers and prefixes.

    Pickles are opened with ``weights_only=True``, so that nothing in the file can run. Raises `UserError` if the file is
    missing, damaged, of another type, or contains anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"the checkpoint {path} {'is a folder; name a file' if path.is_dir() else 'does not exist'}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state = _unwrap(content, path)
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def fill(module: nn.Module, state: Mapping[str, Tensor], what: str, path: str | Path) -> None:
    """Copies all of ``state`` into ``module``. ``what`` names the network in error messages.

    Raises `UserError` that lists the first missing keys, unexpected keys and mismatched shapes, or the first tensors with
    values that are not finite; the module is then unchanged.
    """
    own = module.state_dict()
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
    broken = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(
            f"{path} contains values that are not finite: {_list('tensors', broken)}; use another checkpoint"
        )
    module.load_state_dict(dict(state), strict=False)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is truncated, damaged or not a safetensors file ({error}); download or save it again"
        ) from error


def _read_pickle(path: Path) -> Any:
    if path.suffix not in _SUFFIXES:
        raise UserError(
            f"{path} does not have the suffix of a checkpoint; it must end in .safetensors, .pt, .pth or .th"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # The file is untrusted: a damaged pickle can make the unpickler raise almost anything.
        if isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error):
            raise UserError(
                f"{path} contains Python objects or code, not only tensors, and was not loaded (nothing in it ran); "
                "save model.state_dict() instead"
            ) from error
        raise UserError(
            f"{path} is truncated, damaged or not a PyTorch checkpoint; download or save it again"
        ) from error


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        wrapper = next((name for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} contains no state dict (a mapping from names to tensors); save model.state_dict()")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path} contains no state dict: {name!r} is a {type(value).__name__}, not a tensor")
    return dict(content)


def _shape(tensor: Tensor) -> str:
    return "×".join(str(n) for n in tensor.shape) or "scalar"


def _list(what: str, items: list[str]) -> str:
    """``2 missing (a, b)`` with at most three names; empty if there are none."""
    if not items:
        return ""
    more = ", …" if len(items) > _SHOWN else ""
    return f"{len(items)} {what} ({', '.join(items[:_SHOWN])}{more})"
