"""Figures by page: pure functions from a table to a Plotly figure. ``from app import figures`` gathers all of them."""

from ._base import ACCURACY, AGREEMENT, BLUE, GREY, ORANGE, PERPLEXITY, Array, Measure, short_names, shorten
from .bounds import Series, bound_scatter, constants, growth, tightness
from .forget import class_specific, confusion, forgetting_curve, per_class, relearning
from .importance import Strip, by_class, curves, outputs, overview, singletons
from .modalities import accuracies, coefficients, competition, modality_accuracies, training
from .model import Block, network_map
from .prune import TradeOff, allocation, sensitivity, trade_off

__all__ = [
    "ACCURACY",
    "AGREEMENT",
    "BLUE",
    "GREY",
    "ORANGE",
    "PERPLEXITY",
    "Array",
    "Block",
    "Measure",
    "Series",
    "Strip",
    "TradeOff",
    "accuracies",
    "allocation",
    "bound_scatter",
    "by_class",
    "class_specific",
    "coefficients",
    "competition",
    "confusion",
    "constants",
    "curves",
    "forgetting_curve",
    "growth",
    "modality_accuracies",
    "network_map",
    "outputs",
    "overview",
    "per_class",
    "relearning",
    "sensitivity",
    "short_names",
    "shorten",
    "singletons",
    "tightness",
    "trade_off",
    "training",
]
