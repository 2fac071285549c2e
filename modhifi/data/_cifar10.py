"""CIFAR-10 from a folder: the Python pickles in the layout that torchvision keeps, or Hugging Face style parquet."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import UserError
from ._parquet import parquet
from ._types import Data

__all__ = ["CIFAR10_CLASSES", "SPLITS", "cifar10"]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPLITS = ("train", "calibration", "test")

_PICKLES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
# All that an array needs. The function comes from an array because its module moved between versions of numpy.
_RECONSTRUCT = np.empty(0).__reduce__()[0]


def _encode(text: str, codec: str) -> bytes:
    """How Python 3 writes bytes into pickles of Python 2."""
    if codec != "latin1":
        raise pickle.UnpicklingError(f"the codec {codec} is refused")
    return text.encode("latin1")


_ALLOWED = {
    ("_codecs", "encode"): _encode,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArraysOnly(pickle.Unpickler):
    """Opens pickles of plain containers and numpy arrays; refuses every other name before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is refused") from None


def cifar10(root: Path, split: str) -> Data:
    """One of `SPLITS`; calibration is the training images (which of them is for ``samples`` and ``seed`` to say).

    ``root`` holds ``cifar-10-batches-py`` (or is it), or ``train.parquet`` and ``test.parquet`` (or numbered parts).
    Raises `UserError` if neither is there or a file is damaged.
    """
    part = "test" if split == "test" else "train"
    batches = root if (root / "test_batch").is_file() else root / "cifar-10-batches-py"
    if batches.is_dir():
        return _from_pickles(batches, root, split, _PICKLES[part])
    files = sorted([*root.glob(f"{part}.parquet"), *root.glob(f"{part}-*.parquet")])
    if not files:
        raise UserError(
            f"{root} holds no CIFAR-10: neither a folder cifar-10-batches-py (torchvision's layout) nor {part}.parquet"
        )
    data = parquet(files, split, CIFAR10_CLASSES)
    return _as_cifar10(data.read, data.labels, data.source, root, split)


def _from_pickles(folder: Path, root: Path, split: str, names: tuple[str, ...]) -> Data:
    digest = hashlib.sha256()
    images, labels = [], []
    for name in names:
        pixels, targets = _read_batch(folder / name, digest)
        images.append(pixels)
        labels += targets
    pictures = np.concatenate(images).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (N, 32, 32, 3)
    return _as_cifar10(
        lambda i: Image.fromarray(np.ascontiguousarray(pictures[i])),
        torch.tensor(labels),
        digest.hexdigest(),
        root,
        split,
    )


def _read_batch(path: Path, digest: Any) -> tuple[np.ndarray, list[int]]:
    """Pixels (N, 3072) uint8, channel by channel, and N labels; the file's bytes are added to ``digest``."""
    try:
        content = path.read_bytes()
        digest.update(content)
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        pixels, labels = batch[b"data"], [int(label) for label in batch[b"labels"]]
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3072):
            raise ValueError("not one row of 3072 bytes for each label")
        if not set(labels) <= set(range(10)):
            raise ValueError("labels outside 0..9")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; unpack cifar-10-python.tar.gz again") from error
    except Exception as error:
        # The bytes are a stranger's: a damaged pickle can make the unpickler raise nearly anything.
        raise UserError(f"{path} is damaged or not a batch of CIFAR-10 ({error}); nothing in it ran") from error
    return pixels, labels


def _as_cifar10(read: Any, labels: Any, source: str, root: Path, split: str) -> Data:
    if labels is None:
        raise UserError(f"{root}: the {split} images of CIFAR-10 have no label column")
    return Data(
        spec="cifar10",
        root=str(root),
        split=split,
        read=read,
        order=tuple(range(len(labels))),
        labels=labels,
        classes=CIFAR10_CLASSES,
        source=source,
        splits=SPLITS,
    )
