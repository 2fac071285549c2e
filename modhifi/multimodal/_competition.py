"""How much of what a modality alone would know the joint model has lost to the others (theory, section 7)."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor

from ..errors import UserError

__all__ = ["competition_strength", "distance"]

_RIDGES = np.logspace(-6, 2, 17)


def competition_strength(fit_features: Tensor, fit_concept: Tensor, features: Tensor, concept: Tensor) -> float:
    """d_m of one modality: 0 if the fused features hold all of its mono-modal concept, 1 if nothing more than the mean.

    ``concept`` (n, K) are the outputs c_m of a network trained on the modality alone, ``features`` (n, F) what the joint
    model's last layer reads for the same n test samples. The ridge regression ĉ_m of the one on the other is fitted on other
    held-out samples, ``fit_features`` (N, F) and ``fit_concept`` (N, K); its strength is chosen by leave-one-out error on
    those. See `distance`.
    """
    if len(fit_features) != len(fit_concept) or len(features) != len(concept):
        raise UserError("features and mono-modal outputs must be of the same samples, one row each")
    seen = fit_features.double().cpu()
    # Strengths relative to the mean variance of a feature. Features are not scaled one by one: what hardly moved in the samples
    # of the fit would count for most where it moves.
    scale = len(seen) * float(seen.var(0, correction=0).mean()) or 1.0
    ridge = RidgeCV(scale * _RIDGES).fit(seen.numpy(), fit_concept.double().cpu().numpy())
    found = ridge.predict(features.double().cpu().numpy())
    return distance(torch.from_numpy(found), concept.double().cpu())


def distance(found: Tensor, concept: Tensor) -> float:
    """tr( (ĉ − c) Cov(c)⁺ (ĉ − c)ᵀ ) / (n·K) for (n, K) predictions and outputs; the mean as prediction gives 1 at full rank."""
    found, concept = found.double(), concept.double()
    error, centred = found - concept, concept - concept.mean(0)
    covariance = centred.T @ centred / len(concept)
    weighed = error @ torch.linalg.pinv(covariance, hermitian=True)
    return float((weighed * error).sum() / error.numel())
