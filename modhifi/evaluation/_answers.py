"""Two networks side by side whose answer is no single class: maps of classes, sequences, numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import Data
from ..models import Model
from ..progress import Progress, silent
from ..specs import ArraySpec
from ._closeness import Closeness

__all__ = ["Places", "answers_beside"]


@dataclass
class Places:
    """Counts over the places of labelled samples: ``confusion`` (K, K) int64, true classes in rows."""

    confusion: Tensor

    @property
    def accuracy(self) -> float | None:
        """Share of the places with the right class; None without any."""
        total = int(self.confusion.sum())
        return int(self.confusion.diagonal().sum()) / total if total else None

    @property
    def mean_iou(self) -> float | None:
        """Mean over the classes that occur, as labels or as answers, of |both| / |either|; None without any."""
        both = self.confusion.diagonal().double()
        either = self.confusion.sum(0) + self.confusion.sum(1) - both
        seen = either > 0
        return float((both[seen] / either[seen]).mean()) if bool(seen.any()) else None


@torch.inference_mode()
def answers_beside(
    models: Sequence[Model], data: Data, *, batch_size: int = 32, progress: Progress = silent
) -> tuple[list[Places | None], Closeness]:
    """Runs the modified network, and the original one beside it if there are two, over all of ``data`` batch by batch; no answer
    is kept. Returns the counts of each, None where the labels are not those of its places, and how close the two are.

    Labels outside the network's classes, such as 255 for unknown pixels, are not counted.
    """
    given = models[0].input
    assert isinstance(given, ArraySpec)
    counts: list[Places | None] = [None] * len(models)
    closeness = Closeness(classes=given.form != "values")
    done = 0
    for x, labels in data.batches(given, batch_size):
        progress(done, len(data), "comparing the answers")
        found = [model.module(x.to(model.device)) for model in models]  # (B, P, K) or (B, 1, D)
        if len(found) > 1:
            closeness.take(*(answer.reshape(-1, answer.shape[-1]) for answer in reversed(found)))
        places = found[0].shape[:2]
        if given.form != "values" and labels is not None and labels.shape[1:].numel() == places[1] and labels.ndim > 1:
            true = labels.reshape(places)
            for index, answer in enumerate(found):
                counts[index] = _counted(counts[index], true, answer.argmax(-1).cpu(), answer.shape[-1])
        done += len(x)
    progress(done, len(data), "comparing the answers")
    return counts, closeness


def _counted(so_far: Places | None, true: Tensor, answer: Tensor, classes: int) -> Places:
    known = (true >= 0) & (true < classes)
    flat = torch.bincount(true[known] * classes + answer[known], minlength=classes * classes)
    confusion = flat.reshape(classes, classes)
    return Places(confusion if so_far is None else so_far.confusion + confusion)
