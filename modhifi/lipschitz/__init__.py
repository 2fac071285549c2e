"""Lipschitz constants from a layer's output to the network's (theory, section 5).

With ``h_l`` the map from the output of layer ``l`` to the network's, everything beside it held as it is: how much larger an
error can be when it arrives. The estimators differ in the errors that they try; all of them are lower bounds of the true
constant. `certified` is an upper bound. `ESTIMATORS` says so of each.
"""

from ._certified import Upper, certified
from ._finite import directional, moved_by, pairs, random
from ._gains import ESTIMATORS, Estimator, Gains, Growth
from ._jacobian import jacobian
from ._norms import smallest_norms
from ._spectral import convolution_norm, operator_norm

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "Gains",
    "Growth",
    "Upper",
    "certified",
    "convolution_norm",
    "directional",
    "jacobian",
    "moved_by",
    "operator_norm",
    "pairs",
    "random",
    "smallest_norms",
]
