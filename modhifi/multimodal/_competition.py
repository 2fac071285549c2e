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
    found = torch.from_numpy(ridge.predict(features.double().cpu().numpy()))
    return distance(found.reshape(concept.shape), concept.cpu())


def distance(found: Tensor, concept: Tensor) -> float:
    """tr( (ĉ − c) Cov(c)⁺ (ĉ − c)ᵀ ) / (n·K) for (n, K) predictions and outputs; the mean as prediction gives 1 at full rank.

    Directions in which the outputs, each with variance 1, differ by no more than their type's rounding (probabilities add up to
    1) do not count.
    """
    # A covariance has the square of the rounding error, and sums of many.
    rounding = min(1e-3, 1e4 * torch.finfo(concept.dtype).eps ** 2)
    found, concept = found.double(), concept.double()
    scale = concept.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)
    error, centred = (found - concept) / scale, (concept - concept.mean(0)) / scale
    correlation = centred.T @ centred / len(concept)
    least = max(rounding, len(correlation) * torch.finfo(correlation.dtype).eps)
    weighed = error @ torch.linalg.pinv(correlation, rtol=least, hermitian=True)
    return float((weighed * error).sum() / error.numel())
