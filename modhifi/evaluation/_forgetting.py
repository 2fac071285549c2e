"""How forgetting is judged: by what is left inside, not by accuracy alone (theory, section 6)."""

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
# Steps of the relearning attack after which is looked; images of either kind that it learns from, and its optimiser.
RELEARNING_STEPS = (0, 1, 2, 5, 10, 20)
_RELEARNING_IMAGES, _RELEARNING_BATCH, _RATE, _MOMENTUM = 100, 32, 5e-3, 0.9


def hiding_logit(logits: Tensor, forget: Sequence[int]) -> float:
    """What a logit mask answers for ``forget``: one less than the best other answer to any of ``logits`` (N, K). So little hides
    them as can be: a mask that is far below would only be slower to lift.
    """
    rest = [index for index in range(logits.shape[1]) if index not in forget]
    return float(logits[:, rest].max(1).values.min()) - 1


def masked_rows(classifier: nn.Module, forget: Sequence[int], hidden: float) -> tuple[Tensor, Tensor]:
    """The logit mask: the weight (K, d) of a linear ``classifier`` with zero rows for ``forget``, and what is added to its output
    (K,) so that their logits are ``hidden``.
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
    """The same with the logits of ``forget`` masked; ``prediction`` needs logits."""
    assert prediction.logits is not None
    logits = prediction.logits.clone()
    logits[:, list(forget)] = hidden
    return Prediction.of(logits, prediction.label, prediction.features)


def masked_model(model: Model, forget: Sequence[int], hidden: float) -> Model:
    """A copy whose linear classifier answers ``hidden`` for the classes of ``forget``."""
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
    """Is the class still in there? Accuracy on the images of ``forget`` of a linear probe (logistic regression on
    standardised penultimate features, classes weighted equally), each image judged by a probe that did not see it
    (stratified cross-validation). ``prediction`` needs features. Chance is one over the number of classes.

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
        raise UserError(f"the linear probe needs at least {folds} images of every class; one has {fewest}")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced"))
    answer = cross_val_predict(
        probe, prediction.features.numpy(), label, cv=StratifiedKFold(folds, shuffle=True, random_state=0)
    )
    asked = np.isin(label, list(forget))
    return float((answer[asked] == label[asked]).mean())


def membership(members: Prediction, others: Prediction, forget: Sequence[int]) -> float | None:
    """Can one tell what the network was trained on? Area under the ROC curve of the loss attack (Yeom et al. 2018): a
    training image of the forgotten classes should have a lower loss than an unseen one. 0.5 is no trace; None without
    images on either side.
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
    """The BatchNorm attack: statistics re-estimated on images of the retained classes alone, then (forget, retain) accuracy
    on ``test``. (None, None) if the network has no BatchNorm.
    """
    found = recalled(model, retained, test, progress)
    if found is None:
        return None, None
    rest = [index for index in range(len(model.classes)) if index not in forget]
    return found.accuracy(forget), found.accuracy(rest)


def recalled(model: Model, retained: Data, test: Data, progress: Progress = silent) -> Prediction | None:
    """What the network answers on ``test`` after the attack of `bn_recall`; None if it has no BatchNorm."""
    from ..surgery import recalibrate

    attacked = dataclasses.replace(model, module=copy.deepcopy(model.module))
    if not recalibrate(attacked.module, (images for images, _ in retained.batches(model.input))):
        return None
    return predict(attacked, match_labels(test, model), progress=progress, what="BatchNorm recall")


@torch.inference_mode(False)
def relearning(
    model: Model,
    samples: Data,
    test: Data,
    forget: Sequence[int],
    progress: Progress = silent,
    steps: Sequence[int] = RELEARNING_STEPS,
) -> list[float]:
    """How fast does it come back? Accuracy on the images of ``forget`` in ``test`` after each of ``steps`` steps of stochastic
    gradient descent on up to 100 images of those classes and as many of the others from ``samples``: batches of 32, rate 0.005,
    momentum 0.9, gradients clipped at 1, BatchNorm as it is in use, all weights. Labels of both must be the model's.
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
