"""What a study says of a plan's bound before anything is run."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from .._operators import Edit
from ..plan import Plan
from ..study import Study
from ..surgery import remaining_columns

__all__ = ["plan_edits", "predict", "predict_edits"]


def predict(study: Study, plan: Plan, constants: str = "directional") -> dict[str, float]:
    """``K_l √E‖Y_l − Ŷ_l‖²`` of every layer that the plan changes, in forward order; their sum bounds the root-mean-square error
    of the logits (Thm. 3.6).

    The local errors are those of the plan's own weights, ``tr((W−W')H(W−W')ᵀ)`` on the study's moments. The constants are those
    of the unmodified network, the largest that the named estimator saw, so this is an estimate of the bound; with ``certified``
    ones too, which hold for the unmodified tail only. Weights that were fitted to the same moments make their errors look smaller
    than they are: by up to a quarter where a layer of ``k`` inputs was seen at ``n = 4k`` positions, √((1 − k/n) / (1 + k/n)).
    Raises `UserError` if the study does not have them.
    """
    return predict_edits(study, plan_edits(study, plan), constants)


def predict_edits(study: Study, edits: Mapping[str, Edit], constants: str = "directional") -> dict[str, float]:
    """`predict` of a plan whose edits are known."""
    return {
        name: study.constant(name, constants) * math.sqrt(study.layers[name].error(edit))
        for name, edit in edits.items()
    }


def plan_edits(study: Study, plan: Plan) -> dict[str, Edit]:
    """The plan's new weights in base coordinates, for every layer that it changes, in forward order."""
    edits = {}
    keep = {name: group.keep for name, group in plan.groups.items()}
    for name in study.structure.readers:
        own = study.layers[name].weight.double()
        stays = remaining_columns(study.structure, name, own, keep)
        weight = torch.zeros_like(own)
        weight[:, stays] = plan.tensors.get(f"{name}.weight", own[:, stays]).double()
        shift = plan.tensors.get(f"{name}.shift", own.new_zeros(own.shape[0])).double()
        if not torch.equal(weight, own) or bool(shift.any()):
            edits[name] = Edit(weight, shift)
    return edits
