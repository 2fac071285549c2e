"""From a spec to data (contract: DATA)."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from ._cifar10 import SPLITS as CIFAR10_SPLITS
from ._cifar10 import cifar10
from ._digits import SPLITS as DIGITS_SPLITS
from ._digits import digits
from ._folders import SPLITS as FOLDER_SPLITS
from ._folders import folder
from ._inversion import inversion
from ._parquet import parquet
from ._synthetic import dead_leaves, noise
from ._text import SHIPPED_TEXT, text
from ._types import Data

__all__ = ["DEFAULT_DATA", "SYNTHETIC", "load_data"]

DEFAULT_DATA = "digits"
SYNTHETIC = {"dead-leaves": dead_leaves, "noise": noise, "inversion": inversion}
"""Sources that need no data."""


def load_data(
    spec: str = DEFAULT_DATA,
    root: str | Path | None = None,
    split: str | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> Data:
    """Opens images; each is decoded when it is asked for.

    Args:
        spec: ``digits``, ``cifar10``, a folder of class folders (with or without ``train``, ``test``, ``val`` above
            them), a folder of images, or one ``.parquet`` file with an image column. Without any data: ``noise``
            (independent pixels), ``dead-leaves`` (overlapping shapes), drawn at the size that a network takes, or
            ``inversion``, which `made_for` makes from a network's BatchNorm statistics, with gradients of its input. For language
            models ``text:FILE``, or ``text:kjv``, which comes with the project.
        root: the folder that holds CIFAR-10; for a relative path as the spec, the folder it is relative to.
        split: ``train``, ``calibration`` (the default: for use without labels), ``test``, for folders also ``val``.
            CIFAR-10 and folders calibrate on their training images; a source without parts is the same whole in
            every split.
        samples: how many images to draw without replacement, all if None or more than there are.
        seed: of the draw.

    Raises:
        UserError: for an unknown spec or split, a missing or empty folder, or files that cannot be read.
    """
    data = _open(spec, Path(root).expanduser() if root else None, split or "calibration")
    return data if samples is None else data.take(samples, seed)


def _open(spec: str, root: Path | None, split: str) -> Data:
    if spec == "digits":
        if root is not None:
            raise UserError("digits come with the project; leave the data root away")
        _check_split(spec, split, DIGITS_SPLITS)
        return digits(split)
    if spec == "cifar10":
        _check_split(spec, split, CIFAR10_SPLITS)
        if root is None:
            raise UserError("cifar10 needs the folder it lies in (--data-root DIR)")
        if not root.is_dir():
            raise UserError(f"the data folder {root} does not exist; cifar10 needs the folder it lies in")
        return cifar10(root.resolve(), split)
    if spec in SYNTHETIC:
        if root is not None:
            raise UserError(f"{spec} comes from no folder; leave the data root away")
        _check_split(spec, split, tuple(FOLDER_SPLITS))
        return SYNTHETIC[spec](split)
    if spec.startswith("text:"):
        if spec != SHIPPED_TEXT:
            _check_split(spec, split, tuple(FOLDER_SPLITS))
        return text(spec, root, split)
    path = Path(spec).expanduser()
    path = (root / path if root is not None else path).resolve()
    if not path.exists():
        raise UserError(
            f"unknown data {spec!r}: there is no such file or folder, and the names are digits, cifar10, "
            f"{', '.join(SYNTHETIC)}; text:FILE, a folder of images or of class folders or a .parquet file will do"
        )
    _check_split(spec, split, tuple(FOLDER_SPLITS))
    if path.is_dir():
        return folder(path, split)
    if path.suffix != ".parquet":
        raise UserError(f"{path} is neither a folder nor a .parquet file; put images into a folder and name the folder")
    return parquet([path], split)


def _check_split(spec: str, split: str, splits: tuple[str, ...]) -> None:
    if split not in splits:
        raise UserError(f"{spec} has no split {split!r}; there is {', '.join(splits)}")
