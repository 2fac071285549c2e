"""The commands that reproduce a plan of the dashboard."""

from __future__ import annotations

import shlex

from modhifi.plan import Plan, Settings
from modhifi.study import usual

from .selection import Forgetting, LabelledData, Source
from .store import Point

__all__ = ["commands"]


def commands(source: Source, plan: Plan, point: Point) -> str:
    """The commands that make, measure and export the plan, one per line."""
    data = ["--data", source.data, *_options({"--data-root": source.root, "--split": source.split})]
    analyze = ["analyze", source.model, *_options({"--weights": source.weights}), *data]
    for option, numbers in (("--mean", source.mean), ("--std", source.std)):
        analyze += [f"{option}={','.join(map(str, numbers))}"] if numbers else []
    analyze += ["--classes", "classes.txt"] if source.classes else []
    settings = plan.settings
    by_default, _ = usual(plan.model.input)
    if settings.constants not in (*by_default, "none"):
        analyze += ["--constants", ",".join([*by_default, settings.constants])]
    analyze += ["--samples", str(source.samples), "--seed", str(source.seed), "--out", "study"]
    if plan.kind == "unlearn":
        make = ["unlearn", "study", "--forget", ",".join(plan.forget), *_where(point.decided_on or source.labelled)]
        request = point.forgetting or Forgetting(classes=point.forget)
        make += ["--method", request.method, "--target", str(request.target)]
        make += [] if request.depth is None else ["--depth", str(request.depth)]
        make += ["--towards", request.towards] if request.method == "ridge" else []
        make += ["--predicted-labels"] if request.predicted_labels else []
    else:
        make = ["prune", "study", f"--{settings.budget}", str(settings.remain)]
        make += ["--published"] if settings.method is not None else _pruning(settings)
    make += ["--out", "plan.json"]
    evaluate = ["evaluate", "plan.json", *_where(point.measured_on)]
    export = ["export", "plan.json", "--out", "model"]
    lines = [shlex.join(["python", "-m", "modhifi", *line]) for line in (analyze, make, evaluate, export)]
    if source.classes:
        lines.insert(0, f"printf '%s\\n' {shlex.join(source.classes)} > classes.txt")
    return "\n".join(lines)


def _where(data: LabelledData) -> list[str]:
    return ["--data", data.data, *_options({"--data-root": data.root, "--split": data.split})]


def _options(pairs: dict[str, str | None]) -> list[str]:
    return [word for option, value in pairs.items() if value for word in (option, value)]


def _pruning(settings: Settings) -> list[str]:
    """The options for the settings that differ from `PruningSpec`'s defaults."""
    words = ["--score", settings.score, "--allocation", settings.allocation, "--constants", settings.constants]
    words += ["--compensate", settings.compensate]
    words += ["--recalibrate-bn"] if settings.recalibrate_bn else []
    words += ["--multiple", str(settings.multiple)] if settings.multiple > 1 else []
    for option, counts in (("--keep", settings.overrides), ("--floor", settings.floors)):
        words += [word for name, count in counts.items() for word in (option, f"{name}={count}")]
    return words
