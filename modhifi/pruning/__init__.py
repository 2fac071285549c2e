"""ModHiFi-P: turns a study and a budget into a plan; also the published method and baselines to compare with."""

from ._allocate import Allocation, allocate, smallest_cost, usual_allocation
from ._compare import (
    STARTING_LANGUAGE_METHODS,
    STARTING_METHODS,
    Compared,
    Comparison,
    Method,
    compare,
    pruning_methods,
)
from ._latency import ALIGNED, LatencyKey, LatencyTable
from ._predict import Prediction, Ratio, predict_outcome
from ._prune import prune
from ._published import PUBLISHED, published
from ._scores import Score, ScoreInputs, add_score, cholesky, register_score, score_named, scores
from ._sensitivity import SHARES, sensitivity
from ._timing import latency_table, measure_table

__all__ = [
    "ALIGNED",
    "PUBLISHED",
    "SHARES",
    "STARTING_LANGUAGE_METHODS",
    "STARTING_METHODS",
    "Allocation",
    "Compared",
    "Comparison",
    "LatencyKey",
    "LatencyTable",
    "Method",
    "Prediction",
    "Ratio",
    "Score",
    "ScoreInputs",
    "add_score",
    "allocate",
    "cholesky",
    "compare",
    "latency_table",
    "measure_table",
    "predict_outcome",
    "prune",
    "pruning_methods",
    "published",
    "register_score",
    "score_named",
    "scores",
    "sensitivity",
    "smallest_cost",
    "usual_allocation",
]
