"""Outputs of a network on images, and its predictions on labelled ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data import Data
from ..errors import UserError
from ..models import Model, wordnet_ids
from ..progress import Progress, silent

__all__ = ["Prediction", "classifier_of", "logits_of", "match_labels", "predict"]

_IMAGENET = 1000
_WORDNET = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Prediction:
    """Per image, on the CPU: ``label`` true class (N,), ``answer`` predicted class (N,), ``loss`` cross-entropy (N,)
    float32, ``features`` the classifier's input (N, F) float32 or None, ``logits`` (N, K) float32 or None.
    """

    label: Tensor
    answer: Tensor
    loss: Tensor
    features: Tensor | None
    logits: Tensor | None = None

    @classmethod
    def of(cls, logits: Tensor, label: Tensor, features: Tensor | None = None) -> Prediction:
        """From ``logits`` (N, K) and true classes (N,)."""
        loss = nn.functional.cross_entropy(logits, label, reduction="none")
        return cls(label, logits.argmax(1), loss, features, logits)

    def accuracy(self, classes: Sequence[int] | None = None) -> float | None:
        """Fraction of correct predictions, over all images or those of ``classes``; None if there are no such images."""
        right = self.answer == self.label
        if classes is not None:
            right = right[torch.isin(self.label, torch.tensor(list(classes)))]
        return float(right.double().mean()) if len(right) else None

    def confusion(self, classes: int) -> list[list[int]]:
        """(K, K) counts: true classes in rows, predicted classes in columns."""
        flat = torch.bincount(self.label * classes + self.answer, minlength=classes * classes)
        return [[int(count) for count in row] for row in flat.reshape(classes, classes)]


def match_labels(data: Data, model: Model) -> Data:
    """``data`` with its labels as indices into ``model.classes``: by name if all names are classes of the model, else by
    WordNet id (``n01440764``) if the model has ImageNet's 1,000 classes, by position if there are equally many; the labels of
    arrays are indices. Raises `UserError` if neither applies, or if ``data``
    has no labels or no images.
    """
    if data.labels is None or data.classes is None:
        raise UserError(f"{data.spec} has no labels; accuracy needs labelled images (class folders or a label column)")
    if not len(data):
        raise UserError(f"{data.spec} has no images in its {data.split} split; choose another split")
    if data.classes == model.classes:
        return data
    if data.arrays is not None and len(data.classes) <= len(model.classes):
        return data.relabelled(data.labels, model.classes)
    if set(data.classes) <= set(model.classes):
        table = torch.tensor([model.classes.index(name) for name in data.classes])
        return data.relabelled(table[data.labels], model.classes)
    if len(model.classes) == _IMAGENET and all(map(_WORDNET.fullmatch, data.classes)):
        known = {name: index for index, name in enumerate(wordnet_ids())}
        if known.keys() >= set(data.classes):
            table = torch.tensor([known[name] for name in data.classes])
            return data.relabelled(table[data.labels], model.classes)
    if len(data.classes) == len(model.classes):
        return data.relabelled(data.labels, model.classes)
    missing = next(name for name in data.classes if name not in model.classes)
    raise UserError(
        f"{data.spec} has {len(data.classes)} classes and the network {len(model.classes)}, and {missing!r} is not one"
        " of them; name the network's classes with --classes FILE"
    )


def classifier_of(model: Model) -> str | None:
    """The last linear layer with one output per class, which reads the penultimate features; None if there is none."""
    found = None
    for name, layer in model.module.named_modules():
        if isinstance(layer, nn.Linear) and layer.out_features == len(model.classes):
            found = name
    return found


def predict(
    model: Model,
    data: Data,
    *,
    batch_size: int = 250,
    features: bool = False,
    progress: Progress = silent,
    what: str = "evaluating",
) -> Prediction:
    """Runs the network over all of ``data``, whose labels must be the model's (`match_labels`).

    Raises `UserError` if ``features`` are requested and the network has no linear classifier.
    """
    kept: list[Tensor] = []
    handle = None
    if features:
        name = classifier_of(model)
        if name is None:
            raise UserError(
                f"{model.spec} has no linear classifier and so no penultimate features; evaluate without the probe"
            )
        handle = model.module.get_submodule(name).register_forward_pre_hook(
            lambda _, args: kept.append(args[0].detach().flatten(1).float().cpu())
        )
    try:
        logits = logits_of(model, data, batch_size=batch_size, progress=progress, what=what)
    finally:
        if handle is not None:
            handle.remove()
    assert data.targets is not None
    return Prediction.of(logits, data.targets, torch.cat(kept) if features else None)


@torch.inference_mode()
def logits_of(
    model: Model, data: Data, *, batch_size: int = 250, progress: Progress = silent, what: str = "evaluating"
) -> Tensor:
    """The network's logits for all of ``data``, which need not have labels: (N, K) float32 on the CPU."""
    found = []
    done = 0
    for images, _ in data.batches(model.input, batch_size):
        progress(done, len(data), what)
        found.append(model.module(images.to(model.device)).float().cpu())
        done += len(images)
    progress(done, len(data), what)
    return torch.cat(found)
