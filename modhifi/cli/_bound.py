"""``modhifi bound``."""

from __future__ import annotations

import argparse

import modhifi

from ..bounds import BoundReport, Grain
from ..plan import Plan
from ..progress import Progress
from ..study import Study
from ..text import percent
from ._common import data_arguments, named_data, positive
from ._table import Answer, table

HELP = "Compare the bound of a plan with the measured error, per layer and for the whole plan."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY")
    parser.add_argument("plan", metavar="PLAN")
    data_arguments(parser, "calibration")
    parser.add_argument("--samples", type=positive, default=128, metavar="N", help="number of samples (default: 128)")
    parser.add_argument(
        "--no-held-out",
        action="store_true",
        help="do not test constants from the calibration samples on these samples (halves the time)",
    )


def run(asked: argparse.Namespace, progress: Progress) -> Answer:
    study, plan = Study.load(asked.study), Plan.load(asked.plan)
    report = modhifi.bounds.measure(
        study,
        plan,
        named_data(asked, study.data),
        samples=asked.samples,
        seed=asked.seed,
        held_out=not asked.no_held_out,
        progress=progress,
    )
    rows = [
        [
            row.layer,
            f"{row.local:.3g}",
            f"{row.gain:.3g}",
            f"{row.predicted:.3g}",
            f"{row.bound:.3g}",
            f"{row.measured:.3g}",
            _times(row.tightness),
        ]
        for row in report.rows
    ]
    head = ["layer", "local error", "gain", "predicted", "bound", "alone: measured", "tightness"]
    steps = [
        ["layer", len(rows), f"{report.bound:.3g}", *map(_times, _slack(report))],
        *([grain, one.steps, f"{one.bound:.3g}", *map(_times, _slack(one))] for grain, one in report.grains.items()),
    ]
    lines = [
        table(head, rows),
        f"whole plan: bound {report.bound:.3g}, measured {report.measured:.3g} (RMS error of the logits; RMS logits"
        f" {report.logits:.3g})",
        f"tightness {_times(report.tightness)} (bound over measured error: lower is better, 1 is perfect); bound"
        f" predicted before anything is run {report.predicted:.3g}",
        table(["granularity", "steps", "bound", "tightness", "= worst-case gain", "× summation"], steps),
        f"gains are the largest seen on these {report.samples} samples: lower bounds of the Lipschitz constants",
    ]
    held = report.held_out
    if held is not None:
        lines.append(
            f"with constants from {held.samples} calibration samples instead: {percent(held.layers)} of the errors of"
            f" layers modified alone exceed their bound, {percent(held.plan)} of the whole plan's;"
            f" {percent(held.expected)} is expected if samples are exchangeable"
        )
    text = "\n".join(lines)
    return report.model_dump(mode="json"), text


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"


def _slack(bound: BoundReport | Grain) -> tuple[float | None, float | None, float | None]:
    return bound.tightness, bound.slack_maximum, bound.slack_sum
