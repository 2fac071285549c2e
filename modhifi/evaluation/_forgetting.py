"""How forgetting is judged: by what is left inside, not by accuracy alone (theory, section 6)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from ..data import Data
from ..errors import UserError
from ..models import Model
from ..progress import Progress, silent
from ._accuracy import Prediction, match_labels, predict

__all__ = ["bn_recall", "membership", "probe_accuracy"]


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
    from ..surgery import recalibrate

    attacked = dataclasses.replace(model, module=copy.deepcopy(model.module))
    if not recalibrate(attacked.module, (images for images, _ in retained.batches(model.input))):
        return None, None
    found = predict(attacked, match_labels(test, model), progress=progress, what="BatchNorm recall")
    rest = [index for index in range(len(model.classes)) if index not in forget]
    return found.accuracy(forget), found.accuracy(rest)
