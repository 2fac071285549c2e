"""Scores: what ranks the components within a group. A score is a callable from a study and its network to one number per
component.

A new score is one new file that calls `register_score`, and one line that imports it in this room's ``__init__``; the
library, the command line and the dashboard know it from then on. A study keeps the scores that it computes by itself
(`Study.scores`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..components import Group
from ..data import Data
from ..errors import UserError
from ..fidelity import aggregate_gram
from ..models import Model
from ..progress import Progress, silent
from ..registry import Registry
from ..study import Study
from ..surgery import calibration_data
from ._baselines import baseline

__all__ = ["Score", "ScoreInputs", "add_score", "cholesky", "register_score", "score_named", "scores"]


@dataclass(frozen=True)
class ScoreInputs:
    """What a score may look at. ``data``: the study's calibration samples with labels, only where the score needs labels."""

    study: Study
    model: Model
    data: Data | None
    progress: Progress


@dataclass(frozen=True)
class Score:
    """``compute`` returns (C,) for each group, higher for more important components; None for a score that every study computes
    by itself.
    """

    name: str
    title: str
    compute: Callable[[ScoreInputs], dict[str, Tensor]] | None = None
    needs_labels: bool = False
    """Uses the labels of the calibration samples, and gradients of the loss."""
    language: bool = True
    """Works for language models."""
    across_groups: bool = False
    """Made to be compared between groups: allocation by ranking suits it."""
    baseline: bool = False
    """`compare` offers it as a method to compare with."""


_SCORES: Registry[Score] = Registry("score")


def register_score(score: Score) -> Score:
    """Makes ``score`` known by its name. Raises ValueError if the name is taken."""
    return _SCORES.register(score.name, score)


def scores(*, language: bool = False) -> tuple[Score, ...]:
    """All registered scores, in order; with ``language`` those that work for language models."""
    return tuple(score for score in _SCORES.values() if score.language or not language)


def score_named(name: str) -> Score:
    """The score of this name. Raises `UserError` if there is none."""
    try:
        return _SCORES[name]
    except KeyError as error:
        raise UserError(f"unknown score {name!r}; choose one of {', '.join(_SCORES)}") from error


def add_score(study: Study, name: str, model: Model, *, progress: Progress = silent) -> None:
    """Computes a registered score and adds it to the study (`Study.add_score`), unless the study has it.

    Raises `UserError` for an unknown name, or if the score needs labels and the calibration samples have none.
    """
    if study.has_score(name):
        return
    score = score_named(name)
    assert score.compute is not None, "a study computes its own scores"
    data = calibration_data(study.data, model) if score.needs_labels else None
    study.add_score(name, score.compute(ScoreInputs(study, model, data, progress)))


def cholesky(study: Study, group: Group, ridge: float = 1e-4) -> Tensor:
    """(C,) float64: ``‖L_i‖²`` with ``L Lᵀ = Q + λ`` and Q the similarity of the components, summed over outputs and
    consumers. The published implementation ranks the neurons of language models by it (ModHiFi, App. D.2). Row ``i`` of a
    Cholesky factor has the squared norm ``(L Lᵀ)_ii``, which is ``E‖A_i‖² + λ``. ``ridge``: λ relative to the mean of Q's
    diagonal.
    """
    total = torch.zeros(group.size, dtype=torch.float64)
    for consumer in group.consumers:
        stats = study.layers[consumer.layer]
        gram = aggregate_gram(*stats.moment_and_weight(False, 0.0), stats.blocks(group.name))
        total += gram.diagonal() * stats.moments.positions
    return total + ridge * total.mean()


def _torch_pruning(name: str) -> Callable[[ScoreInputs], dict[str, Tensor]]:
    return lambda given: baseline(
        name, given.study.structure, given.model, given.data, given.study.data.seed, given.progress
    )


for _own, _title in (
    ("greedy", "Greedy"),
    ("fidelity", "Singleton fidelity"),
    ("row-sum", "Row sum"),
    ("removal-cost", "Removal cost"),
):
    register_score(Score(_own, _title))
register_score(
    Score(
        "cholesky",
        "Cholesky rows (published)",
        lambda given: {group.name: cholesky(given.study, group) for group in given.study.groups},
    )
)
for _name, _title in (("l1", "L1 norm"), ("l2", "L2 norm"), ("group-norm", "Group norm")):
    register_score(Score(_name, _title, _torch_pruning(_name), baseline=True))
register_score(Score("lamp", "LAMP", _torch_pruning("lamp"), across_groups=True, baseline=True))
register_score(Score("random", "Random", _torch_pruning("random"), baseline=True))
for _name, _title in (("taylor", "Taylor"), ("hessian", "Hessian")):
    register_score(
        Score(_name, f"{_title} (uses labels)", _torch_pruning(_name), needs_labels=True, language=False, baseline=True)
    )
