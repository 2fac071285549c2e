"""Named methods, and all of them at the same budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..data import Data
from ..errors import UserError
from ..evaluation import Evaluation, evaluate, measure_latency
from ..models import Model, reload
from ..plan import Budget, Compensation, Plan, Spread
from ..progress import Progress, prefixed, silent
from ..study import Study
from ..surgery import apply
from ._baselines import BASELINES, NEEDS_LABELS
from ._prune import prune
from ._published import PUBLISHED, published

__all__ = ["LANGUAGE_METHODS", "METHODS", "Compared", "Comparison", "Method", "compare"]


@dataclass(frozen=True)
class Method:
    """How a plan is decided and made up for, under one name."""

    name: str
    title: str
    score: str = "greedy"
    allocation: Spread = "global"
    compensate: Compensation = "sequential"
    drift: bool = True
    recalibrate_bn: bool = False
    published: bool = False

    @property
    def needs_labels(self) -> bool:
        return self.score in NEEDS_LABELS

    def knows(self, budget: Budget) -> bool:
        """Whether it can be asked for this kind of budget."""
        return not (self.published and budget == "latency")

    def plan(
        self, study: Study, budget: Budget, remain: float, *, model: Model | None = None, progress: Progress = silent
    ) -> Plan:
        """The plan of this method when ``remain`` of the budget stays; a study without constants has every layer's taken for 1.
        Raises as `prune` and `published` do.
        """
        if not self.knows(budget):
            raise UserError(f"{self.title} knows no budget of {budget}; leave it away or compare at FLOPs")
        if self.published:
            return published(study, **{budget: remain}, model=model, progress=progress)
        return prune(
            study,
            **{budget: remain},  # type: ignore[arg-type]
            score=self.score,
            allocation=self.allocation,
            constants="directional" if "directional" in study.estimators else "none",
            compensate=self.compensate,
            drift=self.drift,
            recalibrate_bn=self.recalibrate_bn,
            model=model,
            progress=progress,
        )


def _baselines(score: str) -> list[Method]:
    """A score of others: weights as they are, with BatchNorm re-estimated, and with full compensation."""
    # LAMP is made for comparing layers with each other; the norms are used layer by layer.
    spread: Spread = "ranking" if score == "lamp" else "uniform"
    words = {"l1": "L1 norm", "l2": "L2 norm", "group-norm": "Group norm", "lamp": "LAMP"}.get(
        score, score.capitalize()
    )
    if score in NEEDS_LABELS:
        words += " (uses labels)"
    return [
        Method(score, words, score, spread, "none"),
        Method(f"{score}+bn", f"{words}, BN re-estimated", score, spread, "none", recalibrate_bn=True),
        Method(f"{score}+full", f"{words}, full compensation", score, spread, "full"),
    ]


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("studio", "ModHiFi Studio"),
        Method("studio+bn", "ModHiFi Studio, BN re-estimated", recalibrate_bn=True),
        Method("one-shot", "Greedy, global, full compensation", compensate="full"),
        Method("one-shot+bn", "Greedy, global, full, BN re-estimated", compensate="full", recalibrate_bn=True),
        Method("scalar", "Greedy, global, δ*", compensate="scalar"),
        Method("published", PUBLISHED, published=True),
        Method("fidelity+full", "Singleton fidelity, full compensation", "fidelity", "uniform", "full"),
        Method("row-sum+full", "Row sum, full compensation", "row-sum", "uniform", "full"),
        Method("removal-cost+full", "Removal cost, full compensation", "removal-cost", "uniform", "full"),
        *(method for score in BASELINES for method in _baselines(score)),
    )
}
"""Everything that `compare` can compare. *+bn*: BatchNorm re-estimated afterwards. *+full*: full compensation with that score."""


LANGUAGE_METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("width", "Equal widths, sequential", allocation="width"),
        Method("width-one-shot", "Equal widths, full compensation", allocation="width", compensate="full"),
        Method("width-scalar", "Equal widths, δ*", allocation="width", compensate="scalar"),
        Method("width-none", "Equal widths, no compensation", allocation="width", compensate="none"),
        Method("free", "Free widths, sequential"),
        Method("free-one-shot", "Free widths, full compensation", compensate="full"),
        Method("cholesky", "Published score (Cholesky rows)", "cholesky", "width", "none"),
        Method("cholesky+scalar", "Published score, δ*", "cholesky", "width", "scalar"),
        Method("cholesky+full", "Published score, full compensation", "cholesky", "width", "full"),
        Method("magnitude", "L2 norm, equal widths", "l2", "width", "none"),
        Method("magnitude+full", "L2 norm, equal widths, full compensation", "l2", "width", "full"),
        Method("chance", "Random, equal widths", "random", "width", "none"),
        Method("chance+full", "Random, equal widths, full compensation", "random", "width", "full"),
    )
}
"""The same for language models: plans of equal widths in every block, unless their name says *free*."""


@dataclass(frozen=True)
class Compared:
    """One row: the plan, what it gives, and how long deciding and compensating took."""

    method: Method
    remain: float
    plan: Plan
    evaluation: Evaluation
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """``dense`` is the unchanged network; latencies of it and all rows were measured in turns."""

    dense: Evaluation
    rows: tuple[Compared, ...]


def compare(
    study: Study,
    data: Data,
    *,
    flops: float | Sequence[float] | None = None,
    params: float | Sequence[float] | None = None,
    latency: float | Sequence[float] | None = None,
    methods: Sequence[str] | None = None,
    model: Model | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Carries out plans of several methods at the same budget and measures them on labelled ``data``.

    Args:
        study: what was observed.
        data: labelled images.
        flops: the fraction that remains, or several of them; or
        params: the same for parameters; or
        latency: for measured latency.
        methods: names in `METHODS` or `LANGUAGE_METHODS`; all that need no labels, know the budget and are for such a
            network if None.
        model: the network, if it is at hand.
        progress: see `modhifi.progress`.

    Raises:
        UserError: for an unknown method, more or less than one budget, or as `prune` and `evaluate` do.
    """
    given: dict[Budget, float | Sequence[float] | None] = {"flops": flops, "params": params, "latency": latency}
    budgets = [(name, value) for name, value in given.items() if value is not None]
    if len(budgets) != 1:
        raise UserError("give one budget, flops, params or latency: the fraction that remains")
    budget, value = budgets[0]
    remains = [float(value)] if isinstance(value, (int, float)) else [float(each) for each in value]
    net = model or reload(study.model)
    table = METHODS if net.tokens is None else LANGUAGE_METHODS
    usual = [m for m in table.values() if not m.needs_labels and m.knows(budget)]
    chosen = usual if methods is None else named(methods)
    dense = evaluate(net, data, latency=False, progress=progress)
    rows: list[Compared] = []
    modules = [net.module]
    total = len(remains) * len(chosen)
    for remain in remains:
        for method in chosen:
            report = prefixed(progress, f"{method.title} ({len(rows) + 1} of {total}): ")
            began = time.perf_counter()
            plan = method.plan(study, budget, remain, model=net, progress=report)
            seconds = time.perf_counter() - began
            changed = apply(plan, net)
            found = evaluate(changed, data, latency=False, progress=report)
            modules.append(changed.module)
            rows.append(Compared(method, remain, plan, found, seconds))
    times = measure_latency(modules, net.example(), progress=progress)
    dense.latency_ms = times[0]
    for row, milliseconds in zip(rows, times[1:], strict=True):
        found = row.evaluation
        found.latency_ms, found.latency_ms_before = milliseconds, times[0]
        found.perplexity_before = dense.perplexity
        found.accuracy_before, found.params_before = dense.accuracy, dense.params
        found.flops_before, found.bytes_before = dense.flops, dense.bytes
        found.confusion_before = dense.confusion
        for name, by_class in found.per_class.items():
            by_class.before = dense.per_class[name].after
        row.plan.measured.append(found.to_json())
    return Comparison(dense, tuple(rows))


def named(methods: Sequence[str]) -> list[Method]:
    """The methods of these names; `UserError` for an unknown one."""
    known = METHODS | LANGUAGE_METHODS
    for name in methods:
        if name not in known:
            raise UserError(f"unknown method {name!r}; the methods are: {', '.join(known)}")
    return [known[name] for name in methods]
