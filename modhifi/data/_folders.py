"""A folder of class folders, with or without one folder per split above them, or a folder of images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ..errors import UserError
from ..models import MOST_CLASSES
from ..text import distinct
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
# A folder with more of anything is a disk or somebody's home, not a data set.
_IMAGES, _OTHERS, _LEVELS = 10_000_000, 100_000, 16


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split of ``root``; empty unless all its subfolders are named after splits."""
    children = {child.name: child for child in _Walk(root).folders(root)}
    if not children or not set(children) <= _SPLIT_FOLDERS:
        return {}
    found = {split: next((children[n] for n in names if n in children), None) for split, names in SPLITS.items()}
    return {split: path for split, path in found.items() if path is not None}


def folder(root: Path, split: str) -> Data:
    """The images of ``root``, or of its part named ``split``; without parts every split is the whole folder.

    The classes are the folder names, sorted; images can be up to 16 levels below them. Without folders there are no labels.
    Hidden files and files without the suffix of an image are ignored. Links to images, to the folders of splits and to class
    folders are followed; links to folders further below are not.
    Raises `UserError` if the split does not exist, there are no images, images and folders of images are mixed, a folder cannot
    be read or is nested more deeply, there are more than ten million images or 100,000 other files and folders, or a link leads
    back to a folder above it.
    """
    parts = split_folders(root)
    if parts and split not in parts:
        raise UserError(f"{root} has no split {split!r}; it has {', '.join(parts)}")
    base = parts.get(split, root)
    walk = _Walk(base)
    here = walk.images(base, 0)
    found = walk.folders(base)
    if len(found) > MOST_CLASSES:
        raise UserError(f"{base} has {len(found):,} class folders; the limit is {MOST_CLASSES:,}")
    below = [(path, label) for label, child in enumerate(found) for path in walk.images(child, _LEVELS)]
    if here and below:
        raise UserError(f"{base} contains both images and folders of images; keep one or the other")
    if not here and not below:
        kinds = ", ".join(sorted(SUFFIXES))
        raise UserError(
            f"{base} contains no images ({kinds}), neither directly nor in class folders; add some, or name another"
        )
    paths = here or [path for path, _ in below]
    return Data(
        spec=str(root),
        root=None,
        split=split,
        read=lambda i: open_image(paths[i], str(paths[i])),
        order=tuple(range(len(paths))),
        labels=torch.tensor([label for _, label in below]) if below else None,
        classes=distinct([_shown(child.name) for child in found]) if below else None,
        source=_digest(base, paths),
        splits=tuple(parts),
    )


class _Walk:
    """Lists folders below ``root`` and counts what it meets, so that a mistaken path is refused after a moment."""

    def __init__(self, root: Path) -> None:
        self.root, self.others, self.found = root, 0, 0

    def folders(self, path: Path) -> list[Path]:
        """The visible folders in ``path``, sorted."""
        found = sorted(path / entry.name for entry in self._entries(path) if (path / entry.name).is_dir())
        for child in found:
            if child.is_symlink() and child.resolve() in (path.resolve(), *path.resolve().parents):
                raise UserError(f"{child} is a link that leads back to a folder above it; remove it")
        return found

    def images(self, path: Path, levels: int) -> list[Path]:
        """The visible images in ``path`` and ``levels`` levels of folders below it, sorted."""
        found = []
        waiting = [(path, 0)]
        while waiting:
            at, level = waiting.pop()
            for entry in self._entries(at):
                if entry.is_dir(follow_symlinks=False):
                    if level < levels:
                        waiting.append((at / entry.name, level + 1))
                    elif levels:
                        raise UserError(
                            f"{at / entry.name} is nested more than {levels} levels deep; move its images further up"
                        )
                elif Path(entry.name).suffix.lower() in SUFFIXES and (at / entry.name).is_file():
                    found.append(at / entry.name)
        return sorted(found)

    def _entries(self, path: Path) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    self._count(entry.name)
                    if not entry.name.startswith("."):
                        yield entry
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); remove it or fix its permissions") from error

    def _count(self, name: str) -> None:
        image = name.lower().endswith(tuple(SUFFIXES))
        self.found += image
        self.others += not image
        if self.others > _OTHERS:
            raise UserError(
                f"{self.root} is no folder of images: it has more than {_OTHERS:,} other files and folders; name the folder"
                " that contains the images"
            )
        if self.found > _IMAGES:
            raise UserError(f"{self.root} has more than {_IMAGES:,} images; name a smaller folder")


def _shown(name: str) -> str:
    """A file name as text; bytes that are not UTF-8 become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _digest(base: Path, paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
                size = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); remove it or fix its permissions") from error
        digest.update(os.fsencode(path.relative_to(base).as_posix()) + f" {size} {content}\n".encode())
    return digest.hexdigest()
