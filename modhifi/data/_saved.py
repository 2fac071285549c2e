"""Folders that ``save_to_disk`` of Hugging Face's datasets writes: Arrow streams, one or several, perhaps for several splits."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ..errors import UserError
from ..files import check_regular, file_sha256, read_json
from ._arrays import tensors
from ._data import Data
from ._folders import SPLITS
from ._parquet import check_size, images_of

__all__ = ["is_saved", "saved"]

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_LABEL = "label"


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote the folder."""
    return (folder / _SPLITS).is_file() or (folder / _STATE).is_file()


def saved(folder: Path, split: str) -> Data:
    """The data set in ``folder``, of its part for ``split`` if it has several.

    With a column ``image`` or ``img`` it is one of images, as in a parquet file; otherwise all columns of numbers, also nested,
    are arrays in the network's own shape, and ``label`` or ``labels`` are labels. Other columns are left out.

    Raises `UserError` if the split does not exist, or a file is damaged, missing, or expands to more than 100 times its size.
    """
    base = folder
    parts: tuple[str, ...] = ()
    if (folder / _SPLITS).is_file():
        content = read_json(folder / _SPLITS, "the list of a data set's splits")
        held = content.get("splits") if isinstance(content, dict) else None
        listed = held if isinstance(held, list) else []
        parts = tuple(name for name in listed if isinstance(name, str) and _is_plain(name))
        found = next((name for name in SPLITS.get(split, (split,)) if name in parts), None)
        if found is None:
            raise UserError(f"{folder} has no split {split!r}; it has {', '.join(parts) or 'none'}")
        base = folder / found
    state = read_json(base / _STATE, "the state of a data set")
    try:
        files = [str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{base / _STATE} names no files; save the data set again") from error
    if not files or not all(map(_is_plain, files)):
        raise UserError(f"{base / _STATE} names no files of its folder; save the data set again")
    paths = [base / name for name in files]
    table = _concatenated(paths, base)
    source = hashlib.sha256("".join(map(file_sha256, paths)).encode()).hexdigest()
    data = images_of(table, str(folder), str(base), split, source)
    return _with_splits(_arrays(table, folder, source, split) if data is None else data, parts)


def _with_splits(data: Data, parts: tuple[str, ...]) -> Data:
    names = tuple(split for split, folders in SPLITS.items() if any(name in parts for name in folders))
    return dataclasses.replace(data, splits=names)


def _is_plain(name: str) -> bool:
    return Path(name).name == name and name not in ("", ".", "..")


def _concatenated(paths: list[Path], base: Path) -> Any:
    tables = []
    for path in paths:
        check_regular(path, "a part of the data set")
        try:
            with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
                batches, size, rows = [], 0, 0
                for batch in stream:
                    size, rows = size + batch.nbytes, rows + batch.num_rows
                    check_size(size, rows, path)
                    batch.validate(full=True)
                    batches.append(batch)
                tables.append(pa.Table.from_batches(batches, stream.schema))
        except UserError:
            raise
        except Exception as error:  # the file is untrusted
            raise UserError(f"{path} is truncated, damaged or no Arrow stream; save the data set again") from error
    try:
        return pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise UserError(f"{base} has files with different columns; save the data set again") from error


def _arrays(table: Any, folder: Path, source: str, split: str) -> Data:
    found: dict[str, Tensor] = {}
    left = []
    for name in table.column_names:
        value = _numbers(table.column(name))
        if value is None:
            left.append(name)
        else:
            found["labels" if name == _LABEL else name] = value
    if not set(found) - {"labels"}:
        raise UserError(
            f"{folder} has no column of images (image, img) or of numbers of one shape; it has"
            f" {', '.join(table.column_names)[:100]}; map them to such a column"
        )
    return tensors(found, str(folder), source, split)


def _numbers(column: Any) -> Tensor | None:
    """(N, …); None unless every row has numbers of the same shape."""
    kind = column.type
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        return None
    try:
        array = np.array(column.to_pylist(), dtype=kind.to_pandas_dtype())
    except (TypeError, ValueError):  # rows of different lengths, or missing ones
        return None
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    return torch.from_numpy(array)
