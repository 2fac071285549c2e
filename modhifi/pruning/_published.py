"""ModHiFi-P as published (Alg. 1 with Prune), for reproduction and comparison.

Every output of every layer has a HiFi set: the top k components by singleton fidelity (Def. 3.1). A component that is in no
HiFi set of any output of any layer that reads it is removed, δ* (Prop. 3.8) is applied to the rest, and BatchNorm statistics
are re-estimated. k falls by a fifth per step, and after every removal the statistics are collected again on the pruned
network. The published method guarantees no budget; here the last step removes only as many of these components as the budget
requires. The published method ends when k is 1 and every remaining component is the best one for some output. If the budget
is not met by then, the components with the lowest fidelity are removed, the same share of every group per step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError
from ..fidelity import singleton_from_moments
from ..layers import flat_weight, get_operator
from ..loading import reload
from ..models import Model
from ..plan import GroupPlan, Plan, Settings
from ..progress import Progress, silent
from ..specs import Budget, PruningSpec
from ..statistics import collect
from ..study import LayerStats, Study
from ..surgery import apply, calibration_data, recalibrated, remaining_columns
from ._allocate import smallest_cost

__all__ = ["PUBLISHED", "published"]

PUBLISHED = "ModHiFi-P as published"
STEP = 0.2
STEP_UNIT = "fraction by which k falls per step"


def published(
    study: Study,
    *,
    flops: float | None = None,
    params: float | None = None,
    step: float = STEP,
    model: Model | None = None,
    progress: Progress = silent,
) -> Plan:
    """A plan by the published method, see the module docstring.

    Args:
        study: the study of the original network.
        flops: fraction of FLOPs to keep. Set either this or ``params``.
        params: fraction of parameters to keep.
        step: fraction by which k falls per step; the paper uses 0.01 to 0.2.
        model: the network; loaded if None. It is run on the study's calibration images, which are loaded again.
        progress: see `modhifi.progress`.

    Raises:
        UserError: if the budget is missing, out of range or cannot be reached, if ``step`` is out of range, for language
            models, or if the calibration images have changed since the study.
    """
    budget: Budget = "flops" if flops is not None else "params"
    remain = flops if flops is not None else params
    if (flops is None) == (params is None) or remain is None or not 0 < remain <= 1:
        raise UserError("set one budget, flops or params: the fraction to keep, above 0 and at most 1")
    if not 0 < step < 1:
        raise UserError(f"step, the fraction by which k falls, must be between 0 and 1, not {step}")
    smallest = smallest_cost(study, PruningSpec(budget=budget))
    if remain < smallest:
        raise UserError(
            f"{budget} {remain:g} cannot be reached: {smallest:.4g} remains with one component per group; keep more"
        )
    net = model or reload(study.model)
    if net.tokens is not None:
        raise UserError(
            "ModHiFi-P as published is for image networks; use --score cholesky with --compensate none or scalar"
        )
    run = _Run(study, net, budget, remain * getattr(study.dense, budget) + 0.5, progress)
    share = 1.0
    while run.cost > run.limit:
        share *= 1 - step
        run.remove(share, step)
    settings = run.plan.settings.model_copy(update={"remain": remain, "strength": step, "strength_unit": STEP_UNIT})
    plan = run.plan.model_copy(update={"settings": settings})
    cost = study.cost({name: len(group.keep) for name, group in plan.groups.items()})
    plan.predicted = {
        "params": cost.params,
        "params_before": study.dense.params,
        "flops": cost.flops,
        "flops_before": study.dense.flops,
    }
    return plan


class _Run:
    """The state of the method: the plan so far and the statistics of the network it makes."""

    def __init__(self, study: Study, model: Model, budget: Budget, limit: float, progress: Progress) -> None:
        self.study, self.model, self.budget, self.limit, self.progress = study, model, budget, limit, progress
        self.data = calibration_data(study.data, model, progress)
        self.has_norms = any(isinstance(module, _BatchNorm) for module in model.module.modules())
        self.layers: Mapping[str, LayerStats] = study.layers
        self.plan = Plan(
            kind="prune",
            model=study.model,
            calibration=study.data,
            settings=Settings(
                budget=budget, score="fidelity", compensate="scalar", recalibrate_bn=self.has_norms, method=PUBLISHED
            ),
            groups={g.name: GroupPlan(total=g.size, keep=list(range(g.size))) for g in study.groups},
        )

    @property
    def cost(self) -> float:
        return float(getattr(self.study.cost({n: len(g.keep) for n, g in self.plan.groups.items()}), self.budget))

    def remove(self, share: float, step: float) -> None:
        """Removes the components in no HiFi set with k = ``share`` of each group's size, and compensates. If k is 1 and there
        are no such components, removes the fraction ``step`` of each group.
        """
        begin = self.study.dense
        done = getattr(begin, self.budget) - self.cost
        self.progress(round(done), round(getattr(begin, self.budget) - self.limit), PUBLISHED)
        keep = {name: list(group.keep) for name, group in self.plan.groups.items()}
        worst: list[tuple[float, float, str, int]] = []
        least: list[tuple[float, float, str, int]] = []
        for group in self.study.groups:
            left = keep[group.name]
            rank, total = self._best_ranks(group.name, left)
            rows = [
                (float(r) / group.size, -float(t), group.name, i) for r, t, i in zip(rank, total, left, strict=True)
            ]
            k = max(1.0, share * group.size)
            if len(left) > 1:
                worst += [row for row, r in zip(rows, rank, strict=True) if r >= k]
                least += sorted(rows, reverse=True)[: max(1, int(step * len(left)))]
        if not worst and all(share * group.size <= 1 for group in self.study.groups):
            worst = least
        counts = {name: len(kept) for name, kept in keep.items()}
        for _, _, name, index in sorted(worst, reverse=True):
            if getattr(self.study.cost(counts), self.budget) <= self.limit:
                break
            if counts[name] > 1:
                keep[name].remove(index)
                counts[name] -= 1
        if any(len(kept) < len(self.plan.groups[name].keep) for name, kept in keep.items()):
            self._compensate(keep)

    def _best_ranks(self, group: str, stays: list[int]) -> tuple[Tensor, Tensor]:
        """Per remaining component: its best rank for any output of any consumer (0 is best), and its summed fidelity."""
        index = torch.tensor(stays)
        best = torch.full((len(stays),), len(stays))
        total = torch.zeros(len(stays), dtype=torch.float64)
        for consumer in self.study.group(group).consumers:
            stats = self.layers[consumer.layer]
            # The target is the whole output; only remaining components are ranked.
            score = singleton_from_moments(*stats.moment_and_weight(True, self.study.ridge), stats.blocks(group))[
                :, index
            ]
            rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            best = torch.minimum(best, rank.min(0).values)
            total += score.sum(0)
        return best, total

    def _compensate(self, keep: dict[str, list[int]]) -> None:
        structure = self.study.structure
        tensors: dict[str, Tensor] = {}
        for name, stats in self.layers.items():
            read = {group: torch.tensor(keep[group]) for group in stats.groups}
            edit = stats.edit(read, "scalar", True, self.study.ridge)
            columns = remaining_columns(structure, name, edit.weight, keep)
            before = self.plan.tensors.get(f"{name}.shift")
            tensors[f"{name}.weight"] = edit.weight[:, columns].float()
            tensors[f"{name}.shift"] = edit.shift.float() if before is None else edit.shift.float() + before
        for name, kept in keep.items():
            self.plan.groups[name] = GroupPlan(total=self.plan.groups[name].total, keep=kept)
        self.plan = self.plan.with_tensors(tensors)
        if self.has_norms:
            statistics = recalibrated(self.plan, self.model, self.data, self.progress)
            self.plan = self.plan.with_tensors(tensors | statistics)
        if self.cost <= self.limit:
            return
        twin = apply(self.plan, self.model, masked=True)
        groups = {name: stats.groups for name, stats in self.layers.items()}

        def batches(start: int) -> Iterator[Tensor]:
            for images, _ in self.data.part(start, len(self.data)).batches(self.model.input):
                yield images

        found = collect(twin.module, groups, batches, len(self.data), seed=self.study.data.seed, progress=self.progress)
        self.layers = {
            name: LayerStats(flat_weight(get_operator(twin.module, name)).cpu().float().clone(), moments, groups[name])
            for name, moments in found.moments.items()
        }
