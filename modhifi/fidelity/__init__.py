"""The mathematics of Subset Fidelity on plain tensors: no modules, no files, no randomness.

There are two views of the same layer. `_gram` works on the component similarity matrices ``G_o[i, j] = E<A_oi, A_oj>`` of
ModHiFi (Kashyap et al., NeurIPS 2025, Def. 3.1, Prop. 3.8), with one scalar per (output, component). `_moments` works on the
second moment of the layer's input, ``H = E[x xᵀ]``, which determines every ``G_o`` and also what *any* new weights on a subset
can achieve. `_crossfit` judges a fit by samples that it has not seen. Everything is computed in float64; `_gram` returns the
dtype of its input.
"""

from ._crossfit import Fold, best_ridge, crossfitted_curve, crossfitted_error, scalar_curve
from ._fit import SPREAD, TAIL, Averages, Limit, Sums, fit_moments, fit_rows
from ._gram import compensation, fidelity_curve, greedy_subset, singleton_fidelity, subset_fidelity
from ._moments import (
    aggregate_gram,
    centre,
    eliminate,
    error_curve,
    full_compensation,
    gram,
    inverse,
    output_energy,
    own_part,
    removal_cost,
    ridged,
    row_sum,
    scalar_compensation,
    singleton_from_moments,
)

__all__ = [
    "SPREAD",
    "TAIL",
    "Averages",
    "Fold",
    "Limit",
    "Sums",
    "aggregate_gram",
    "best_ridge",
    "centre",
    "compensation",
    "crossfitted_curve",
    "crossfitted_error",
    "eliminate",
    "error_curve",
    "fidelity_curve",
    "fit_moments",
    "fit_rows",
    "full_compensation",
    "gram",
    "greedy_subset",
    "inverse",
    "output_energy",
    "own_part",
    "removal_cost",
    "ridged",
    "row_sum",
    "scalar_compensation",
    "scalar_curve",
    "singleton_fidelity",
    "singleton_from_moments",
    "subset_fidelity",
]
