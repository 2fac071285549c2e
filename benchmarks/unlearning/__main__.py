"""Class unlearning: what each method forgets, what it costs, and what brings the class back under every attack.

    python benchmarks/unlearning --data-root CIFAR10 --checkpoints FOLDER [--tables TABLES] [--classes 0,3] [--methods all]

``CIFAR10`` contains CIFAR-10 as `modhifi.load_data` reads it, ``FOLDER`` resnet56-4bfd9763.th from
github.com/akamaster/pytorch_resnet_cifar10; the digits tables need neither. Prints the tables of docs/results/unlearning.md,
and with *depths* erasure by the number of layers that it edits. Each class is forgotten in turn, with at most 1,000 calibration
images, and judged on the test images. A cell is the mean over the classes, with the worst class in brackets.

A method that cannot bring the accuracy on the calibration images of the class to 0% is given the next of `TARGETS`; *missed*
counts the classes for which this was needed, and a class for which no target is reached is omitted from the row. Columns:
*probe*, a linear probe on the penultimate features; *membership*, the area under the ROC curve; *relearned*, the forget
accuracy after 5 and 20 steps; *BN recall*, the forget and retain accuracy after BatchNorm is re-estimated on the retained
classes. Values are in percent, except for the area, the count and the seconds that a method takes.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import modhifi
from assets import digits_resnet20
from modhifi import Data, Model, UserError
from modhifi.evaluation import (
    Prediction,
    hiding_logit,
    masked,
    masked_model,
    match_labels,
    membership,
    predict,
    probe_accuracy,
    recalled,
    relearning,
)
from modhifi.unlearning import unlearning_methods

SAMPLES = 1000
TARGETS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
ALL = tuple(name for name in unlearning_methods() if name != "mask")
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


@dataclasses.dataclass(frozen=True)
class Judged:
    """One network after forgetting one class; None if a value was not requested or cannot be measured."""

    forget: float
    retain: float
    probe: float
    membership: float | None
    relearned: tuple[float, float] | None
    recall: tuple[float, float] | None


class Bench:
    """One network with its data; images are decoded once, and the original network predicts once."""

    def __init__(self, model: Model, calibration: Data, test: Data, attacker: Data, relearn: bool) -> None:
        self.model = model
        self.calibration, self.test, self.attacker = (
            dataclasses.replace(data, read=functools.cache(data.read)) for data in (calibration, test, attacker)
        )
        self.members = match_labels(modhifi.load_data(test.spec, test.root, "train"), model)
        self.relearn = relearn
        self.study = modhifi.analyze(model, calibration, samples=min(512, len(calibration)))
        self.dense = predict(model, match_labels(self.test, model), features=True)

    def judge(self, changed: Model, index: int, mask: bool = False, found: Prediction | None = None) -> Judged:
        """``mask``: judge the original network behind a logit mask; ``found``: its predictions on the test images, if known."""
        rest = [i for i in range(len(changed.classes)) if i != index]
        assert self.dense.logits is not None
        hidden = hiding_logit(self.dense.logits, [index]) if mask else 0.0

        def seen(prediction: Prediction) -> Prediction:
            return masked(prediction, [index], hidden) if mask else prediction

        test = match_labels(self.test, changed)
        prediction = found or predict(changed, test, features=True)
        after = seen(prediction)
        attacker = match_labels(self.attacker, changed)
        assert attacker.targets is not None
        assert self.members.targets is not None
        inside = self.members.where(self.members.targets == index).take(500)
        recall = recalled(changed, attacker.where(attacker.targets != index), test)
        recall = None if recall is None else seen(recall)
        curve = None
        if self.relearn:
            start = masked_model(changed, [index], hidden) if mask else changed
            curve = relearning(start, attacker, test, [index], steps=(5, 20))
        return Judged(
            forget=after.accuracy([index]) or 0.0,
            retain=after.accuracy(rest) or 0.0,
            probe=probe_accuracy(prediction, [index]),
            membership=membership(seen(predict(changed, inside)), after, [index]),
            relearned=None if curve is None else (curve[0], curve[1]),
            recall=None if recall is None else (recall.accuracy([index]) or 0.0, recall.accuracy(rest) or 0.0),
        )

    def forget(self, name: str, method: str, depth: int | None = None) -> tuple[Model, float, bool] | None:
        """The edited network, the seconds it took, and whether the first target was missed; None if every target was."""
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
                if "raise the target" not in str(error):
                    raise
                continue
            return modhifi.apply(plan, self.model), time.perf_counter() - start, target != TARGETS[0]
        return None


Row = tuple[Judged, float, bool]


def cell(values: Sequence[float | None], worst: Callable[[Sequence[float]], float], scale: float = 100) -> str:
    known = [scale * value for value in values if value is not None]
    if not known:
        return "n/a"
    digits = 1 if scale == 100 else 2
    return f"{statistics.mean(known):.{digits}f} ({worst(known):.{digits}f})"


def line(title: str, rows: Sequence[Row], timed: bool = True) -> list[str]:
    judged = [row[0] for row in rows]
    return [
        title,
        cell([one.forget for one in judged], max),
        cell([one.retain for one in judged], min),
        cell([one.probe for one in judged], max),
        cell([one.membership for one in judged], max, 1),
        *(cell([one.relearned and one.relearned[i] for one in judged], max) for i in (0, 1)),
        cell([one.recall and one.recall[0] for one in judged], max),
        cell([one.recall and one.recall[1] for one in judged], min),
        str(sum(missed for _, _, missed in rows)) if timed else "",
        f"{statistics.mean(seconds for _, seconds, _ in rows):.1f}" if timed else "",
    ]


def table(title: str, head: Sequence[str]) -> None:
    print(f"\n**{title}**\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)


def show(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def compare(bench: Bench, classes: Sequence[str], methods: Sequence[str], title: str, retrained: int = 0) -> None:
    table(f"{title}: {len(classes)} classes in turn, {len(bench.test):,} test images", HEAD)
    for mask in (False, True):
        rows = []
        for name in classes:
            rows.append((bench.judge(bench.model, bench.model.classes.index(name), mask, bench.dense), 0.0, False))
            note(f"{'mask' if mask else 'original'} {name}: {rows[-1][0]}")
        show(line(unlearning_methods()["mask"].title if mask else "Original network", rows, timed=False))
    for method in methods:
        rows = []
        for name in classes:
            made = bench.forget(name, method)
            if made is None:
                note(f"{method} without {name}: no target reached")
                continue
            changed, seconds, missed = made
            rows.append((bench.judge(changed, bench.model.classes.index(name)), seconds, missed))
            note(f"{method} without {name}: {rows[-1][0]}; {seconds:.1f} s, missed {missed}")
        heading = unlearning_methods()[method].title + (
            " (gradients)" if unlearning_methods()[method].gradients else ""
        )
        if len(rows) < len(classes):
            heading += f", {len(classes) - len(rows)} without a result"
        if rows:
            show(line(heading, rows))
    rows = []
    for name in classes[:retrained]:
        index = bench.model.classes.index(name)
        images = modhifi.load_data("digits", split="train")
        assert images.targets is not None
        start = time.perf_counter()
        net = digits_resnet20.train(images.where(images.targets != index), 0, digits_resnet20.EPOCHS)
        seconds = time.perf_counter() - start
        module = net.requires_grad_(False).to(bench.model.device)
        rows.append((bench.judge(dataclasses.replace(bench.model, module=module), index), seconds, False))
        note(f"retrained without {name}: {rows[-1][0]}")
    if rows:
        show(line(f"Retrained without the class (gradients), {len(rows)} classes", rows))


def depths(bench: Bench, classes: Sequence[str], title: str) -> None:
    """What remains of the class against what erasure costs, by the number of layers that erasure edits."""
    table(f"{title}: erasure by depth, {len(classes)} classes in turn", ["layers", "forget", "retain", "probe"])
    for depth in (1, 3, 6, 9):
        made = [(name, bench.forget(name, "erase", depth)) for name in classes]
        rows = [(bench.judge(one[0], bench.model.classes.index(name)), 0.0, False) for name, one in made if one]
        show([str(depth), *line("", rows)[1:4]])
        note(f"depth {depth}")


def note(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def digits(name: str, args: argparse.Namespace) -> Bench:
    calibration, test = (modhifi.load_data("digits", split=split) for split in ("calibration", "test"))
    relearn = not args.no_relearning
    return Bench(modhifi.load_model(name, device=args.device), calibration, test, calibration, relearn=relearn)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-root", type=Path, help="folder of CIFAR-10")
    parser.add_argument("--checkpoints", type=Path, help="folder of the checkpoint")
    parser.add_argument("--tables", default="digits,vit,resnet56,depths", help="comma-separated (default: all four)")
    parser.add_argument("--classes", default="all", help="comma-separated indices (default: all)")
    parser.add_argument("--methods", default="all", help=f"comma-separated: {', '.join(ALL)}")
    parser.add_argument("--retrained", type=int, default=10, help="number of digits classes to retrain without")
    parser.add_argument("--no-relearning", action="store_true", help="omit relearning, the slowest attack")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    methods = ALL if args.methods == "all" else args.methods.split(",")

    def classes(model: Model) -> list[str]:
        return [model.classes[int(i)] for i in (range(10) if args.classes == "all" else args.classes.split(","))]

    @functools.cache
    def resnet56() -> Bench:
        if args.data_root is None or args.checkpoints is None:
            parser.error("the tables of resnet56 need --data-root and --checkpoints")
        weights = args.checkpoints / "resnet56-4bfd9763.th"
        model = modhifi.load_model("cifar10-resnet56", weights, device=args.device)
        calibration = modhifi.load_data("cifar10", args.data_root, "train", SAMPLES)
        test = modhifi.load_data("cifar10", args.data_root, "test")
        # The attacker has different images.
        attacker = modhifi.load_data("cifar10", args.data_root, "train", SAMPLES, seed=1)
        return Bench(model, calibration, test, attacker, relearn=not args.no_relearning)

    for name in args.tables.split(","):
        if name == "digits":
            bench = digits("digits-resnet20", args)
            compare(bench, classes(bench.model), methods, "digits-resnet20", args.retrained)
        elif name == "vit":
            bench = digits("digits-vit", args)
            compare(bench, classes(bench.model), methods, "digits-vit")
        elif name == "resnet56":
            compare(resnet56(), classes(resnet56().model), methods, "cifar10-resnet56")
        elif name == "depths":
            depths(resnet56(), classes(resnet56().model), "cifar10-resnet56")
        else:
            parser.error(f"unknown table {name!r}")


if __name__ == "__main__":
    main()
