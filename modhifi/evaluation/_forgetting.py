"""Attacks that show what a network still holds of a class: accuracy alone proves nothing.

See docs/theory.md, *Pruning and unlearning*.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Data
from ..errors import UserError
from ..models import Model
from ..progress import Progress, silent
from ..surgery import recalibrate
from ._accuracy import Prediction, classifier_of, match_labels, predict

__all__ = [
    "RELEARNING_STEPS",
    "bn_recall",
    "hiding_logit",
    "masked",
    "masked_model",
    "masked_rows",
    "membership",
    "probe_accuracy",
    "recalled",
    "relearning",
]


_CLIP = 1.0
# Relearning: the steps after which accuracy is measured, the training images per kind, and the optimiser settings.
RELEARNING_STEPS = (0, 1, 2, 5, 10, 20)
_RELEARNING_IMAGES, _RELEARNING_BATCH, _RATE, _MOMENTUM = 100, 32, 5e-3, 0.9


def hiding_logit(logits: Tensor, forget: Sequence[int]) -> float:
    """The logit that a mask assigns to the classes of ``forget``: 1 below the smallest winning logit of the other classes over
    ``logits`` (N, K). It is just low enough to hide them, because a much lower value would only take longer to relearn.
    """
    rest = [index for index in range(logits.shape[1]) if index not in forget]
    return float(logits[:, rest].max(1).values.min()) - 1


def masked_rows(classifier: nn.Module, forget: Sequence[int], hidden: float) -> tuple[Tensor, Tensor]:
    """The logit mask of a linear ``classifier``: its weight (K, d) with zero rows for ``forget``, and the shift (K,) of its
    output that sets their logits to ``hidden``.
    """
    assert isinstance(classifier, nn.Linear)
    chosen = list(forget)
    weight = classifier.weight.detach().cpu().clone()
    weight[chosen] = 0
    shift = torch.zeros(len(weight))
    shift[chosen] = hidden
    if classifier.bias is not None:
        shift[chosen] -= classifier.bias.detach().cpu()[chosen]
    return weight, shift


def masked(prediction: Prediction, forget: Sequence[int], hidden: float) -> Prediction:
    """``prediction`` with the logits of ``forget`` set to ``hidden``; it must have logits."""
    assert prediction.logits is not None
    logits = prediction.logits.clone()
    logits[:, list(forget)] = hidden
    return Prediction.of(logits, prediction.label, prediction.features)


def masked_model(model: Model, forget: Sequence[int], hidden: float) -> Model:
    """A copy of ``model`` whose linear classifier outputs ``hidden`` for the classes of ``forget``."""
    name = classifier_of(model)
    assert name is not None
    module = copy.deepcopy(model.module)
    head = module.get_submodule(name)
    assert isinstance(head, nn.Linear)
    weight, shift = masked_rows(head, forget, hidden)
    bias = torch.zeros_like(shift) if head.bias is None else head.bias.detach().cpu()
    head.weight = nn.Parameter(weight.to(head.weight), requires_grad=False)
    head.bias = nn.Parameter((bias + shift).to(head.weight), requires_grad=False)
    return dataclasses.replace(model, module=module)


def probe_accuracy(prediction: Prediction, forget: Sequence[int], folds: int = 5) -> float:
    """Accuracy of a linear probe on the images of ``forget``: can the class still be found in the features?

    The probe is a logistic regression on standardised penultimate features with classes weighted equally. In stratified
    cross-validation each image is judged by a probe that was not fitted on it. ``prediction`` must have features. Lower is
    better; chance is one over the number of classes.

    Raises `UserError` if a class has fewer than ``folds`` images.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    assert prediction.features is not None
    label = prediction.label.numpy()
    fewest = int(np.bincount(label)[np.unique(label)].min())
    if fewest < folds:
        raise UserError(
            f"the linear probe needs at least {folds} images of every class, and one has {fewest}; use more test images"
        )
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced"))
    answer = cross_val_predict(
        probe, prediction.features.numpy(), label, cv=StratifiedKFold(folds, shuffle=True, random_state=0)
    )
    asked = np.isin(label, list(forget))
    return float((answer[asked] == label[asked]).mean())


def membership(members: Prediction, others: Prediction, forget: Sequence[int]) -> float | None:
    """Membership inference: can an attacker recognise the training images of ``forget``? Area under the ROC curve of the loss
    attack (Yeom et al. 2018), which expects a lower loss on training images (``members``) than on unseen ones (``others``). 0.5
    means no signal; None if either side has no images.
    """
    from sklearn.metrics import roc_auc_score

    wanted = torch.tensor(list(forget))
    inside = members.loss[torch.isin(members.label, wanted)].numpy()
    outside = others.loss[torch.isin(others.label, wanted)].numpy()
    if not len(inside) or not len(outside):
        return None
    truth = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])
    return float(roc_auc_score(truth, -np.concatenate([inside, outside])))


def bn_recall(
    model: Model, retained: Data, test: Data, forget: Sequence[int], progress: Progress = silent
) -> tuple[float | None, float | None]:
    """BN recall: (forget, retain) accuracy on ``test`` after BatchNorm statistics are re-estimated on images of the retained
    classes only. (None, None) if the network has no BatchNorm.
    """
    found = recalled(model, retained, test, progress)
    if found is None:
        return None, None
    rest = [index for index in range(len(model.classes)) if index not in forget]
    return found.accuracy(forget), found.accuracy(rest)


def recalled(model: Model, retained: Data, test: Data, progress: Progress = silent) -> Prediction | None:
    """Predictions on ``test`` after the attack of `bn_recall`; None if the network has no BatchNorm."""
    attacked = dataclasses.replace(model, module=copy.deepcopy(model.module))
    if not recalibrate(attacked.module, (images for images, _ in retained.batches(model.input))):
        return None
    return predict(attacked, match_labels(test, model), progress=progress, what="BN recall")


@torch.inference_mode(False)
def relearning(
    model: Model,
    samples: Data,
    test: Data,
    forget: Sequence[int],
    progress: Progress = silent,
    steps: Sequence[int] = RELEARNING_STEPS,
) -> list[float]:
    """Accuracy on the images of ``forget`` in ``test`` after each of ``steps`` relearning steps: how fast does training bring
    the class back?

    Stochastic gradient descent on all weights, with up to 100 images of these classes and as many others from ``samples``:
    batches of 32, learning rate 0.005, momentum 0.9, gradients clipped at 1, BatchNorm in evaluation mode. The labels of both
    data sets must be the model's (`match_labels`).
    """
    assert samples.targets is not None
    assert test.targets is not None
    wanted = torch.tensor(list(forget))
    of_them, judged = torch.isin(samples.targets, wanted), test.where(torch.isin(test.targets, wanted))
    parts = [samples.where(which) for which in (of_them, ~of_them)]
    chosen = [part.take(_RELEARNING_IMAGES) for part in parts if len(part)]
    images = torch.cat([batch for part in chosen for batch, _ in part.batches(model.input)])
    labels = torch.cat([part.targets for part in chosen if part.targets is not None])
    net = copy.deepcopy(model.module).eval().requires_grad_(True)
    attacked = dataclasses.replace(model, module=net)
    optimizer = torch.optim.SGD(net.parameters(), lr=_RATE, momentum=_MOMENTUM)
    generator = torch.Generator().manual_seed(0)
    found: list[float] = []
    order: list[Tensor] = []
    for step in range(max(steps) + 1):
        progress(step, max(steps) + 1, "relearning")
        if step in steps:
            found.append(predict(attacked, judged).accuracy() or 0.0)
        if step == max(steps):
            break
        if not order:
            order = list(torch.randperm(len(images), generator=generator).split(_RELEARNING_BATCH))
        part = order.pop()
        with torch.enable_grad():
            answers = net(images[part].to(model.device))
            loss = nn.functional.cross_entropy(answers, labels[part].to(model.device))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), _CLIP)
            optimizer.step()
    return found
