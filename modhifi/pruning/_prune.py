"""From an allocation to a plan: the new weights of every consumer, and if asked the BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..errors import UserError
from ..plan import GroupPlan, Plan, Settings
from ..progress import Progress, silent
from ..study import LEVELS, Study
from ..study._types import Level
from ._allocate import Allocation, Score, Spread, allocate

__all__ = ["prune"]


def prune(
    study: Study,
    *,
    flops: float | None = None,
    params: float | None = None,
    overrides: Mapping[str, int] | None = None,
    score: Score = "greedy",
    allocation: Spread = "global",
    compensate: Level = "full",
    centred: bool = True,
    recalibrate_bn: bool = False,
    progress: Progress = silent,
) -> Plan:
    """ModHiFi-P: which components stay, and the weights that make up for the rest. The network is not run, except
    to re-estimate BatchNorm statistics when ``recalibrate_bn`` is set (the model and the calibration data are loaded again).

    Arguments and errors as `allocate`; ``compensate`` is ``none``, ``scalar`` (δ*, Prop. 3.8) or ``full`` (least squares).
    """
    if compensate not in LEVELS:
        raise UserError(f"unknown compensation {compensate!r}; it is one of: {', '.join(LEVELS)}")
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
            ridge=study.ridge,
            recalibrate_bn=recalibrate_bn,
            overrides=dict(overrides or {}),
        ),
        groups={g.name: GroupPlan(total=g.size, keep=decided.keep[g.name]) for g in study.groups},
        predicted=_summary(study, decided),
    )
    tensors: dict[str, Tensor] = {}
    if compensate != "none":
        removed = [group for group in study.groups if decided.counts[group.name] < group.size]
        for done, group in enumerate(removed):
            progress(done, len(removed), "compensating")
            for consumer in group.consumers:
                edit = study.edit(consumer, decided.keep[group.name], compensate, centred)
                columns = _columns(decided.keep[group.name], consumer.block)
                tensors[f"{consumer.layer}.weight"] = edit.weight[:, columns].float()
                if centred:
                    tensors[f"{consumer.layer}.shift"] = edit.shift.float()
        progress(len(removed), len(removed), "compensating")
    plan.with_tensors(tensors)
    if recalibrate_bn:
        from ..surgery import recalibrated

        plan.with_tensors(tensors | recalibrated(plan, progress=progress))
    return plan


def _columns(keep: list[int], block: int) -> list[int]:
    return [component * block + entry for component in keep for entry in range(block)]


def _summary(study: Study, decided: Allocation) -> dict[str, float]:
    return {
        "fidelity": decided.mean_fidelity,
        "bound": decided.bound,
        "params": decided.cost.params,
        "params_before": study.dense.params,
        "flops": decided.cost.flops,
        "flops_before": study.dense.flops,
    }
