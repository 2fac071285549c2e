"""The bound of a plan as a study predicts it, before anything is run."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ..layers import Edit
from ..plan import Plan
from ..study import Study
from ..surgery import remaining_columns

__all__ = ["plan_edits", "predict", "predict_edits"]


def predict(study: Study, plan: Plan, constants: str = "directional") -> dict[str, float]:
    """``K_l √E‖Y_l − Ŷ_l‖²`` of every layer that the plan modifies, in forward order. Their sum estimates the bound on the
    root-mean-square error of the logits (ModHiFi, Thm. 3.6).

    The local errors are those of the plan's own weights on the study's moments, ``tr((W−W')H(W−W')ᵀ)``. The constants are the
    largest gains that the named estimator observed on the original network, so the result is an estimate of the bound. This
    holds for ``certified`` too, whose constants are valid only while the later layers are unmodified. Weights fitted to the
    same moments make their own errors look smaller, by a factor of up to ``√((1 − k/n) / (1 + k/n))`` for ``k`` inputs seen
    at ``n`` positions: almost a quarter at ``n = 4k``. Raises `UserError` if the study lacks these constants.
    """
    return predict_edits(study, plan_edits(study, plan), constants)


def predict_edits(study: Study, edits: Mapping[str, Edit], constants: str = "directional") -> dict[str, float]:
    """`predict` for the edits of a plan."""
    return {
        name: study.constant(name, constants) * math.sqrt(study.layers[name].error(edit))
        for name, edit in edits.items()
    }


def plan_edits(study: Study, plan: Plan) -> dict[str, Edit]:
    """The plan's new weights in the coordinates of the original network, for every layer it modifies, in forward order."""
    edits = {}
    keep = {name: group.keep for name, group in plan.groups.items()}
    for name in study.structure.readers:
        own = study.layers[name].weight.double()
        kept = remaining_columns(study.structure, name, own, keep)
        weight = torch.zeros_like(own)
        weight[:, kept] = plan.tensors.get(f"{name}.weight", own[:, kept]).double()
        shift = plan.tensors.get(f"{name}.shift", own.new_zeros(own.shape[0])).double()
        if not torch.equal(weight, own) or bool(shift.any()):
            edits[name] = Edit(weight, shift)
    return edits
