"""Images in parquet files in the layout of Hugging Face's datasets: a column of encoded images, optionally one of labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ..errors import UserError
from ..files import check_regular, file_sha256
from ..models import MOST_CLASSES
from ..text import distinct, listed
from ._data import Data
from ._images import open_image

__all__ = ["check_parquet", "check_size", "images_of", "parquet"]

_IMAGE = ("img", "image")
_LABEL = "label"
# Encoded images hardly compress; a file may expand to this multiple of its size, but to no more than the second number.
_RATIO, _LARGEST = 100, 64 << 30
_LEAST = 64 << 20
_ROWS = 10_000_000
_ROWS_AT_ONCE = 256


def parquet(paths: Sequence[Path], split: str, classes: tuple[str, ...] | None = None, name: str | None = None) -> Data:
    """The rows of one or several files, concatenated.

    The image column is named ``img`` or ``image`` and contains encoded images, as bytes or as a struct with ``bytes``; the
    label column is named ``label`` and contains class indices of any integer type, or names. The class names are ``classes``,
    those in Hugging Face's metadata, or the labels themselves. Encoded images are kept in memory; each is decoded when it is
    read. Messages call the file ``name``, by default its path.

    Raises `UserError` if a file is damaged, has no image column, labels that are neither indices nor names, or are outside the
    classes, more than `MOST_CLASSES` classes or ten million rows, or expands to more than 100 times its size (and 64 MiB).
    """
    first = name or str(paths[0])
    tables = [_read(path, name or str(path)) for path in paths]
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise UserError(
            f"{first}: the parquet files of split {split!r} have different columns; save them alike"
        ) from error
    source = hashlib.sha256("".join(file_sha256(path) for path in paths).encode()).hexdigest()
    data = images_of(table, str(paths[0]), first, split, source, classes)
    assert data is not None
    return data


def images_of(
    table: Any, spec: str, first: str, split: str, source: str, classes: tuple[str, ...] | None = None
) -> Data | None:
    """The images and labels in the columns of a table, as in `parquet`; None without a column of images. Messages call it
    ``first``.
    """
    if table.num_rows == 0:
        raise UserError(f"{first} has no rows; use another file")
    name = _image_column(table.schema)
    if name is None:
        return None
    images = table.column(name)
    labels, names = None, None
    if _LABEL in table.column_names:
        labels, names = _labels(table.column(_LABEL), classes or _metadata_names(table.schema, first), first)

    def read(i: int) -> Any:
        value = images[i].as_py()
        encoded = value.get("bytes") if isinstance(value, dict) else value
        row = f"row {i} of {first}"
        if encoded is None:
            raise UserError(f"{row} has no image bytes; embed the images in the file")
        return open_image(encoded, row)

    return Data(
        spec=spec,
        root=None,
        split=split,
        read=read,
        order=tuple(range(table.num_rows)),
        labels=labels,
        classes=names,
        source=source,
    )


def check_parquet(path: Path, name: str) -> None:
    """Raises `UserError`, which calls the file ``name``, if `load_data` would refuse it."""
    parquet([path], "train", name=name)


def _read(path: Path, name: str) -> Any:
    """The bytes of the images and, if present, the label column."""
    check_regular(path, "a parquet file")
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            image = _image_column(schema)
            if image is None:
                present = listed(schema.names, 10) or "none"
                raise UserError(
                    f"{name} has no image column (img or image, with encoded bytes); its columns are {present}"
                )
            columns = [image, *([_LABEL] if _LABEL in schema.names else [])]
            # Of a struct only the bytes: its other fields may be large, or no valid text.
            leaves = [f"{image}.bytes" if pa.types.is_struct(schema.field(image).type) else image, *columns[1:]]
            limit = _limit(path)
            _check_claims(file.metadata, limit, name)
            return _expanded(file, leaves, limit, name).select(columns)
    except UserError:
        raise
    except Exception as error:  # the file is untrusted: Arrow, thrift and the decompressors raise almost anything
        raise UserError(f"{name} is truncated, damaged or not a parquet file; download or save it again") from error


def _image_column(schema: Any) -> str | None:
    return next((name for name in _IMAGE if name in schema.names and _holds_bytes(schema.field(name).type)), None)


def _limit(path: Path) -> int:
    return min(_LARGEST, max(_LEAST, _RATIO * path.stat().st_size))


def check_size(size: int, rows: int, path: Path) -> None:
    """Raises `UserError` if ``size`` bytes or ``rows`` are more than a file like ``path`` may expand to."""
    if size > _limit(path) or rows > _ROWS:
        raise _expands(str(path))


def _check_claims(metadata: Any, limit: int, name: str) -> None:
    """Refuses a file that says of itself that it is too large, before anything of it is read."""
    if metadata.num_rows > _ROWS:
        raise UserError(f"{name} has {metadata.num_rows:,} rows, the limit is {_ROWS:,}; split it")
    # Not of single columns: Arrow ends the process where their metadata is damaged.
    claimed = sum(max(0, metadata.row_group(i).total_byte_size) for i in range(metadata.num_row_groups))
    if claimed > limit:
        raise _expands(name)


def _expanded(file: Any, leaves: Sequence[str], limit: int, name: str) -> Any:
    """The columns ``leaves``. A dictionary lets a small file stand for any number of large values, so they are counted."""
    batches, size, rows = [], 0, 0
    for batch in file.iter_batches(_ROWS_AT_ONCE, columns=list(leaves)):
        size, rows = size + batch.nbytes, rows + batch.num_rows
        if size > limit or rows > _ROWS:
            raise _expands(name)
        batch.validate(full=True)
        batches.append(batch)
    return pa.Table.from_batches(batches, None if batches else file.schema_arrow)


def _expands(name: str) -> UserError:
    return UserError(f"{name} expands to far more than its size; save the images in it as ordinary encoded images")


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _metadata_names(schema: Any, name: str) -> tuple[str, ...] | None:
    """The names of a ClassLabel in the metadata written by Hugging Face's datasets, if present and well formed."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        names = info["info"]["features"][_LABEL]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        return None
    return distinct(_few(names, name))


def _few(names: Sequence[str], name: str) -> Sequence[str]:
    if len(names) > MOST_CLASSES:
        raise UserError(f"{name} has {len(names):,} classes, the limit is {MOST_CLASSES:,}; merge some")
    return names


def _labels(column: Any, classes: tuple[str, ...] | None, path: str) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Class indices (N,) int64 and class names; None and None if no row has a label (null, or the customary -1)."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        column = column.cast(kind)
    if pa.types.is_null(kind) or column.null_count == len(column):
        return None, None
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not text and not pa.types.is_integer(kind):
        raise UserError(f"{path} has the label type {kind}; every row needs a class index from 0 up, or a class name")
    if column.null_count:
        raise UserError(f"{path} has the label None; every row needs a class index from 0 up, or a class name")
    if text:
        found = pc.unique(column)
        _few(found, path)
        names = classes or tuple(sorted(found.to_pylist()))
        index = {name: i for i, name in enumerate(names)}
        wrong = next((value for value in found.to_pylist() if value not in index), None)
        if wrong is not None:
            raise UserError(
                f"{path} has the label {wrong!r}, which is not one of the classes; correct it ({listed(names, 10)})"
            )
        return torch.tensor([index[value] for value in column.to_pylist()]), names if classes else distinct(names)
    least, most = (pc.min_max(column)[key].as_py() for key in ("min", "max"))
    if least == most == -1:
        return None, None
    if least < 0:
        raise UserError(f"{path} has the label {least}; every row needs a class index from 0 up, or a class name")
    count = len(classes) if classes else MOST_CLASSES
    if most >= count:
        named = (
            f"only {count} classes are named; name them all"
            if classes
            else f"the limit is {count:,} classes; correct it"
        )
        raise UserError(f"{path} has the label {most}, but {named}")
    return torch.tensor(column.to_pylist()), classes or tuple(str(i) for i in range(most + 1))
