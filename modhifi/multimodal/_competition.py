"""Competition strength: how much of what a modality knows alone the joint model does not hold (AGM, Li et al., ICCV 2023)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

__all__ = ["competition_strength", "distance"]

_RIDGES = np.logspace(-6, 2, 17)


def competition_strength(fit_features: Tensor, fit_concept: Tensor, features: Tensor, concept: Tensor) -> float:
    """d_m of one modality: 0 if the fused features hold all of its mono-modal concept, 1 if they hold no more than its mean.
    Lower is better.

    ``concept`` (n, K) holds the outputs c_m of a network trained on the modality alone, ``features`` (n, F) the inputs of the
    joint model's last layer, for the same n test samples. The ridge regression ĉ_m from features to concept is fitted on other
    held-out samples, ``fit_features`` (N, F) and ``fit_concept`` (N, K), with its strength chosen by leave-one-out error.
    `distance` compares ĉ_m with c_m. Raises `UserError` if the rows do not match.
    """
    from sklearn.linear_model import RidgeCV  # here, since it imports pandas where that is installed

    if len(fit_features) != len(fit_concept) or len(features) != len(concept):
        raise UserError("features and mono-modal outputs must come from the same samples, one row each")
    seen = fit_features.double().cpu()
    # Strengths are relative to the mean variance of a feature. Features are not scaled one by one: a feature that is
    # nearly constant in the fit would be amplified wherever it varies.
    scale = len(seen) * float(seen.var(0, correction=0).mean()) or 1.0
    ridge = RidgeCV(scale * _RIDGES).fit(seen.numpy(), fit_concept.double().cpu().numpy())
    found = torch.from_numpy(ridge.predict(features.double().cpu().numpy()))
    return distance(found.reshape(concept.shape), concept.cpu())


def distance(found: Tensor, concept: Tensor) -> float:
    """tr( (ĉ − c) Cov(c)⁺ (ĉ − c)ᵀ ) / (n·K) for predictions ĉ and outputs c, (n, K). Predicting the mean gives 1 at full rank.

    Outputs are scaled to variance 1. Directions in which they vary by no more than the rounding of their dtype do not count
    (probabilities add up to 1, so one direction never varies).
    """
    # A covariance squares the rounding error and sums many of them.
    rounding = min(1e-3, 1e4 * torch.finfo(concept.dtype).eps ** 2)
    found, concept = found.double(), concept.double()
    scale = concept.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)
    error, centred = (found - concept) / scale, (concept - concept.mean(0)) / scale
    correlation = centred.T @ centred / len(concept)
    least = max(rounding, len(correlation) * torch.finfo(correlation.dtype).eps)
    weighed = error @ torch.linalg.pinv(correlation, rtol=least, hermitian=True)
    return float((weighed * error).sum() / error.numel())
