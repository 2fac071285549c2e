"""The classes to forget and the samples that belong to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..data import Data
from ..errors import UserError
from ..evaluation import match_labels
from ..layers import Edit, edited
from ..models import Model
from ..plan import CurvePoint
from ..progress import Progress
from ..specs import Compensation, DataRef
from ..study import Study

__all__ = ["Found", "Task", "choose_classes", "curve_point", "make_task"]


def choose_classes(forget: Sequence[str | int], classes: Sequence[str]) -> list[int]:
    """Sorted indices of the classes in ``forget``, given by name or, if no class has that name, by index; without duplicates.

    Raises `UserError` for a class that does not exist, none at all, or all of them.
    """
    chosen: list[int] = []
    for entry in forget:
        name = str(entry).strip()
        if name in classes:
            index = list(classes).index(name)
        elif name.isdecimal() and int(name) < len(classes):
            index = int(name)
        else:
            shown = ", ".join(classes[:12]) + (", …" if len(classes) > 12 else "")
            raise UserError(f"no class {name!r}; the network's classes are {shown} (or 0 to {len(classes) - 1})")
        if index not in chosen:
            chosen.append(index)
    if not chosen:
        raise UserError("name at least one class to forget")
    if len(chosen) == len(classes):
        raise UserError("all classes would be forgotten; keep at least one")
    return sorted(chosen)


@dataclass(frozen=True)
class Task:
    """Input of an unlearning method: ``images`` (N, 3, H, W) float32 on the CPU, ``labels`` (N,) int64, and ``chosen`` (N,)
    bool, which marks the forget set.
    """

    study: Study
    model: Model
    images: Tensor
    labels: Tensor
    chosen: Tensor
    forget: list[int]
    target: float
    seed: int
    progress: Progress
    data: DataRef

    @property
    def names(self) -> str:
        return ", ".join(self.model.classes[index] for index in self.forget)

    @property
    def retain(self) -> list[int]:
        return [index for index in range(len(self.model.classes)) if index not in self.forget]

    def unreached(self, how: str) -> UserError:
        return UserError(
            f"{how} brings the accuracy on {self.names} down to {self.target:.0%}; raise the target or choose another"
            " method"
        )

    def accuracy(self, edits: Mapping[str, Edit], which: Tensor) -> float:
        """Accuracy of the network with these edits on the samples marked in ``which`` (N,) bool."""
        right = 0
        with torch.inference_mode(), edited(self.model.module, edits):
            for images, labels in zip(self.images[which].split(128), self.labels[which].split(128), strict=True):
                right += int((self.model.module(images.to(self.model.device)).argmax(1).cpu() == labels).sum())
        return right / int(which.sum())

    def measured(self, strength: float, edits: Mapping[str, Edit]) -> CurvePoint:
        return CurvePoint(
            strength=strength,
            forget_accuracy=self.accuracy(edits, self.chosen),
            retain_accuracy=self.accuracy(edits, ~self.chosen),
        )


def curve_point(strength: float, answers: Tensor, labels: Tensor, chosen: Tensor) -> CurvePoint:
    """Accuracies from predicted classes ``answers`` and ``labels`` (N,) int64; ``chosen`` (N,) bool marks the forget set."""
    right = (answers == labels).double()
    return CurvePoint(
        strength=strength,
        forget_accuracy=float(right[chosen].mean()),
        retain_accuracy=float(right[~chosen].mean()),
    )


@dataclass(frozen=True)
class Found:
    """The result of a method: ``tensors`` for the plan, the edited ``layers``, the ``curve`` of all strengths tried, and the
    ``point`` on it that was chosen.
    """

    tensors: dict[str, Tensor]
    layers: list[str]
    point: CurvePoint
    curve: list[CurvePoint]
    method: str
    compensate: Compensation = "none"
    anchored: bool = False
    ridges: dict[str, float] = field(default_factory=dict)


def make_task(
    study: Study,
    model: Model,
    data: Data,
    forget: Sequence[str | int],
    samples: int,
    seed: int,
    target: float,
    predicted: bool,
    progress: Progress,
) -> Task:
    """Draws the samples and marks the forget set. Raises `UserError` as `unlearn` does."""
    wanted = choose_classes(forget, model.classes)
    drawn = (data if predicted else match_labels(data, model)).take(samples, seed)
    images = torch.cat([batch for batch, _ in drawn.batches(model.input)])
    if predicted:
        with torch.inference_mode():
            labels = torch.cat(
                [model.module(batch.to(model.device)).argmax(1).cpu() for batch in images.split(128)]
            ).clone()
    else:
        assert drawn.targets is not None
        labels = drawn.targets
    chosen = torch.isin(labels, torch.tensor(wanted))
    names = ", ".join(model.classes[index] for index in wanted)
    taken = "predicted as" if predicted else "of"
    if not bool(chosen.any()):
        raise UserError(
            f"{data.spec} has no image {taken} {names} in its {data.split} split; choose data with images of the class"
        )
    if bool(chosen.all()):
        raise UserError(f"{data.spec} has only images {taken} {names}; images of other classes are needed too")
    return Task(study, model, images, labels, chosen, wanted, target, seed, progress, drawn.ref)
