"""What the study predicts of a plan before anything is run, narrowed by what was measured of other plans."""

from __future__ import annotations

import math

from modhifi import Study
from modhifi.pruning import Allocation, Prediction, predict_outcome

from . import components as ui
from .selection import Choice
from .session import Session

__all__ = ["predictions"]


def _outcome(session: Session, study: Study, choice: Choice, plan: Allocation) -> Prediction | None:
    """The prediction for ``plan``, with the measured plans of the same study and compensation in view."""
    compensate = choice.spec.compensate
    measured = [
        (point.predicted["closed_form"], point.evaluation["relative_error"])
        for point in session.points()
        if point.choice is not None
        and point.choice.spec.compensate == compensate
        and "closed_form" in point.predicted
        and point.evaluation.get("relative_error") is not None
    ]
    return predict_outcome(study, plan.amplitudes, compensate, measured)


def predictions(session: Session, study: Study, choice: Choice, plan: Allocation) -> list[ui.Number]:
    """Agreement, relative error and bound; fidelity where the study has no constants, on which the others depend."""
    found = _outcome(session, study, choice, plan)
    if found is None:
        return [
            ui.Number("Predicted fidelity", f"{plan.mean_fidelity:.4f}", ui.FORMULAS["fidelity"], note="all groups")
        ]
    row = []
    if found.agreement is not None and found.agreement_low is not None and found.agreement_high is not None:
        row.append(_expected("agreement", found.agreement, found.agreement_low, found.agreement_high))
    row.append(_expected("error", found.relative_error, found.relative_error_low, found.relative_error_high))
    spread = math.sqrt(study.variance or 0.0)
    note = f"{plan.bound / spread:.1f}× the logits' spread" if spread > 0 else "RMS logit error"
    return [*row, ui.Number("Predicted bound", ui.rounded(plan.bound), ui.FORMULAS["bound"], note=note)]


def _expected(what: str, value: float, low: float, high: float) -> ui.Number:
    """A predicted share with its interval."""
    note = f"{ui.percent(low)} to {ui.percent(high)}"
    return ui.Number(f"Predicted {what}", ui.percent(value), ui.FORMULAS[f"predicted_{what}"], note=note)
