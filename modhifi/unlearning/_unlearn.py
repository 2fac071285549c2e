"""Class-wise unlearning as published (ModHiFi, Alg. 1 and 2): singleton fidelity from forget-class samples only; the
(output, component) slices in the top-k are set to zero in BatchNorm networks and negated in LayerNorm networks.

The paper leaves k and the layers to the user. Here the strength is searched: for the last layer, the last two, three and
four, the smallest fraction of slices that brings the accuracy on the forget samples down to the target; of these, the depth
that keeps the most accuracy on the other samples. Labels only say which samples belong to the forget classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._operators import Edit, edited
from ..data import Data
from ..errors import UserError
from ..evaluation import match_labels
from ..models import Model, reload
from ..plan import Plan, Settings
from ..progress import Progress, silent
from ..statistics import collect_singletons
from ..study import Study

__all__ = ["choose_classes", "unlearn"]

_DEEPEST = 4
_STEPS = 7  # bisections of the strength on a logarithmic scale, a factor of 1.05 between neighbours at the end
_WEAKEST, _STRONGEST = 0.002, 0.8


def choose_classes(forget: Sequence[str | int], classes: Sequence[str]) -> list[int]:
    """Indices of the classes named in ``forget``, by name or, where no class is called that, by index; without repeats.

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
        raise UserError("all classes are to be forgotten; leave at least one")
    return sorted(chosen)


def unlearn(
    study: Study,
    forget: Sequence[str | int],
    data: Data,
    *,
    target: float = 0.0,
    samples: int = 1000,
    seed: int = 0,
    model: Model | None = None,
    progress: Progress = silent,
) -> Plan:
    """A plan that makes the network forget classes.

    Args:
        study: of the network; its groups say which layers can be edited.
        forget: classes by name or index.
        data: labelled images to decide on, not the ones to judge with.
        target: accuracy on the forget samples that is low enough, in [0, 1).
        samples: at most so many images of ``data`` are used, drawn by ``seed``.
        model: the network, if it is at hand; loaded again otherwise.

    Raises:
        UserError: for classes that do not exist, none or all of them, data without labels, no image of the forget classes or
            of the others, or a target that no strength reaches.
    """
    if not 0 <= target < 1:
        raise UserError(f"target is an accuracy from 0 to below 1, not {target}")
    wanted = choose_classes(forget, study.model.classes)
    net = model or reload(study.model)
    if net.fingerprint != study.model.fingerprint:
        raise UserError("the study was made for other weights than this model's; analyze it again")
    drawn = match_labels(data, net).take(samples, seed)
    assert drawn.targets is not None
    chosen = torch.isin(drawn.targets, torch.tensor(wanted))
    names = [net.classes[index] for index in wanted]
    if not bool(chosen.any()):
        raise UserError(
            f"{data.spec} has no image of {', '.join(names)} in its {data.split} split; nothing to forget it by"
        )
    if bool(chosen.all()):
        raise UserError(f"{data.spec} has only images of {', '.join(names)}; some of the other classes are needed too")
    images = torch.cat([batch for batch, _ in drawn.batches(net.input)])
    search = _Search(study, net, images, drawn.targets, chosen, progress)
    best = search.best(target)
    if best is None:
        raise UserError(
            f"no strength up to {_STRONGEST:.0%} of the slices in the last {search.deepest} layers brings the accuracy on"
            f" {', '.join(names)} down to {target:.0%}; raise the target"
        )
    layers, strength, forgot, kept = best
    plan = Plan(
        kind="unlearn",
        model=study.model,
        calibration=drawn.ref,
        settings=Settings(
            score="fidelity",
            compensate="none",
            method=search.method,
            strength=strength,
            layers=layers,
        ),
        forget=names,
        predicted={"forget_accuracy": forgot, "retain_accuracy": kept},
    )
    edits = search.edits(layers, strength)
    return plan.with_tensors({f"{name}.weight": edit.weight.float() for name, edit in edits.items()})


def _editable(study: Study, layer: str) -> bool:
    """Layers that read what a block computed. One that reads the residual stream hears every block before it; the one that
    writes the logits would only be a masked logit.
    """
    logits = layer == list(study.structure.readers)[-1] and len(study.layers[layer].weight) == len(study.model.classes)
    streams = any(group.kind == "stream" for group, _ in study.structure.readers[layer])
    return not (logits or streams)


def _slices(study: Study, layer: str) -> Tensor:
    """(C, k): the columns of every component that the layer reads; single channels where components differ in size."""
    read = study.structure.readers[layer]
    if len({consumer.block for _, consumer in read}) == 1:
        return torch.cat([torch.from_numpy(consumer.columns(group.size)) for group, consumer in read])
    pixels = read[0][1].pixels
    return torch.cat([torch.from_numpy(consumer.columns(group.size)).reshape(-1, pixels) for group, consumer in read])


class _Search:
    """The strength at which the forget samples are forgotten, for each depth."""

    def __init__(
        self, study: Study, model: Model, images: Tensor, labels: Tensor, chosen: Tensor, progress: Progress
    ) -> None:
        order = [name for name in study.structure.readers if _editable(study, name)]
        self.layers = order[::-1][:_DEEPEST]
        self.deepest = len(self.layers)
        self.model = model
        self.images, self.labels, self.chosen = images, labels, chosen
        self.progress = progress
        negate = any(isinstance(module, nn.LayerNorm) for module in model.module.modules())
        self.method = "published, negation" if negate else "published, zeroing"
        self.factor = -1.0 if negate else 0.0
        forget_images = images[chosen]
        self.weights = {name: study.layers[name].weight.double() for name in self.layers}
        # All slices that a layer reads, of whatever group.
        self.columns = {name: _slices(study, name) for name in self.layers}
        # Few samples and a ranking of single slices: every position counts.
        self.scores = collect_singletons(
            model.module,
            self.columns,
            forget_images.split(128),
            len(forget_images),
            size=lambda positions: positions,
            progress=progress,
            what="forget samples",
        )

    def edits(self, layers: Sequence[str], strength: float) -> dict[str, Edit]:
        """The fraction ``strength`` of each layer's (output, component) slices with the highest scores, edited."""
        edits = {}
        for name in layers:
            scores, weight = self.scores[name], self.weights[name]
            top = scores.flatten().topk(max(1, round(strength * scores.numel()))).indices
            factor = torch.ones(scores.numel(), dtype=weight.dtype)
            factor[top] = self.factor
            columns = self.columns[name]
            new = weight.clone()
            each = factor.reshape(scores.shape).repeat_interleave(columns.shape[1], dim=1)
            new[:, columns.reshape(-1)] *= each
            edits[name] = Edit(new, weight.new_zeros(weight.shape[0]))
        return edits

    def accuracy(self, edits: dict[str, Edit], which: Tensor) -> float:
        right = 0
        with torch.inference_mode(), edited(self.model.module, edits):
            for images, labels in zip(self.images[which].split(128), self.labels[which].split(128), strict=True):
                answer = self.model.module(images.to(self.model.device)).argmax(1).cpu()
                right += int((answer == labels).sum())
        return right / int(which.sum())

    def best(self, target: float) -> tuple[list[str], float, float, float] | None:
        """(layers, strength, forget accuracy, retain accuracy) of the best depth, None if no depth reaches the target."""
        found: list[tuple[list[str], float, float, float]] = []
        total = self.deepest * (_STEPS + 2)
        for depth in range(1, self.deepest + 1):
            layers = self.layers[:depth]
            self.progress((depth - 1) * (_STEPS + 2), total, "searching the strength")
            low, high = _WEAKEST, _STRONGEST
            reached = self.accuracy(self.edits(layers, high), self.chosen)
            if reached > target:
                continue
            for step in range(_STEPS):
                middle = (low * high) ** 0.5
                accuracy = self.accuracy(self.edits(layers, middle), self.chosen)
                if accuracy <= target:
                    high, reached = middle, accuracy
                else:
                    low = middle
                self.progress((depth - 1) * (_STEPS + 2) + step + 2, total, "searching the strength")
            kept = self.accuracy(self.edits(layers, high), ~self.chosen)
            found.append((layers, high, reached, kept))
        self.progress(total, total, "searching the strength")
        return max(found, key=lambda one: one[3], default=None)
