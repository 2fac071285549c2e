"""Named pruning methods, and their comparison at the same budget."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from ..data import Data, prepare
from ..errors import UserError
from ..evaluation import Evaluation, evaluate, latencies, logits_of, measure_latency
from ..loading import reload
from ..models import Model
from ..plan import Plan
from ..progress import Progress, prefixed, silent
from ..specs import BUDGETS, Budget, PruningSpec
from ..study import Study
from ..surgery import apply
from ._prune import prune
from ._published import PUBLISHED, published
from ._scores import Score, scores

__all__ = [
    "STARTING_LANGUAGE_METHODS",
    "STARTING_METHODS",
    "Compared",
    "Comparison",
    "Method",
    "compare",
    "pruning_methods",
]

Planner = Callable[[Study, PruningSpec, Model | None, Progress], Plan]


def _by_spec(study: Study, spec: PruningSpec, model: Model | None, progress: Progress) -> Plan:
    return prune(study, spec, model=model, progress=progress)


def _by_published(study: Study, spec: PruningSpec, model: Model | None, progress: Progress) -> Plan:
    return published(study, **{spec.budget: spec.remain}, model=model, progress=progress)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Method:
    """A way to make a plan for a given budget, under one name. ``spec`` holds everything but the budget."""

    name: str
    title: str
    spec: PruningSpec = dataclasses.field(default_factory=lambda: PruningSpec(allocation="global"))
    needs_labels: bool = False
    budgets: tuple[Budget, ...] = BUDGETS
    """The kinds of budget that the method supports."""
    planner: Planner = _by_spec

    def for_budget(self, study: Study, budget: Budget, remain: float) -> PruningSpec:
        """The method's `PruningSpec` at this budget. Layers are weighted equally if the study lacks the method's constants.
        Raises `UserError` for a budget that the method does not support.
        """
        if budget not in self.budgets:
            raise UserError(f"{self.title} does not support a {budget} budget; omit it or compare at another budget")
        constants = self.spec.constants if self.spec.constants in study.estimators else "none"
        return self.spec.changed(budget=budget, remain=remain, constants=constants)

    def plan(
        self, study: Study, budget: Budget, remain: float, *, model: Model | None = None, progress: Progress = silent
    ) -> Plan:
        """The plan that keeps ``remain`` of the budget. Raises as `prune` and `published` do."""
        return self.planner(study, self.for_budget(study, budget, remain), model, progress)


def _method(name: str, title: str, **fields: Any) -> Method:
    return Method(name, title, PruningSpec(**{"allocation": "global"} | fields))


def _of_score(score: Score) -> list[Method]:
    """Three methods per baseline score: unchanged weights, BatchNorm re-estimated, and full compensation."""
    fields = {"score": score.name, "allocation": "ranking" if score.across_groups else "uniform", "compensate": "none"}
    made = (
        _method(score.name, score.title, **fields),
        _method(f"{score.name}+bn", f"{score.title}, BN re-estimated", **fields, recalibrate_bn=True),
        _method(f"{score.name}+full", f"{score.title}, full compensation", **fields | {"compensate": "full"}),
    )
    return [dataclasses.replace(method, needs_labels=score.needs_labels) for method in made]


_OURS = (
    _method("studio", "ModHiFi Studio"),
    _method("studio+bn", "ModHiFi Studio, BN re-estimated", recalibrate_bn=True),
    _method("one-shot", "Greedy, global, full compensation", compensate="full"),
    _method("one-shot+bn", "Greedy, global, full, BN re-estimated", compensate="full", recalibrate_bn=True),
    _method("scalar", "Greedy, global, δ*", compensate="scalar"),
    Method("published", PUBLISHED, budgets=("flops", "params"), planner=_by_published),
    *(
        _method(f"{name}+full", f"{title}, full compensation", score=name, allocation="uniform", compensate="full")
        for name, title in (
            ("fidelity", "Singleton fidelity"),
            ("row-sum", "Row sum"),
            ("removal-cost", "Removal cost"),
        )
    ),
)
_EQUAL = {"allocation": "width"}
_LANGUAGE = (
    _method("width", "Equal widths, sequential", **_EQUAL),
    _method("width-one-shot", "Equal widths, full compensation", **_EQUAL, compensate="full"),
    _method("width-scalar", "Equal widths, δ*", **_EQUAL, compensate="scalar"),
    _method("width-none", "Equal widths, no compensation", **_EQUAL, compensate="none"),
    _method("free", "Free widths, sequential"),
    _method("free-one-shot", "Free widths, full compensation", compensate="full"),
    _method("cholesky", "Published score (Cholesky rows)", **_EQUAL, score="cholesky", compensate="none"),
    _method("cholesky+scalar", "Published score, δ*", **_EQUAL, score="cholesky", compensate="scalar"),
    _method("cholesky+full", "Published score, full compensation", **_EQUAL, score="cholesky", compensate="full"),
    _method("magnitude", "L2 norm, equal widths", **_EQUAL, score="l2", compensate="none"),
    _method("magnitude+full", "L2 norm, equal widths, full compensation", **_EQUAL, score="l2", compensate="full"),
    _method("chance", "Random, equal widths", **_EQUAL, score="random", compensate="none"),
    _method("chance+full", "Random, equal widths, full compensation", **_EQUAL, score="random", compensate="full"),
)
STARTING_METHODS = ("studio", "one-shot", "published", "l2", "l2+bn", "l2+full")
STARTING_LANGUAGE_METHODS = ("width", "width-one-shot", "free", "cholesky", "magnitude", "chance")
"""The methods preselected in the dashboard: this project's method and its strongest competitors."""


def pruning_methods(*, language: bool = False) -> dict[str, Method]:
    """All methods for `compare`, by name: this project's, and those of every registered baseline score. *+bn*: BatchNorm
    re-estimated afterwards. *+full*: full compensation. Methods for language models use equal widths in every block, except
    those named *free*.
    """
    found = _LANGUAGE if language else (*_OURS, *(m for one in scores() if one.baseline for m in _of_score(one)))
    return {method.name: method for method in found}


@dataclass(frozen=True)
class Compared:
    """One row: the plan, its evaluation, and the seconds that planning and compensation took."""

    method: Method
    remain: float
    plan: Plan
    evaluation: Evaluation
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """``dense`` is the original network. The latencies of all networks were measured in turns."""

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
    """Prunes with several methods at the same budget and measures the results on ``data``.

    Args:
        study: the study of the network.
        data: images, with labels or without, or text for language models.
        flops: fraction of FLOPs to keep, or several fractions. Set exactly one of the three budgets.
        params: the same for parameters.
        latency: the same for measured latency.
        methods: names from `pruning_methods`; by default all that support the network and the budget and need no labels.
        model: the network; loaded if None.
        progress: see `modhifi.progress`.

    Raises:
        UserError: for an unknown method or not exactly one budget, and as `prune` and `evaluate` do.
    """
    given: dict[Budget, float | Sequence[float] | None] = {"flops": flops, "params": params, "latency": latency}
    budgets = [(name, value) for name, value in given.items() if value is not None]
    if len(budgets) != 1:
        raise UserError("set one budget, flops, params or latency: the fraction to keep")
    budget, value = budgets[0]
    remains = [float(value)] if isinstance(value, (int, float)) else [float(each) for each in value]
    net = model or reload(study.model)
    available = pruning_methods(language=net.tokens is not None)
    able = any(isinstance(one, _BatchNorm) for one in net.module.modules())
    usual = [
        m
        for m in available.values()
        if not m.needs_labels and budget in m.budgets and (able or not m.spec.recalibrate_bn)
    ]
    chosen = usual if methods is None else named(methods)
    data = data if net.tokens is not None else prepare(data, net, progress)
    dense = evaluate(net, data, latency=False, progress=progress)
    # The original network's answers to images are computed once; those to text, or maps, would not fit into memory.
    known = None if not net.classes else logits_of(net, data, progress=progress)
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
            found = evaluate(changed, data, net, latency=False, known=known, progress=report)
            modules.append(changed.module)
            rows.append(Compared(method, remain, plan, found, seconds))
    dense_timing, *timings = measure_latency(modules, net.example(), progress=progress)
    dense = dense.model_copy(update=latencies([dense_timing]))
    for row, timing in zip(rows, timings, strict=True):
        found = row.evaluation
        for field, value in latencies([timing, dense_timing]).items():
            setattr(found, field, value)
        row.plan.measured.append(found.to_json())
    return Comparison(dense, tuple(rows))


def named(methods: Sequence[str]) -> list[Method]:
    """The methods with these names. Raises `UserError` for an unknown one."""
    known = pruning_methods() | pruning_methods(language=True)
    for name in methods:
        if name not in known:
            raise UserError(f"unknown method {name!r}; choose one of {', '.join(known)}")
    return [known[name] for name in methods]
