"""What the study predicts of a plan before anything is run, narrowed by what was measured of other plans."""

from __future__ import annotations

import math

from modhifi import Study
from modhifi.pruning import Allocation, Prediction, predict_outcome

from . import components as ui
from .selection import Choice
from .session import Session

__all__ = ["outcome", "predictions"]


def outcome(session: Session, study: Study, choice: Choice, plan: Allocation) -> Prediction | None:
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
    found = outcome(session, study, choice, plan)
    if found is None:
        return [
            ui.Number("Predicted fidelity", f"{plan.mean_fidelity:.4f}", ui.FORMULAS["fidelity"], note="all groups")
        ]
    row = []
    if found.agreement is not None and found.agreement_low is not None and found.agreement_high is not None:
        row.append(
            ui.Number(
                "Predicted agreement",
                ui.percent(found.agreement),
                ui.FORMULAS["predicted_agreement"],
                note=f"{ui.percent(found.agreement_low)} to {ui.percent(found.agreement_high)}",
            )
        )
    row.append(
        ui.Number(
            "Predicted error",
            ui.percent(found.relative_error),
            ui.FORMULAS["predicted_error"],
            note=f"{ui.percent(found.relative_error_low)} to {ui.percent(found.relative_error_high)}",
        )
    )
    spread = math.sqrt(study.variance or 0.0)
    note = f"{plan.bound / spread:.1f}× the logits' spread" if spread > 0 else "RMS logit error"
    return [*row, ui.Number("Predicted bound", ui.rounded(plan.bound), ui.FORMULAS["bound"], note=note)]
