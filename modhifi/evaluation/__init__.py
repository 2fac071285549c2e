"""Evaluation: what a changed network costs and gives, measured, before and after."""

from ._accuracy import Prediction, match_labels, predict
from ._cost import count_cost, measure_latency, tensor_bytes
from ._evaluate import ClassAccuracy, Evaluation, evaluate
from ._forgetting import bn_recall, membership, probe_accuracy

__all__ = [
    "ClassAccuracy",
    "Evaluation",
    "Prediction",
    "bn_recall",
    "count_cost",
    "evaluate",
    "match_labels",
    "measure_latency",
    "membership",
    "predict",
    "probe_accuracy",
    "tensor_bytes",
]
