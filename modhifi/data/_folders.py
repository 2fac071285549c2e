"""A folder of class folders, with or without one folder per split above them, or a folder of images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import UserError
from ._data import Data
from ._images import SUFFIXES, open_image

__all__ = ["folder", "split_folders"]

# For each split, the folders that it is looked up in; the first that exists is used.
SPLITS = {
    "train": ("train",),
    "calibration": ("calibration", "train"),
    "val": ("val", "validation"),
    "test": ("test", "val", "validation"),
}
_SPLIT_FOLDERS = frozenset(name for names in SPLITS.values() for name in names)


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split of ``root``; empty unless all its subfolders are named after splits."""
    children = {child.name: child for child in _folders(root)}
    if not children or not set(children) <= _SPLIT_FOLDERS:
        return {}
    found = {split: next((children[n] for n in names if n in children), None) for split, names in SPLITS.items()}
    return {split: path for split, path in found.items() if path is not None}


def folder(root: Path, split: str) -> Data:
    """The images of ``root``, or of its part named ``split``; without parts every split is the whole folder.

    The classes are the folder names, sorted; images can be at any depth below them. Without folders there are no labels.
    Hidden files and files without the suffix of an image are ignored.
    Raises `UserError` if the split does not exist, there are no images, or images and folders of images are mixed.
    """
    parts = split_folders(root)
    if parts and split not in parts:
        raise UserError(f"{root} has no split {split!r}; it has {', '.join(parts)}")
    base = parts.get(split, root)
    here = _images(base, deep=False)
    classes = [child.name for child in _folders(base)]
    below = [(path, label) for label, name in enumerate(classes) for path in _images(base / name, deep=True)]
    if here and below:
        raise UserError(f"{base} contains both images and folders of images; keep one or the other")
    if not here and not below:
        kinds = ", ".join(sorted(SUFFIXES))
        raise UserError(f"{base} contains no images ({kinds}), neither directly nor in class folders")
    paths = here or [path for path, _ in below]
    return Data(
        spec=str(root),
        root=None,
        split=split,
        read=lambda i: open_image(paths[i], str(paths[i])),
        order=tuple(range(len(paths))),
        labels=torch.tensor([label for _, label in below]) if below else None,
        classes=tuple(classes) if below else None,
        source=_digest(base, paths),
        splits=tuple(parts),
    )


def _folders(root: Path) -> list[Path]:
    return sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))


def _images(root: Path, deep: bool) -> list[Path]:
    found = root.rglob("*") if deep else root.iterdir()
    return sorted(
        path for path in found if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


def _digest(base: Path, paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); remove it or fix its permissions") from error
        digest.update(f"{path.relative_to(base).as_posix()} {path.stat().st_size} {content}\n".encode())
    return digest.hexdigest()
