"""Opening the file of an untrusted checkpoint: whatever it holds, nothing in it runs."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import UserError
from ..files import check_regular, read_json

__all__ = ["read_file"]

_SUFFIXES = (".pt", ".pth", ".th", ".ckpt", ".bin", ".pth.tar", ".pt.tar")
_INDEX = ".index.json"
# What training scripts save beside the weights. All of them only hold values.
_SCALAR: Any = np.float64(0).__reduce__()[0]
_BESIDE: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *((_SCALAR, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")),
    *{type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")},
]
_OTHERS = (
    ((b"<!doctype html", b"<html"), "is a web page, not a checkpoint", "download the file that the page offers"),
    ((b"version https://git-lfs",), "is a pointer of Git LFS, not the checkpoint", "fetch it with git lfs pull"),
)


def read_file(path: Path) -> Any:
    """What a checkpoint holds, usually nested mappings down to tensors. Raises `UserError` if it cannot be opened safely."""
    if path.name.endswith(_INDEX):
        return _read_sharded(path)
    if path.suffix != ".safetensors" and not path.name.endswith(_SUFFIXES):
        raise UserError(
            f"{path} does not have the suffix of a checkpoint; it must end in .safetensors, {', '.join(_SUFFIXES[:5])}"
            " or .pth.tar"
        )
    with path.open("rb") as file:
        begin = file.read(64).lstrip().lower()
    for starts, what, remedy in _OTHERS:
        if begin.startswith(starts):
            raise UserError(f"{path} {what}; {remedy}")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_sharded(index: Path) -> dict[str, Tensor]:
    """The tensors of all files that ``index`` names, which lie beside it."""
    content = read_json(index, "the index of a sharded checkpoint")
    table = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()) or not table:
        raise UserError(f"{index} has no weight_map from names to files; download it again")
    found: dict[str, Tensor] = {}
    for name in sorted(set(table.values())):
        path = index.parent / name
        if Path(name).name != name:
            raise UserError(f"{index} names a file in another folder ({name:.60}); download it again")
        check_regular(path, "a part of the checkpoint")
        part = read_file(path)
        if not isinstance(part, dict):
            raise UserError(f"{path} is no part of a sharded checkpoint; download it again")
        found |= {key: value for key, value in part.items() if table.get(key) == name}
    missing = [name for name in table if name not in found]
    if missing:
        raise UserError(f"{index} names {missing[0]:.80}, which none of its files holds; download them again")
    return found


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # the file is untrusted: a dtype that torch lacks is a KeyError
        raise UserError(
            f"{path} is truncated, damaged or not a safetensors file ({error}); download or save it again"
        ) from error


def _read_pickle(path: Path) -> Any:
    _check_unpacked(path)
    try:
        with torch.serialization.safe_globals(_BESIDE):
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


def _check_unpacked(path: Path) -> None:
    """PyTorch writes archives without compression, and would unpack one of any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
            script = any(member.filename.endswith("/constants.pkl") for member in archive.infolist())
    except Exception:  # no archive, or a damaged one: an older format, or torch tells what is wrong
        return
    if script:
        raise UserError(
            f"{path} is TorchScript, a network with its code; save model.state_dict() of the Python network"
        )
    held = path.stat().st_size
    if claimed > held:
        raise UserError(f"{path} has {held:,} bytes and claims to hold {claimed:,}; save it again with torch.save")
