"""CIFAR-10 from a folder: Python pickles in torchvision's layout, or parquet as Hugging Face distributes it."""

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
from ..files import check_regular
from ..models.cifar_resnet import CIFAR10_CLASSES
from ._data import Data
from ._parquet import parquet

__all__ = ["CIFAR10_CLASSES", "SPLITS", "cifar10"]

SPLITS = ("train", "calibration", "test")

_LARGEST = 256 << 20
_PICKLES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
# What unpickling an array needs. The function is taken from an array because its module differs between numpy versions.
_RECONSTRUCT = np.empty(0).__reduce__()[0]


def _encode(text: str, codec: str) -> bytes:
    """Stands in for ``_codecs.encode``, through which Python 3 stores bytes in pickles for Python 2."""
    if codec != "latin1":
        raise pickle.UnpicklingError(f"the codec {codec} is not allowed")
    return text.encode("latin1")


_ALLOWED = {
    ("_codecs", "encode"): _encode,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArraysOnly(pickle.Unpickler):
    """Opens pickles of plain containers and numpy arrays; rejects every other name before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed") from None


def cifar10(root: Path, split: str) -> Data:
    """One of `SPLITS`. The calibration split is the training images, from which ``samples`` and ``seed`` select.

    ``root`` contains (or is) ``cifar-10-batches-py``, or contains ``train.parquet`` and ``test.parquet`` (or numbered parts).
    Raises `UserError` if neither is found or a file is damaged.
    """
    part = "test" if split == "test" else "train"
    batches = root if (root / "test_batch").is_file() else root / "cifar-10-batches-py"
    if batches.is_dir():
        return _from_pickles(batches, root, split, _PICKLES[part])
    files = sorted([*root.glob(f"{part}.parquet"), *root.glob(f"{part}-*.parquet")])
    if not files:
        raise UserError(
            f"{root} contains no CIFAR-10; name a folder that contains cifar-10-batches-py (torchvision's layout) or"
            f" {part}.parquet"
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
    """Pixels (N, 3072) uint8, channel by channel, and N labels; the file's bytes are also fed to ``digest``."""
    if path.exists():
        check_regular(path, "a batch of CIFAR-10", _LARGEST)
    try:
        content = path.read_bytes()
        digest.update(content)
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        pixels, labels = batch[b"data"], [int(label) for label in batch[b"labels"]]
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3072):
            raise ValueError("not one row of 3072 bytes per label")
        if not set(labels) <= set(range(10)):
            raise ValueError("labels outside 0..9")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; unpack cifar-10-python.tar.gz again") from error
    except Exception as error:
        # The file is untrusted: a damaged pickle can make the unpickler raise almost anything.
        raise UserError(
            f"{path} is damaged or not a batch of CIFAR-10 ({error}), and nothing in it ran; unpack the archive again"
        ) from error
    return pixels, labels


def _as_cifar10(read: Any, labels: Any, source: str, root: Path, split: str) -> Data:
    if labels is None:
        raise UserError(f"{root}: the {split} images of CIFAR-10 have no label column; add one named label")
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
