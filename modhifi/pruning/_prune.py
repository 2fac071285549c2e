"""From an allocation to a plan: the new weights of every consumer, and if asked the BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .._operators import Edit
from ..errors import UserError
from ..models import Model, reload
from ..plan import Compensation, GroupPlan, Plan, Settings
from ..progress import Progress, silent
from ..study import LEVELS, Study
from ..surgery import calibration_data, recalibrated, remaining_columns
from ._allocate import Allocation, Score, Spread, allocate
from ._sequential import RIDGE, sequential

__all__ = ["prune"]


def prune(
    study: Study,
    *,
    flops: float | None = None,
    params: float | None = None,
    overrides: Mapping[str, int] | None = None,
    score: Score = "greedy",
    allocation: Spread = "global",
    compensate: Compensation = "full",
    centred: bool = True,
    drift: bool = True,
    recalibrate_bn: bool = False,
    model: Model | None = None,
    progress: Progress = silent,
) -> Plan:
    """ModHiFi-P: which components stay, and the weights that make up for the rest.

    Arguments and errors as `allocate`, and:

    Args:
        compensate: ``none``, ``scalar`` (δ*, Prop. 3.8), ``full`` (least squares on the study's moments) or ``sequential`` (each
            layer fitted to what the changed layers before it give; theory, section 4).
        drift: whether sequential compensation also makes up for what residual streams have lost.
        recalibrate_bn: re-estimate BatchNorm statistics at the end.
        model: the network, if it is at hand. It is run only for sequential compensation and for BatchNorm statistics, on the
            study's calibration images, which are loaded again.
        progress: see `modhifi.progress`.

    Raises:
        UserError: also where the calibration images have changed since the study.
    """
    levels = (*LEVELS, "sequential")
    if compensate not in levels:
        raise UserError(f"unknown compensation {compensate!r}; it is one of: {', '.join(levels)}")
    in_sequence = compensate == "sequential"
    decided = allocate(
        study,
        flops=flops,
        params=params,
        overrides=overrides,
        score=score,
        allocation=allocation,
        compensate=compensate,
        centred=centred,
    )
    budget = "flops" if flops is not None else "params" if params is not None else "manual"
    plan = Plan(
        kind="prune",
        model=study.model,
        calibration=study.data,
        settings=Settings(
            budget=budget,  # type: ignore[arg-type]
            remain=flops if flops is not None else params,
            score=score,
            allocation=allocation,
            compensate=compensate,
            centred=centred,
            drift=in_sequence and drift,
            ridge=RIDGE if in_sequence else study.ridge,
            recalibrate_bn=recalibrate_bn,
            overrides=dict(overrides or {}),
        ),
        groups={g.name: GroupPlan(total=g.size, keep=decided.keep[g.name]) for g in study.groups},
        predicted=_summary(study, decided),
    )
    tensors: dict[str, Tensor] = {}
    cut = {group.name for group in study.groups if decided.counts[group.name] < group.size}
    touched = [name for name, read in study.structure.readers.items() if any(group.name in cut for group, _ in read)]
    edits: dict[str, Edit] = {}
    net = model
    if in_sequence and touched:
        net = net or reload(study.model)
        images = torch.cat([batch for batch, _ in calibration_data(study.data).batches(net.input)])
        edits = sequential(study, decided.keep, net.module, images, centred=centred, drift=drift, progress=progress)
        # What runs before the first layer that loses something is as it was.
        names = list(edits)
        touched = names[min(names.index(name) for name in touched) :]
    for done, name in enumerate(touched if compensate != "none" else []):
        progress(done, len(touched), "compensating")
        edit = edits[name] if in_sequence else study.edit(name, decided.keep, plan.settings.level, centred)
        stays = remaining_columns(study.structure, name, edit.weight, decided.keep)
        tensors[f"{name}.weight"] = edit.weight[:, stays].float()
        if centred:
            tensors[f"{name}.shift"] = edit.shift.float()
    progress(len(touched), len(touched), "compensating")
    plan.predicted["params"] += _added_biases(study, decided, tensors)
    plan.with_tensors(tensors)
    if recalibrate_bn:
        plan.with_tensors(tensors | recalibrated(plan, net, progress=progress))
    return plan


def _added_biases(study: Study, decided: Allocation, tensors: Mapping[str, Tensor]) -> int:
    """Parameters of the biases that take up a constant where a layer has none."""
    rows = {row.name: row for row in study.structure.layers}
    added = 0
    for name, read in study.structure.readers.items():
        if f"{name}.shift" in tensors and read[0][1].shift is None:
            row = rows[name]
            added += row.outputs + sum(decided.counts[share.group] * share.width for share in row.out_shares)
    return added


def _summary(study: Study, decided: Allocation) -> dict[str, float]:
    return {
        "fidelity": decided.mean_fidelity,
        "bound": decided.bound,
        "params": decided.cost.params,
        "params_before": study.dense.params,
        "flops": decided.cost.flops,
        "flops_before": study.dense.flops,
    }
