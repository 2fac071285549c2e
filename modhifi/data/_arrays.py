"""Data in a network's own shape: arrays in ``.npz``, ``.npy`` and ``.safetensors`` files, and tensors, data sets and loaders."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors
import torch
from torch import Tensor

from ..errors import UserError
from ..files import check_regular, file_sha256
from ..models import MOST_CLASSES
from ..specs import ArraySpec, InputSpec
from ._data import Data

__all__ = ["ARRAY_SUFFIXES", "arrays", "in_memory", "is_memory", "recalled", "rows_for", "without_inputs"]

ARRAY_SUFFIXES = (".npy", ".npz", ".safetensors")
# A compressed file of moderate size may unpack to any size.
_LARGEST = 64 << 30
_ROWS = 10_000_000
_DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)
_TARGETS = ("labels", "label", "targets", "target", "y")
_MEMORY = "memory:"
# What was given from memory, by its digest: later steps of the same program ask for it again.
_known: dict[str, Data] = {}
_MOST = 16


def arrays(path: Path, split: str) -> Data:
    """The arrays of a file, one sample after another along their first dimension; the same for every split.

    An array named ``labels``, ``label``, ``targets``, ``target`` or ``y`` is not an input. Whole numbers in it are classes: one
    for each sample, (N,), or one for each of its places, (N, …). Pickled objects are refused.

    Raises `UserError` for a file that is damaged, has no arrays of numbers, or arrays of different lengths.
    """
    check_regular(path, "the arrays")
    try:
        found = _read(path)
    except UserError:
        raise
    except Exception as error:  # the file is untrusted
        said = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is damaged or not a {path.suffix} file of numbers ({said}); save it again") from error
    return tensors(found, str(path), file_sha256(path), split)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if path.suffix == ".npy":
        return {"": _tensor(np.load(path, mmap_mode="c", allow_pickle=False), path.name)}
    with zipfile.ZipFile(path) as archive:
        claimed = sum(member.file_size for member in archive.infolist())
    if claimed > _LARGEST:
        raise UserError(
            f"{path} unpacks to {claimed:,} bytes; save fewer samples, or .npy files, which are read in place"
        )
    with np.load(path, allow_pickle=False) as archive:
        return {name: _tensor(archive[name], name) for name in archive.files}


def _tensor(array: Any, name: str) -> Tensor:
    if array.dtype.kind not in "fiub" or not array.dtype.isnative:
        raise UserError(f"the array {name} has the type {array.dtype}; save ordinary real numbers (allow_pickle=False)")
    if array.dtype.itemsize > 1 and array.dtype.kind == "u":
        array = array.astype(np.int64)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return torch.from_numpy(array)


def tensors(found: Mapping[str, Tensor], spec: str, source: str, split: str) -> Data:
    """Data of tensors (N, …) by name, as in `arrays`; ``source`` is the sha256 of their content."""
    named = dict(found)
    targets = [name for name in named if name.lower() in _TARGETS]
    if len(targets) > 1:
        raise UserError(f"{spec} has several arrays of labels ({', '.join(targets)}); leave one")
    labels = named.pop(targets[0]) if targets else None
    if not named:
        raise UserError(f"{spec} has no arrays to give to a network; save them beside the labels")
    lengths = {name: len(value) if value.ndim else 0 for name, value in named.items()}
    count = next(iter(lengths.values()))
    if not count or set(lengths.values()) != {count} or (labels is not None and labels.shape[:1] != (count,)):
        shapes = {name or "the array": tuple(value.shape) for name, value in found.items()}
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise UserError(f"{spec} has arrays of different or no length ({listed}); give each one row per sample")
    odd = next((f"{name} ({value.dtype})" for name, value in found.items() if value.dtype not in _DTYPES), None)
    if odd is not None:
        raise UserError(f"{spec} has {odd}, no ordinary real numbers; save them as such")
    if count > _ROWS or not all(value.numel() for value in found.values()):
        raise UserError(f"{spec} has {count:,} samples, or rows without numbers; give up to {_ROWS:,} with numbers")
    if labels is not None and (labels.is_floating_point() or labels.dtype == torch.bool):
        labels = None  # targets of a regression, which nothing here uses
    classes = None
    if labels is not None:
        labels = labels.long()
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        most = int(labels.max())
        if most >= MOST_CLASSES:
            raise UserError(f"{spec} has labels up to {most}; the limit is {MOST_CLASSES:,} classes")
        if labels.ndim == 1:
            if int(labels.min()) < 0:
                raise UserError(f"{spec} has negative labels; number the classes from 0")
            classes = tuple(map(str, range(most + 1)))
    return Data(
        spec=spec,
        root=None,
        split=split,
        read=_no_picture,
        order=tuple(range(count)),
        labels=labels,
        classes=classes,
        source=source,
        arrays=named,
    )


def _no_picture(index: int) -> NoReturn:  # noqa: ARG001 - there is none
    raise UserError("these are arrays, not images; use them with a network whose input has their shape")


def rows_for(data: Data, part: list[int], spec: ArraySpec | InputSpec) -> Tensor:
    """The samples ``part`` of the source as the network takes them. Raises `UserError` if their shapes are not its inputs'."""
    assert data.arrays is not None
    inputs = spec.inputs if isinstance(spec, ArraySpec) else ()
    wanted = {one.name: one.shape for one in inputs} or {"": spec.shape}
    found = _matched(data.arrays, list(wanted))
    values = []
    for (name, shape), value in zip(wanted.items(), found, strict=True):
        if value.shape[1:] != shape:
            have, need = ("×".join(map(str, one)) or "one number" for one in (value.shape[1:], shape))
            raise UserError(
                f"samples of {data.spec} are {have}, and the network takes {need}{f' as {name}' if name else ''};"
                " give arrays in its shape"
            )
        values.append(value[part])
    for value in values:
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(f"{data.spec} has values that are not finite; remove these samples")
    return spec.pack(values) if isinstance(spec, ArraySpec) else values[0].float()


def _matched(found: Mapping[str, Tensor], names: list[str]) -> list[Tensor]:
    """An array for each input: by name, or in order if there are equally many, or more without names."""
    if set(names) <= set(found):
        return [found[name] for name in names]
    if len(found) == len(names) or (len(found) > len(names) and _positional(found)):
        return list(found.values())[: len(names)]
    have, need = ", ".join(name or "one" for name in found), ", ".join(name or "one" for name in names)
    raise UserError(f"the data has the arrays {have}, and the network takes {need}; name them as in its forward")


def in_memory(given: Any) -> Data:
    """Data from a tensor, a tuple or dict of tensors, a torch ``Dataset``, or a ``DataLoader``; all of it is held in memory.

    Of a tuple, and of the tuples that a data set or loader gives, the first entries are the network's inputs; the last one is
    taken for labels if it has whole numbers and is no input. Raises `UserError` for anything else.
    """
    if isinstance(given, Data):
        return given
    if isinstance(given, Tensor):
        named = {"": given}
    elif isinstance(given, Mapping):
        named = dict(given)
    elif isinstance(given, (tuple, list)) and given and all(isinstance(one, Tensor) for one in given):
        named = _named(given)
    else:
        named = _gathered(given)
    if not all(isinstance(value, Tensor) for value in named.values()):
        raise UserError("data in memory must be tensors, or a Dataset or DataLoader that gives tensors")
    named = {name: value.detach().cpu() for name, value in named.items()}
    digest = hashlib.sha256()
    for name, value in named.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    source = digest.hexdigest()
    if source not in _known:
        _known[source] = tensors(named, f"{_MEMORY}{source[:16]}", source, "calibration")
        while len(_known) > _MOST:
            del _known[next(iter(_known))]
    return _known[source]


def recalled(spec: str, split: str) -> Data:
    """What `in_memory` made before in this process. Raises `UserError` if it did not."""
    for data in _known.values():
        if data.spec == spec:
            return data
    raise UserError(
        f"the samples of the {split} split were given from memory, in another program; save them as .npz and analyze"
        " that file"
    )


def is_memory(spec: str) -> bool:
    """Whether `recalled` may know the data."""
    return spec.startswith(_MEMORY)


def without_inputs(data: Data, spec: object) -> Data:
    """``data`` without labels if these are an input of the network."""
    if data.arrays is None or data.labels is None or not isinstance(spec, ArraySpec) or not _positional(data.arrays):
        return data
    return data if len(data.arrays) > len(spec.inputs) else dataclasses.replace(data, labels=None, classes=None)


def _positional(found: Mapping[str, Tensor]) -> bool:
    return len(found) > 1 and all(name.isdigit() for name in found)


def _named(values: Iterable[Any]) -> dict[str, Any]:
    """Positions as names; a last entry of whole numbers, one per sample or place, is also the labels."""
    listed = list(values)
    named = {str(number): value for number, value in enumerate(listed)}
    if len(listed) > 1 and isinstance(listed[-1], Tensor) and not listed[-1].is_floating_point():
        named["labels"] = listed[-1]
    return named


def _guarded(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches; what a person's own data set raises, or what cannot be put into one tensor, is a `UserError`."""
    try:
        yield from batches
    except Exception as error:
        said = " ".join(str(error).split())[:120]
        raise UserError(
            f"the data set raises {type(error).__name__} ({said}); it must give tensors of the same shapes"
        ) from error


def _gathered(given: Any) -> dict[str, Tensor]:
    from torch.utils.data import DataLoader, IterableDataset

    if isinstance(given, DataLoader):
        batches: Iterable[Any] = given
    elif (
        hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, (str, bytes))
    ) or isinstance(given, IterableDataset):
        batches = DataLoader(given, batch_size=64)
    else:
        raise UserError(
            f"a {type(given).__name__} is no data; give modhifi.load_data(…), a tensor, a torch Dataset or a DataLoader"
        )
    parts: dict[str, list[Tensor]] = {}
    for batch in _guarded(batches):
        if isinstance(batch, Tensor):
            batch = {"": batch}
        elif isinstance(batch, (tuple, list)):
            batch = _named(batch)
        if not isinstance(batch, Mapping) or not all(isinstance(value, Tensor) for value in batch.values()):
            raise UserError(
                "the data set gives something else than tensors, and tuples or dicts of them; convert it first"
            )
        for name, value in batch.items():
            parts.setdefault(str(name), []).append(value.detach().cpu())
    lengths = {sum(map(len, values)) for values in parts.values()}
    if not parts or len(lengths) > 1 or not math.prod(lengths):
        raise UserError("the data set is empty, or not every batch has the same entries; give some samples")
    return {name: torch.cat(values) for name, values in parts.items()}
