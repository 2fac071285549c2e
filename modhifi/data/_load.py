"""From a spec to data."""

from __future__ import annotations

from pathlib import Path

from ._data import Data
from ._sources import DEFAULT_DATA, open_path, source_of

__all__ = ["load_data"]


def load_data(
    spec: str = DEFAULT_DATA,
    root: str | Path | None = None,
    split: str | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> Data:
    """Opens images or text; each image is decoded when it is read.

    Args:
        spec: one of the forms in `modhifi.data.sources`: ``digits``, ``cifar10``, ``text:FILE`` for language models, or,
            without any data, ``dead-leaves``, ``noise`` or ``inversion``; or a folder of class folders (with or without
            ``train``, ``test``, ``val`` above them), a folder of images, a ``.parquet`` file with an image column, or arrays in
            the network's own shape in an ``.npz``, ``.npy`` or ``.safetensors`` file (see `modhifi.data.arrays`).
        root: the folder that contains CIFAR-10; if the spec is a relative path, the folder it is relative to.
        split: ``train``, ``calibration`` (the default, used without labels), ``test``; for folders also ``val``. CIFAR-10 and
            folders calibrate on their training images; a source without splits is the same for every split.
        samples: number of images to draw without replacement; all if None or if there are fewer.
        seed: of the draw.

    Raises:
        UserError: for an unknown spec or split, a missing or empty folder, or files that cannot be read.
    """
    where = Path(root).expanduser() if root else None
    source = source_of(spec)
    data = (open_path if source is None else source.open)(spec, where, split or "calibration")
    return data if samples is None else data.take(samples, seed)
