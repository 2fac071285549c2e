"""Evaluation: accuracy, closeness, cost and forgetting of a modified network, measured beside the original network."""

from ._accuracy import Prediction, classifier_of, logits_of, match_labels, predict
from ._closeness import Closeness, calibration_samples
from ._cost import Timing, count_cost, measure_latency, ratio, tensor_bytes
from ._evaluate import ClassAccuracy, Evaluation, evaluate, latencies
from ._forgetting import (
    RELEARNING_STEPS,
    bn_recall,
    hiding_logit,
    masked,
    masked_model,
    masked_rows,
    membership,
    probe_accuracy,
    recalled,
    relearning,
)
from ._perplexity import Reading, decode_speed, perplexity, read, windows
from ._verdict import forgetting_table, verdict

__all__ = [
    "forgetting_table",
    "verdict",
    "RELEARNING_STEPS",
    "hiding_logit",
    "latencies",
    "masked",
    "masked_model",
    "recalled",
    "relearning",
    "ClassAccuracy",
    "Closeness",
    "Evaluation",
    "Prediction",
    "Reading",
    "Timing",
    "bn_recall",
    "calibration_samples",
    "classifier_of",
    "count_cost",
    "decode_speed",
    "evaluate",
    "logits_of",
    "masked_rows",
    "match_labels",
    "measure_latency",
    "membership",
    "perplexity",
    "predict",
    "probe_accuracy",
    "ratio",
    "read",
    "tensor_bytes",
    "windows",
]
