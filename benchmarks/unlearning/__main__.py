"""Who forgets what, what it costs, and what brings it back: every method and every attack.

    python benchmarks/unlearning --data-root CIFAR10 --checkpoints FOLDER [--tables all] [--classes 0,3] [--methods all]

``CIFAR10`` holds CIFAR-10 as `modhifi.load_data` reads it, ``FOLDER`` resnet56-4bfd9763.th of
github.com/akamaster/pytorch_resnet_cifar10; the tables of digits need neither. Each class in turn is forgotten, decided on at most
1,000 calibration images, and judged on the test images. A cell is the mean over the classes, and in brackets the worst of them.

A method that cannot bring the accuracy on the calibration images of the class to 0% is asked for the next of `TARGETS`, and *missed*
counts the classes for which that was needed. Columns: *probe* a linear probe on the penultimate features, *membership* the area
under the ROC curve, *relearned* forget accuracy after 5 and 20 steps, *BN recall* forget and retain accuracy after BatchNorm was
re-estimated on the other classes. All figures but the last two columns are per cent.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import modhifi
from assets import digits_resnet20
from modhifi import Data, Evaluation, Model, UserError
from modhifi.models import fingerprint
from modhifi.unlearning import METHODS

SAMPLES = 1000
TARGETS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
ALL = tuple(METHODS)
HEAD = (
    "",
    "forget",
    "retain",
    "probe",
    "membership",
    "relearned, 5",
    "20",
    "BN recall, forget",
    "retain",
    "missed",
    "s",
)


class Bench:
    """One network with its data; images are decoded once."""

    def __init__(self, model: Model, calibration: Data, test: Data) -> None:
        self.model = model
        self.calibration, self.test = (
            dataclasses.replace(data, read=functools.cache(data.read)) for data in (calibration, test)
        )
        self.study = modhifi.analyze(model, calibration, samples=min(512, len(calibration)))

    def judge(self, changed: Model, baseline: Model | None = None) -> Evaluation:
        return modhifi.evaluate(changed, self.test, baseline=baseline, latency=False)

    def forget(self, name: str, method: str, depth: int | None = None) -> tuple[Model, float, bool]:
        """The changed network, the seconds it took, and whether the first target was out of reach."""
        start = time.perf_counter()
        for target in TARGETS:
            try:
                plan = modhifi.unlearn(
                    self.study,
                    [name],
                    self.calibration,
                    method=method,
                    target=target,
                    depth=depth,
                    samples=SAMPLES,
                    model=self.model,
                )
            except UserError as error:
                if target == TARGETS[-1] or "raise the target" not in str(error):
                    raise
                continue
            return modhifi.apply(plan, self.model), time.perf_counter() - start, target != TARGETS[0]
        raise AssertionError("the last target is raised above")


Row = tuple[Evaluation, float, bool]


def cell(values: Sequence[float | None], worst: Callable[[Sequence[float]], float], scale: float = 100) -> str:
    known = [scale * value for value in values if value is not None]
    if not known:
        return "n/a"
    digits = 1 if scale == 100 else 2
    return f"{statistics.mean(known):.{digits}f} ({worst(known):.{digits}f})"


def line(title: str, rows: Sequence[Row], suffix: str = "") -> list[str]:
    """``suffix``: ``_before`` for the unchanged network's measures."""

    def of(name: str) -> list[float | None]:
        return [getattr(e, name + suffix) for e, _, _ in rows]

    steps = rows[0][0].relearning_steps or []
    curves = [curve or [] for curve in (getattr(e, f"relearning_accuracy{suffix}") for e, _, _ in rows)]
    return [
        title,
        cell(of("forget_accuracy"), max),
        cell(of("retain_accuracy"), min),
        cell(of("probe_accuracy"), max),
        cell(of("mia"), max, 1),
        *(cell([curve[steps.index(step)] for curve in curves], max) for step in (5, 20)),
        cell(of("bn_recall_accuracy"), max),
        cell(of("bn_recall_retain_accuracy"), min),
        "" if suffix else str(sum(missed for _, _, missed in rows)),
        "" if suffix else f"{statistics.mean(seconds for _, seconds, _ in rows):.1f}",
    ]


def table(title: str, head: Sequence[str]) -> None:
    print(f"\n**{title}**\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)


def show(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def compare(bench: Bench, classes: Sequence[str], methods: Sequence[str], title: str, retrained: bool = False) -> None:
    table(f"{title}: {len(classes)} classes in turn, {len(bench.test):,} test images", HEAD)
    masks: list[Row] = []
    for name in classes:
        changed, seconds, missed = bench.forget(name, "mask")
        masks.append((bench.judge(changed, bench.model), seconds, missed))
        note(f"mask without {name}")
    show(line("unchanged", masks, "_before"))
    show(line(METHODS["mask"].title, masks))
    if retrained:
        rows = []
        for name in classes:
            index = bench.model.classes.index(name)
            images = modhifi.load_data("digits", split="train")
            assert images.targets is not None
            start = time.perf_counter()
            net = digits_resnet20.train(images.where(images.targets != index), 0, digits_resnet20.EPOCHS)
            seconds = time.perf_counter() - start
            changed, _, _ = bench.forget(name, "mask")
            changed = dataclasses.replace(
                changed, module=net.requires_grad_(False).to(bench.model.device), fingerprint=fingerprint(net)
            )
            rows.append((bench.judge(changed), seconds, False))
            note(
                f"retrained without {name}: probe {rows[-1][0].probe_accuracy}, relearned {rows[-1][0].relearning_accuracy}"
            )
        show(line("Retrained without the class (gradients)", rows))
    for method in methods:
        if method == "mask":
            continue
        rows = []
        for name in classes:
            changed, seconds, missed = bench.forget(name, method)
            rows.append((bench.judge(changed), seconds, missed))
            e = rows[-1][0]
            note(
                f"{method} without {name}: forget {e.forget_accuracy:.3f} retain {e.retain_accuracy:.4f} probe"
                f" {e.probe_accuracy} mia {e.mia} relearned {e.relearning_accuracy} recall {e.bn_recall_accuracy},"
                f" {e.bn_recall_retain_accuracy}; {seconds:.1f} s, missed {missed}"
            )
        show(line(METHODS[method].title + (" (gradients)" if METHODS[method].gradients else ""), rows))


def depths(bench: Bench, classes: Sequence[str], title: str) -> None:
    """What is left inside against what it costs, over the strength of the erasure: how many layers it reaches into."""
    table(f"{title}: erasure by depth, {len(classes)} classes in turn", ["layers", "forget", "retain", "probe"])
    for depth in (1, 3, 6, 9):
        rows = [(bench.judge(bench.forget(name, "erase", depth)[0]), 0.0, False) for name in classes]
        show([str(depth), *line("", rows)[1:4]])
        note(f"depth {depth}")


def note(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def digits(name: str, device: str) -> Bench:
    return Bench(
        modhifi.load_model(name, device=device), modhifi.load_data("digits"), modhifi.load_data("digits", split="test")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument("--tables", default="digits,vit,resnet56,depths", help="comma separated (default: all four)")
    parser.add_argument("--classes", default="all", help="comma separated indices")
    parser.add_argument("--methods", default="all", help=f"comma separated: {', '.join(ALL)}")
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    methods = ALL if asked.methods == "all" else asked.methods.split(",")

    def classes(model: Model) -> list[str]:
        return [model.classes[int(i)] for i in (range(10) if asked.classes == "all" else asked.classes.split(","))]

    @functools.cache
    def resnet56() -> Bench:
        if asked.data_root is None or asked.checkpoints is None:
            parser.error("the tables of resnet56 need --data-root and --checkpoints")
        weights = asked.checkpoints / "resnet56-4bfd9763.th"
        model = modhifi.load_model("cifar10-resnet56", weights, device=asked.device)
        calibration = modhifi.load_data("cifar10", asked.data_root, "train", SAMPLES)
        return Bench(model, calibration, modhifi.load_data("cifar10", asked.data_root, "test"))

    for name in asked.tables.split(","):
        if name == "digits":
            bench = digits("digits-resnet20", asked.device)
            compare(bench, classes(bench.model), methods, "digits-resnet20", retrained=True)
        elif name == "vit":
            bench = digits("digits-vit", asked.device)
            compare(bench, classes(bench.model), methods, "digits-vit")
        elif name == "resnet56":
            compare(resnet56(), classes(resnet56().model), methods, "cifar10-resnet56")
        elif name == "depths":
            depths(resnet56(), classes(resnet56().model), "cifar10-resnet56")
        else:
            parser.error(f"unknown table {name!r}")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
