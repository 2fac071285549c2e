"""``modhifi compare``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import modhifi

from ..errors import UserError
from ..files import claim_parent
from ..loading import reload
from ..plan import Plan
from ..progress import Progress
from ..pruning import pruning_methods
from ..study import Study
from ..text import number, percent
from ._common import budget_arguments, data_arguments, moved_weights, named_data, names, numbers, positive, samples_of
from ._table import Answer, table

HELP = "Compare pruning methods at the same budget."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY")
    budget_arguments(parser, numbers, "R[,R…]", ", one or several")
    data_arguments(parser, "test")
    parser.add_argument("--samples", type=positive, metavar="N", help="number of samples (default: all)")
    parser.add_argument(
        "--methods",
        type=names,
        metavar="NAMES",
        help=f"comma-separated (default: all that need no labels): {', '.join(pruning_methods())}; for language models"
        f" {', '.join(pruning_methods(language=True))}",
    )
    moved_weights(parser, "study")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", metavar="DIR", help="write every plan into this folder")


def run(asked: argparse.Namespace, progress: Progress) -> Answer:
    if asked.out is not None:
        _claim(asked)
    study = Study.load(asked.study)
    model = reload(study.model, asked.weights, device=asked.device, progress=progress)
    found = modhifi.pruning.compare(
        study,
        named_data(asked, study.data, asked.samples),
        flops=asked.flops,
        params=asked.params,
        latency=asked.latency,
        methods=asked.methods,
        model=model,
        progress=progress,
    )
    rows: list[dict[str, Any]] = []
    for row in found.rows:
        e = row.evaluation
        plan = None
        if asked.out is not None:
            plan = str(row.plan.save(_plan_path(asked.out, row.method.name, row.remain)))
        rows.append(
            {
                "method": row.method.name,
                "title": row.method.title,
                "labels": row.method.needs_labels,
                "remain": row.remain,
                "agreement": e.agreement,
                "relative_error": e.relative_error,
                "kl": e.kl,
                **({"accuracy": e.accuracy} if e.accuracy is not None and e.perplexity is None else {}),
                **({} if e.perplexity is None else {"perplexity": e.perplexity}),
                "flops": e.flops,
                "params": e.params,
                "latency_ms": e.latency_ms,
                "seconds": row.seconds,
                "plan": plan,
            }
        )
    dense = found.dense
    language = dense.perplexity is not None
    labelled = dense.accuracy is not None and not language
    of_numbers = all(row["agreement"] is None for row in rows)  # they are no classes
    value = {
        "model": study.model.spec,
        "samples": dense.samples,
        **({"accuracy_before": dense.accuracy} if labelled else {}),
        **(
            {"perplexity_before": dense.perplexity, "context": dense.context, "stride": dense.stride}
            if language
            else {}
        ),
        "flops_before": dense.flops,
        "params_before": dense.params,
        "latency_ms_before": dense.latency_ms,
        "device": dense.device,
        "rows": rows,
    }

    def quality(found: dict[str, Any]) -> list[str]:
        """The quality, and a bar that is full at the best possible value (perplexity: that of the original)."""
        if language:
            return [number(found["perplexity"], 3), _bar(min(1.0, (dense.perplexity or 0.0) / found["perplexity"]))]
        return [percent(found["accuracy"]), _bar(found["accuracy"])] if labelled else []

    def place(row: dict[str, Any]) -> tuple[float, float]:
        """Sorts by budget, then by the best quality known."""
        if language:
            return -row["remain"], row["perplexity"]
        if not labelled and of_numbers:
            return -row["remain"], row["relative_error"] or 0.0
        return -row["remain"], -row["accuracy" if labelled else "agreement"]

    ranked = sorted(rows, key=place)
    cells = [
        [
            row["title"],
            *quality(row),
            number(row["relative_error"], 4) if of_numbers else percent(row["agreement"]),
            f"{row['flops'] / dense.flops:.1%}",
            f"{row['params'] / dense.params:.1%}",
            f"{row['latency_ms']:.2f}",
            f"{row['seconds']:.1f}",
        ]
        for row in ranked
    ]
    original = quality({"accuracy": dense.accuracy, "perplexity": dense.perplexity})
    before = ["original", *original, "", "100%", "100%", f"{dense.latency_ms:.2f}", ""]
    counted = f"{dense.samples} windows" if language else f"{dense.samples} {samples_of(study.model)}"
    judged = "perplexity (lower is better)" if language else "accuracy (higher is better)"
    same = "same answer as the original (higher is better)"
    if of_numbers:
        same = "relative error of the answer (lower is better)"
    head = [
        counted,
        *([judged, ""] if language or labelled else []),
        same,
        "FLOPs",
        "parameters",
        "latency, ms",
        "planning, s",
    ]
    return value, table(head, [before, *cells])


def _plan_path(out: str, method: str, remain: float) -> Path:
    return Path(out) / f"{method}-{remain:g}.json"


def _claim(asked: argparse.Namespace) -> None:
    """Raises `UserError` before the work if the plans cannot be written into the folder."""
    folder = Path(asked.out)
    if not asked.out or (folder.exists() and not folder.is_dir()):
        raise UserError(f"--out {asked.out!r} is not a folder; name one, it is created if needed")
    methods = asked.methods or [*pruning_methods(), *pruning_methods(language=True)]
    for remain in asked.flops or asked.params or asked.latency or ():
        for path in (_plan_path(asked.out, method, remain) for method in methods):
            if path.is_file():
                Plan.claim(path)
    claim_parent(folder / "plan.json")


def _bar(share: float) -> str:
    """A left-aligned bar of at most 20 characters."""
    return ("█" * round(20 * share)).ljust(20)
