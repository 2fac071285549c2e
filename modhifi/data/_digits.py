"""scikit-learn's handwritten digits: 1,797 real images of 8×8 pixels in 17 grey levels, included in scikit-learn.

The split is fixed: 500 test images, 512 for calibration (used without labels), the other 785 for training. Within each
class the images are ranked by a hash of their index, so that no library's random stream can change the split; the classes
then take turns, so that every part is stratified to within one image.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import torch
from PIL import Image

from ._data import Data

__all__ = ["CALIBRATION_SIZE", "SPLITS", "TEST_SIZE", "digits"]

SPLITS = ("train", "calibration", "test")
TEST_SIZE = 500
CALIBRATION_SIZE = 512


@functools.cache
def _source() -> tuple[np.ndarray, np.ndarray, str]:
    """Images (1797, 8, 8) uint8 with 0..16 scaled to 0..255, labels (1797,) int64, sha256 of both."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    return images, labels, hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()


def _splits(labels: np.ndarray) -> dict[str, tuple[int, ...]]:
    """Ascending indices of each split; every index is in exactly one split."""
    shuffled = sorted(range(len(labels)), key=lambda i: hashlib.sha256(f"digits {i}".encode()).digest())
    seen: dict[int, int] = {}
    turns = []
    for i in shuffled:
        label = int(labels[i])
        turns.append((seen.get(label, 0), label, i))
        seen[label] = seen.get(label, 0) + 1
    order = [i for _, _, i in sorted(turns)]
    end = TEST_SIZE + CALIBRATION_SIZE
    return {
        "train": tuple(sorted(order[end:])),
        "calibration": tuple(sorted(order[TEST_SIZE:end])),
        "test": tuple(sorted(order[:TEST_SIZE])),
    }


def digits(split: str) -> Data:
    """One of `SPLITS`. Raises KeyError for any other name."""
    images, labels, source = _source()
    splits = _splits(labels)
    return Data(
        spec="digits",
        root=None,
        split=split,
        read=lambda i: Image.fromarray(images[i]),
        order=splits[split],
        labels=torch.from_numpy(labels),
        classes=tuple(str(i) for i in range(10)),
        source=source,
        splits=SPLITS,
    )
