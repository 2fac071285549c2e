"""``modhifi unlearn``."""

from __future__ import annotations

import argparse

import modhifi

from ..plan import Plan
from ..progress import Progress
from ..study import Study
from ..text import listed, percent
from ..unlearning import unlearning_methods
from ._common import data_arguments, named_data, names, out_plan, positive
from ._table import Answer, table

HELP = "ModHiFi-U: make the network forget classes and write a plan."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY")
    parser.add_argument(
        "--forget", type=names, required=True, metavar="NAMES", help="class names or indices, comma-separated"
    )
    data_arguments(parser, "calibration")
    parser.add_argument("--samples", type=positive, default=1000, metavar="N", help="number of samples (default: 1000)")
    gradients = " and ".join(name for name, method in unlearning_methods().items() if method.gradients)
    parser.add_argument(
        "--method",
        default="erase",
        metavar="NAME",
        help=f"one of {', '.join(unlearning_methods())} (default: erase); {gradients} need gradients",
    )
    parser.add_argument(
        "--target",
        type=lambda text: text if text == "chance" else float(text),
        default=0.0,
        metavar="A",
        help="forget accuracy that is low enough, or chance (default: 0)",
    )
    parser.add_argument(
        "--depth", type=positive, metavar="N", help="edit the last N layers (default: chosen by the method)"
    )
    parser.add_argument(
        "--towards",
        choices=("zero", "mean"),
        default="mean",
        help="ridge: what a layer should output for the forget set (default: the mean of the retain set)",
    )
    parser.add_argument(
        "--predicted-labels", action="store_true", help="label the samples by the network's own predictions"
    )
    out_plan(parser)


def run(asked: argparse.Namespace, progress: Progress) -> Answer:
    Plan.claim(asked.out)
    study = Study.load(asked.study)
    plan = modhifi.unlearn(
        study,
        asked.forget,
        named_data(asked, study.data),
        method=asked.method,
        target=asked.target,
        depth=asked.depth,
        towards=asked.towards,
        predicted_labels=asked.predicted_labels,
        samples=asked.samples,
        seed=asked.seed,
        progress=progress,
    )
    plan.save(asked.out)
    value = {
        "plan": asked.out,
        "forget": plan.forget,
        "curve": [point.model_dump() for point in plan.curve],
        "predicted": plan.predicted,
        "settings": plan.settings.model_dump(mode="json"),
    }
    rows = [
        [f"{point.strength:.3g}", percent(point.forget_accuracy), percent(point.retain_accuracy)]
        for point in plan.curve
    ]
    text = (
        f"{table([unlearning_methods()[asked.method].strength, 'forget accuracy', 'retain accuracy'], rows)}\n"
        f"forget {', '.join(plan.forget)}: {plan.settings.method}, strength {plan.settings.strength:.3g}, edits"
        f" {listed(plan.settings.layers)}\n"
        f"on calibration data: forget accuracy {percent(plan.predicted['forget_accuracy'])} (lower is better),"
        f" retain accuracy {percent(plan.predicted['retain_accuracy'])} (higher is better)\n"
        f"written to {asked.out}; judge it on test data: modhifi evaluate {asked.out} --data DATA --split test"
    )
    return value, text
