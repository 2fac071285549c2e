"""ModHiFi-U: turns a study, classes to forget and samples into a plan. See docs/theory.md, *Pruning and unlearning*."""

from ._algebra import erasure, forgetting_ridge, retained_rows, specific_projection
from ._classes import choose_classes
from ._unlearn import Method, register_method, unlearn, unlearning_methods
from ._where import Living, where_it_lives

__all__ = [
    "Living",
    "Method",
    "choose_classes",
    "erasure",
    "forgetting_ridge",
    "register_method",
    "retained_rows",
    "specific_projection",
    "unlearn",
    "unlearning_methods",
    "where_it_lives",
]
