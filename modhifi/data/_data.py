"""Images, text or arrays in a fixed order, with labels where there are any."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..specs import ArraySpec, DataRef, InputSpec, TokenSpec
from ._transform import to_tensor

__all__ = ["Data"]


@dataclass(frozen=True)
class Data:
    """A fixed sequence of images. ``read(i)`` returns image ``i`` of the source as PIL; ``order`` lists the images in sequence.

    ``labels`` (one class index per image of the source, int64) and ``classes`` are None if the source has none. Images are
    decoded only when they are read.
    """

    spec: str
    root: str | None
    split: str
    read: Callable[[int], Image.Image]
    order: tuple[int, ...]
    labels: Tensor | None
    classes: tuple[str, ...] | None
    source: str
    """sha256 that identifies the source's content."""
    seed: int = 0
    splits: tuple[str, ...] = ()
    """The splits that the source distinguishes; empty if it has only one part."""
    draw: Callable[[int, tuple[int, int]], Image.Image] | None = None
    """``draw(i, (height, width))`` returns image ``i`` of a source that can draw any size; None for all others."""
    any_shape: bool = False
    """Whether the source can draw samples of any shape: for an `ArraySpec` they come from there."""
    text: str | None = None
    """The whole text of a text source. Its samples are windows of tokens, which `windowed` cuts for a model; until then it is
    one sample, and ``asked`` stores the number of samples requested from `take`."""
    rows: Tensor | None = None
    """(windows of the source, T) int64."""
    asked: int | None = None
    arrays: Mapping[str, Tensor] | None = None
    """Data in a network's own shape: (samples of the source, …) for each input, by name. Labels may then have places."""

    def __len__(self) -> int:
        return len(self.order)

    @property
    def targets(self) -> Tensor | None:
        """Class indices in this order, (N,) int64; None without labels."""
        return None if self.labels is None else self.labels[list(self.order)]

    @property
    def ref(self) -> DataRef:
        digest = hashlib.sha256(self.source.encode())
        digest.update(np.asarray(self.order, dtype=np.int64).tobytes())
        return DataRef(
            spec=self.spec,
            root=self.root,
            split=self.split,
            samples=len(self),
            seed=self.seed,
            fingerprint=digest.hexdigest(),
        )

    def take(self, samples: int, seed: int = 0) -> Data:
        """``samples`` images drawn without replacement with ``seed``, in the source's order; all if there are not more."""
        if samples < 1:
            raise UserError(f"samples must be at least 1, not {samples}")
        if not 0 <= seed < 2**32:
            raise UserError(f"the seed must be from 0 to 2³² − 1, not {seed}")
        if self.text is not None and self.rows is None:
            return dataclasses.replace(self, asked=samples, seed=seed)
        if samples >= len(self):
            return dataclasses.replace(self, seed=seed)
        drawn = np.random.default_rng(seed).choice(len(self), samples, replace=False)
        return dataclasses.replace(self, order=tuple(self.order[i] for i in sorted(drawn.tolist())), seed=seed)

    def part(self, start: int, stop: int) -> Data:
        """The images from position ``start`` up to, but not including, ``stop``."""
        return dataclasses.replace(self, order=self.order[start:stop])

    def where(self, keep: Tensor | Sequence[bool]) -> Data:
        """The images for which ``keep`` (N booleans, in this order) is true."""
        return dataclasses.replace(self, order=tuple(i for i, k in zip(self.order, keep, strict=True) if k))

    def relabelled(self, labels: Tensor, classes: tuple[str, ...]) -> Data:
        """The same images with other labels (one per image of the source) and class names."""
        return dataclasses.replace(self, labels=labels, classes=classes)

    def batches(
        self, spec: InputSpec | TokenSpec | ArraySpec, batch_size: int = 128
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Batches in order, on the CPU: (B, C, H, W) float32, normalised according to ``spec``, with (B,) int64 labels or None.
        For text, (B, T) int64 windows with None; for an `ArraySpec`, its rows. Arrays are not normalised, and their labels may be
        (B, …).
        """
        for start in range(0, len(self), batch_size):
            part = self.order[start : start + batch_size]
            if self.rows is not None:
                yield self.rows[list(part)], None
                continue
            if isinstance(spec, TokenSpec):
                raise UserError(f"{self.spec} is not text cut into windows; use text:FILE for language models")
            yield self._inputs(part, spec), None if self.labels is None else self.labels[list(part)]

    def _inputs(self, part: tuple[int, ...], spec: InputSpec | ArraySpec) -> Tensor:
        from ._arrays import rows_for

        if self.arrays is not None:
            return rows_for(self, list(part), spec)
        if isinstance(spec, ArraySpec) and self.any_shape:
            return torch.cat([spec.draw(i) for i in part])
        image = spec.image if isinstance(spec, ArraySpec) else spec
        if image is None:
            raise UserError(
                f"{self.spec} are images, which this network does not take; use noise, or arrays (.npz) in its own shape"
            )
        pictures = (self.read(i) if self.draw is None else self.draw(i, image.size) for i in part)
        images = torch.stack([to_tensor(picture, image) for picture in pictures])
        return spec.pack([images]) if isinstance(spec, ArraySpec) else images
