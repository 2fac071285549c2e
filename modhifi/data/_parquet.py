"""Images in parquet files in the layout of Hugging Face's datasets: a column of encoded images, optionally one of labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ..errors import UserError
from ..files import file_sha256
from ._data import Data
from ._images import open_image

__all__ = ["parquet"]

_IMAGE = ("img", "image")
_LABEL = "label"


def parquet(paths: Sequence[Path], split: str, classes: tuple[str, ...] | None = None) -> Data:
    """The rows of one or several files, concatenated.

    The image column is named ``img`` or ``image`` and contains encoded images, as bytes or as a struct with ``bytes``; the
    label column is named ``label`` and contains class indices or names. The class names are ``classes``, those in Hugging
    Face's metadata, or the labels themselves. Encoded images are kept in memory; each is decoded when it is read.

    Raises `UserError` if a file is damaged, has no image column, or labels outside the classes.
    """
    tables = [_read(path) for path in paths]
    first = paths[0]
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowInvalid as error:
        raise UserError(f"{first.parent}: the parquet files of split {split!r} have different columns") from error
    if table.num_rows == 0:
        raise UserError(f"{first} has no rows")
    images = table.column(0)
    labels, names = None, None
    if table.num_columns == 2:
        labels, names = _labels(table.column(1), classes or _metadata_names(table.schema), first)

    def read(i: int) -> Any:
        value = images[i].as_py()
        encoded = value.get("bytes") if isinstance(value, dict) else value
        name = f"row {i} of {first}"
        if encoded is None:
            raise UserError(f"{name} has no image bytes; embed the images in the file")
        return open_image(encoded, name)

    return Data(
        spec=str(first),
        root=None,
        split=split,
        read=read,
        order=tuple(range(table.num_rows)),
        labels=labels,
        classes=names,
        source=hashlib.sha256("".join(file_sha256(path) for path in paths).encode()).hexdigest(),
    )


def _read(path: Path) -> Any:
    """The image column and, if present, the label column."""
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            image = next(
                (name for name in _IMAGE if name in schema.names and _holds_bytes(schema.field(name).type)), None
            )
            if image is None:
                raise UserError(
                    f"{path} has no image column (img or image, with encoded bytes); its columns are "
                    f"{', '.join(schema.names) or 'none'}"
                )
            columns = [image, *([_LABEL] if _LABEL in schema.names else [])]
            return file.read(columns=columns).select(columns)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is truncated, damaged or not a parquet file; download or save it again") from error


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _metadata_names(schema: Any) -> tuple[str, ...] | None:
    """The names of a ClassLabel in the metadata written by Hugging Face's datasets, if present and well formed."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        names = info["info"]["features"][_LABEL]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) else None


def _labels(column: Any, classes: tuple[str, ...] | None, path: Path) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Class indices (N,) int64 and class names; None and None if no row has a label (null, or the customary -1)."""
    values = column.to_pylist()
    if all(value is None or value == -1 for value in values):
        return None, None
    if all(isinstance(value, str) for value in values):
        names = classes or tuple(sorted(set(values)))
        index = {name: i for i, name in enumerate(names)}
        wrong = next((value for value in values if value not in index), None)
        if wrong is not None:
            raise UserError(f"{path} has the label {wrong!r}, which is not one of the classes {', '.join(names[:10])}")
        return torch.tensor([index[value] for value in values]), names
    wrong = next((value for value in values if not isinstance(value, int) or value < 0), 0)
    if wrong != 0:
        raise UserError(f"{path} has the label {wrong!r}; every row needs a class index from 0 up, or a class name")
    names = classes or tuple(str(i) for i in range(max(values) + 1))
    if max(values) >= len(names):
        raise UserError(f"{path} has the label {max(values)}, but only {len(names)} classes are named; name them all")
    return torch.tensor(values), names
