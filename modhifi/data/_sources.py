"""Data sources: which specs belong to a source, and how they are opened.

To add a source, write a module that calls `register_source` and import it in this package's ``__init__``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..registry import Registry
from ..shipped import TEXT_MODEL
from ._arrays import ARRAY_SUFFIXES, arrays, is_memory, recalled
from ._cifar10 import SPLITS as CIFAR10_SPLITS
from ._cifar10 import cifar10
from ._data import Data
from ._digits import SPLITS as DIGITS_SPLITS
from ._digits import digits
from ._folders import SPLITS as FOLDER_SPLITS
from ._folders import folder
from ._inversion import inversion
from ._parquet import parquet
from ._paths import resolved
from ._saved import is_saved, saved
from ._synthetic import dead_leaves, noise
from ._text import SHIPPED_TEXT, TEXT_SPLITS, text

__all__ = ["DEFAULT_DATA", "DataSource", "check_split", "register_source", "source_of", "sources"]

DEFAULT_DATA = "digits"


@dataclass(frozen=True)
class DataSource:
    """``open(spec, root, split)`` returns the data or raises `UserError`; ``root`` is the folder that was given, or None."""

    form: str
    """How a spec is written, for display."""
    about: str
    matches: Callable[[str], bool]
    open: Callable[[str, Path | None, str], Data]
    synthetic: bool = False
    """Needs no data files."""
    example: str | None = None
    """A spec that the dashboard suggests."""


_SOURCES: Registry[DataSource] = Registry("source")


def register_source(source: DataSource) -> DataSource:
    """Registers ``source`` with `modhifi.load_data`, the command line and the dashboard. If several sources match a spec, the
    first one registered is used. Raises ValueError if the form is taken.
    """
    return _SOURCES.register(source.form, source)


def sources() -> tuple[DataSource, ...]:
    """All registered sources, in order."""
    return tuple(_SOURCES.values())


def source_of(spec: str) -> DataSource | None:
    """The source that ``spec`` belongs to; None for a path."""
    return next((source for source in _SOURCES.values() if source.matches(spec)), None)


def check_split(spec: str, split: str, splits: tuple[str, ...]) -> None:
    """Raises `UserError` unless ``split`` is one of ``splits``."""
    if split not in splits:
        raise UserError(f"{spec} has no split {split!r}; it has {', '.join(splits)}")


def _check_no_root(spec: str, root: Path | None) -> None:
    if root is not None:
        raise UserError(f"{spec} needs no folder; omit the data root")


def _open_digits(spec: str, root: Path | None, split: str) -> Data:
    _check_no_root(spec, root)
    check_split(spec, split, DIGITS_SPLITS)
    return digits(split)


def _open_cifar10(spec: str, root: Path | None, split: str) -> Data:
    check_split(spec, split, CIFAR10_SPLITS)
    if root is None:
        raise UserError("cifar10 needs the folder that contains it (--data-root DIR)")
    if not root.is_dir():
        raise UserError(f"the data folder {root} does not exist; name the folder that contains CIFAR-10")
    return cifar10(root.resolve(), split)


def _open_text(spec: str, root: Path | None, split: str) -> Data:
    if spec == SHIPPED_TEXT:
        _check_no_root(spec, root)
        check_split(spec, split, TEXT_SPLITS)
    else:
        check_split(spec, split, tuple(FOLDER_SPLITS))
    return text(spec, root, split)


def open_path(spec: str, root: Path | None, split: str) -> Data:
    """A folder of images, of class folders or of Hugging Face's datasets, or one file: ``.parquet``, ``.npz``, ``.npy`` or
    ``.safetensors``. Raises `UserError` for anything else.
    """
    if is_memory(spec):
        return recalled(spec, split)
    path = resolved(spec, root)
    if not path.exists():
        raise UserError(
            f"unknown data {spec!r}: no such file or folder; use {', '.join(_SOURCES)},"
            " a folder of images or of class folders, or a .parquet, .npz, .npy or .safetensors file"
        )
    if not path.is_dir() or not is_saved(path):  # such a folder may have splits of other names
        check_split(spec, split, tuple(FOLDER_SPLITS))
    if path.is_dir():
        return saved(path, split) if is_saved(path) else folder(path, split)
    if path.suffix in ARRAY_SUFFIXES:
        return arrays(path, split)
    if path.suffix != ".parquet":
        raise UserError(
            f"{path} is neither a folder nor a .parquet file, nor arrays ({', '.join(ARRAY_SUFFIXES)}); put images into a folder"
            " and name the folder"
        )
    return parquet([path], split)


def _synthetic(name: str, about: str, make: Callable[[str], Data]) -> DataSource:
    def open_(spec: str, root: Path | None, split: str) -> Data:
        _check_no_root(spec, root)
        check_split(spec, split, tuple(FOLDER_SPLITS))
        return make(split)

    return DataSource(name, about, lambda spec: spec == name, open_, synthetic=True, example=name)


register_source(
    DataSource(
        DEFAULT_DATA,
        "scikit-learn's handwritten digits; ship with the project",
        lambda spec: spec == DEFAULT_DATA,
        _open_digits,
        example=DEFAULT_DATA,
    )
)
register_source(
    DataSource(
        "cifar10",
        "CIFAR-10 from a folder, in torchvision's layout or as parquet",
        lambda spec: spec == "cifar10",
        _open_cifar10,
        example="cifar10",
    )
)
register_source(
    DataSource(
        "text:FILE",
        f"UTF-8 text for language models; {SHIPPED_TEXT} ships with {TEXT_MODEL}",
        lambda spec: spec.startswith("text:"),
        _open_text,
        example=SHIPPED_TEXT,
    )
)
register_source(_synthetic("dead-leaves", "overlapping shapes with the statistics of photographs", dead_leaves))
register_source(_synthetic("noise", "independent Gaussian pixels", noise))
register_source(
    _synthetic(
        "inversion", "images generated from the network's BatchNorm statistics, using gradients of its input", inversion
    )
)
