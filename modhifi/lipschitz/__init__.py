"""Lipschitz constants from a layer's output to the network's output (ModHiFi, Thm. 3.6).

``h_l`` maps the output of layer ``l`` to the network's output, with everything beside the layer held fixed; its constant bounds
how much an error can grow on the way. The estimators differ in the errors that they try, and all of them give lower bounds of
the true constant. `certified` gives an upper bound. `estimators` states which bound each one gives.
"""

from ._certified import Upper, certified
from ._estimators import Estimator, Sample, estimators, register_estimator
from ._finite import directional, moved_by, pairs, random
from ._gains import Gains, Growth
from ._jacobian import jacobian
from ._norms import smallest_norms
from ._spectral import convolution_norm, operator_norm

__all__ = [
    "Estimator",
    "Gains",
    "Growth",
    "Sample",
    "Upper",
    "certified",
    "convolution_norm",
    "directional",
    "estimators",
    "jacobian",
    "moved_by",
    "operator_norm",
    "pairs",
    "random",
    "register_estimator",
    "smallest_norms",
]
