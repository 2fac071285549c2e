"""Accuracy of pruned networks by budget: this project's pruning, its ablation, and baselines.

    python benchmarks/pruning --data-root CIFAR10 --checkpoints FOLDER [--imagenet FOLDER] [--tables all] [--seeds 3]
        [--chart FILE.svg]

``CIFAR10`` contains CIFAR-10 as `modhifi.load_data` reads it, ``FOLDER`` resnet20-12fca82f.th and resnet56-4bfd9763.th from
github.com/akamaster/pytorch_resnet_cifar10. Prints the tables of docs/results/pruning.md. Nothing is fine-tuned; calibration
uses 512 training images without their labels (2,000 for cifar10-vgg8, whose layers have up to 2,304 inputs). *seeds* are draws
of these images; rows without a spread are one draw. Accuracy is measured on all test images. Takes about an hour on two CPU
cores. The table photographs takes efficientnet_lite0.safetensors from ``FOLDER`` too, and calibration.parquet and test.parquet
from the folder of ImageNet.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import modhifi
from modhifi import Data, Model, Plan, Study
from modhifi.evaluation import measure_latency
from modhifi.pruning import pruning_methods, scores
from modhifi.specs import PruningSpec

PHOTOGRAPHS = "timm:tf_efficientnet_lite0"
SAMPLES = {"cifar10-vgg8": 2000}
USUAL = 512
BUDGETS = (0.75, 0.5, 0.375, 0.25)
CHECKPOINTS = {
    "cifar10-resnet56": "resnet56-4bfd9763.th",
    "cifar10-resnet20": "resnet20-12fca82f.th",
    PHOTOGRAPHS: "efficientnet_lite0.safetensors",
}
LABEL_FREE = [score.name for score in scores() if score.baseline and not score.needs_labels]


class Bench:
    """Networks, studies and test images, each created once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.root, self.checkpoints, self.seeds, self.device = (
            args.data_root,
            args.checkpoints,
            args.seeds,
            args.device,
        )
        self.imagenet = args.imagenet
        self.method = functools.cache(self._method)
        self.points: list[tuple[str, str, float, float]] = []
        self.model = functools.cache(self._model)
        self.study = functools.cache(self._study)
        self.images = functools.cache(self._images)

    def _model(self, name: str) -> Model:
        weights = self.checkpoints / CHECKPOINTS[name] if name in CHECKPOINTS else None
        return modhifi.load_model(name, weights, device=self.device)

    def data(self, name: str, split: str) -> Data:
        if name.startswith("digits"):
            return modhifi.load_data("digits", split=split)
        if name == PHOTOGRAPHS:
            return modhifi.load_data(self.imagenet / f"{split}.parquet")
        return modhifi.load_data("cifar10", self.root, split)

    def _study(self, name: str, seed: int = 0, source: str | None = None) -> Study:
        data = self.data(name, "calibration") if source is None else modhifi.load_data(source)
        return modhifi.analyze(self.model(name), data, samples=SAMPLES.get(name, USUAL), seed=seed)

    def _images(self, name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        model = self.model(name)
        found = self.data(name, "test").batches(model.input, 250)
        return [(images.to(model.device), labels.to(model.device)) for images, labels in found if labels is not None]

    @torch.inference_mode()
    def accuracy(self, name: str, plan: Plan | None = None) -> float:
        """Test accuracy in percent."""
        model = self.model(name)
        net = model.module if plan is None else modhifi.apply(plan, model).module
        batches = self.images(name)
        right = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in batches)
        return 100 * right / sum(len(labels) for _, labels in batches)

    def _method(self, name: str, method: str, remain: float, seed: int = 0) -> float:
        plan = pruning_methods()[method].plan(self.study(name, seed), "flops", remain, model=self.model(name))
        found = self.accuracy(name, plan)
        self.points.append((name, pruning_methods()[method].title, remain, found))
        return found

    def several(self, make: Callable[[int], float]) -> str:
        """Mean and half the range over the seeds."""
        found = [make(seed) for seed in range(self.seeds)]
        spread = (max(found) - min(found)) / 2
        return f"{statistics.mean(found):.2f}" + (f" ± {spread:.2f}" if self.seeds > 1 else "")

    def rows(
        self, name: str, ours: Sequence[str], others: Sequence[str], remains: Sequence[float]
    ) -> Iterable[list[str]]:
        """One row per method: this project's with the spread over the seeds, baselines from one draw."""
        for method in ours:
            runs = (self.several(functools.partial(self.method, name, method, remain)) for remain in remains)
            yield [pruning_methods()[method].title, *runs]
        for method in others:
            yield [pruning_methods()[method].title, *(f"{self.method(name, method, remain):.2f}" for remain in remains)]


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(f"\n**{title}**\n", flush=True)
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def budgets(bench: Bench, name: str) -> None:
    """This project's methods and label-free baselines, by budget."""
    ours = ("studio", "studio+bn", "one-shot", "one-shot+bn")
    draws = f"mean ± half the range of {bench.seeds} draws"
    title = f"{name}, {USUAL} unlabelled images, {draws}; original network {bench.accuracy(name):.2f}%"
    head = ("accuracy, % at", *(f"{remain:.1%} of FLOPs" for remain in BUDGETS))
    table(title, head, bench.rows(name, ours, [*(f"{score}+bn" for score in LABEL_FREE), "l2"], BUDGETS))


def baselines(bench: Bench, name: str) -> None:
    """Baselines at their best: channels of residual streams, whose removal hurts them most, are not pruned."""
    study, model = bench.study(name), bench.model(name)
    streams = {group.name: group.size for group in study.groups if group.kind == "stream"}
    variants = [(f"{score}+bn", True) for score in LABEL_FREE] + [("l2+full", False), ("l2+full", True), ("l2", False)]

    def rows() -> Iterable[Sequence[str]]:
        for method, recalibrate in variants:
            how = pruning_methods()[method]
            found = []
            for remain in BUDGETS:
                spec = how.for_budget(study, "flops", remain)
                spec = spec.changed(overrides=streams, recalibrate_bn=recalibrate)
                plan = modhifi.prune(study, spec, model=model)
                accuracy = bench.accuracy(name, plan)
                found.append(f"{accuracy:.2f}")
                title = how.title + (", BN re-estimated" if recalibrate and not how.spec.recalibrate_bn else "")
                bench.points.append((name, f"{title}, streams kept", remain, accuracy))
            yield title, *found

    head = ("accuracy, % at", *(f"{remain:.1%} of FLOPs" for remain in BUDGETS))
    table(f"{name}, label-free baselines without pruning residual streams, one draw", head, rows())


def ablation(bench: Bench, name: str) -> None:
    """Each part switched off in turn."""
    shares = (0.5, 0.375)
    parts: dict[str, str | PruningSpec] = {
        "everything": "studio",
        "raw moments, mean not restored in the bias": PruningSpec.of(centred=False),
        "one-shot (full) instead of sequential": "one-shot",
        "no drift correction": PruningSpec.of(drift=False),
        "outputs also fitted where a ReLU cuts them off": PruningSpec.of(rectified=False),
        "uniform instead of global allocation": PruningSpec.of(allocation="uniform"),
        "with BatchNorm re-estimated": "studio+bn",
        "one-shot, BatchNorm re-estimated": "one-shot+bn",
    }

    def measured(part: str | PruningSpec, remain: float, seed: int) -> float:
        if isinstance(part, str):
            return bench.method(name, part, remain, seed)
        spec = part.changed(budget="flops", remain=remain)
        plan = modhifi.prune(bench.study(name, seed), spec, model=bench.model(name))
        return bench.accuracy(name, plan)

    rows = (
        (words, *(bench.several(functools.partial(measured, part, at)) for at in shares))
        for words, part in parts.items()
    )
    table(f"{name}, parts switched off in turn", ("accuracy, % at", *(f"{at:.1%} of FLOPs" for at in shares)), rows)


def methods(bench: Bench, name: str) -> None:
    """Every method at half of the FLOPs, from one draw."""

    def rows() -> Iterable[Sequence[str]]:
        for method in pruning_methods().values():
            began = time.perf_counter()
            found = bench.method(name, method.name, 0.5)
            yield method.title, f"{found:.2f}", f"{time.perf_counter() - began:.1f}"

    table(f"{name}, every method at 50% of FLOPs, one draw", ("", "accuracy, %", "seconds, including the test"), rows())


def data_free(bench: Bench, name: str) -> None:
    """Calibration without data."""

    def rows() -> Iterable[Sequence[str]]:
        for source in (None, "dead-leaves", "noise", "inversion"):
            began = time.perf_counter()
            study = bench.study(name, 0, source)
            seconds = time.perf_counter() - began
            found = [
                bench.accuracy(name, modhifi.prune(study, flops=0.5, recalibrate_bn=bn, model=bench.model(name)))
                for bn in (False, True)
            ]
            yield source or "real images", *(f"{value:.2f}" for value in found), f"{seconds:.0f}"

    head = ("calibration", "accuracy, %", "BN re-estimated", "seconds for the study")
    table(f"{name}, 50% of FLOPs, calibration without data", head, rows())


def wide(bench: Bench, name: str) -> None:
    """The over-parameterised network."""
    shares = (0.5, 0.333, 0.25)
    rows = bench.rows(name, ("studio",), ("studio+bn", "one-shot", "l2+bn", "l2"), shares)
    title = (
        f"{name}, {SAMPLES[name]} unlabelled images, {bench.seeds} draws; original network {bench.accuracy(name):.2f}%"
    )
    table(title, ("accuracy, % at", *(f"{1 / share:.0f}× fewer FLOPs" for share in shares)), rows)


def photographs(bench: Bench, name: str) -> None:
    """A network for ImageNet, by the number and kind of calibration samples; no label and no gradient."""
    model, images = bench.model(name), bench._images(name)

    @torch.inference_mode()
    def answers(plan: Plan | None) -> torch.Tensor:
        net = model.module if plan is None else modhifi.apply(plan, model).module
        return torch.cat([net(batch).argmax(1) for batch, _ in images])

    before, labels = answers(None), torch.cat([labels for _, labels in images])
    shares = (0.9, 0.75, 0.5)

    def rows() -> Iterable[Sequence[str]]:
        for source, samples in ((None, 500), (None, 250), (None, 125), ("dead-leaves", 500)):
            data = bench.data(name, "calibration") if source is None else modhifi.load_data(source)
            study = modhifi.analyze(model, data, samples=samples, constants=("directional",))
            ways = ("studio", "one-shot", "one-shot+bn", "l2+bn", "group-norm+bn", "l2+full", "published")
            for method in ways if samples == 500 and source is None else ("studio",):
                how, found = pruning_methods()[method], []
                for remain in shares:
                    after = answers(how.plan(study, "flops", remain, model=model))
                    right, same = (100 * float((after == to).float().mean()) for to in (labels, before))
                    found.append(f"{right:.1f} ({same:.1f})")
                yield f"{source or 'photographs'}, {samples}", how.title, *found

    dense = 100 * float((before == labels).float().mean())
    title = f"{name}, {len(labels)} other photographs; original network {dense:.1f}%"
    head = ("calibration", "accuracy (agreement), % at", *(f"{share:.0%} of FLOPs" for share in shares))
    table(title, head, rows())


def digits(bench: Bench, name: str) -> None:
    """The default network."""
    title = f"{name}, {USUAL} unlabelled images, {bench.seeds} draws; original network {bench.accuracy(name):.1f}%"
    head = ("accuracy, % at", *(f"{remain:.1%} of FLOPs" for remain in BUDGETS))
    table(title, head, bench.rows(name, ("studio", "one-shot", "one-shot+bn"), ("l2+bn", "l2"), BUDGETS))


def latency(bench: Bench, name: str) -> None:
    """Latency as the budget: half of the original network's."""

    def rows() -> Iterable[Sequence[str]]:
        for network, batch in ((name, 1), (name, 16), ("digits-resnet20", 64)):
            model, study = bench.model(network), bench.study(network)
            for multiple in (1, 8):
                plan = modhifi.prune(study, latency=0.5, latency_batch=batch, multiple=multiple, model=model)
                small = modhifi.apply(plan, model)
                timings = measure_latency([small.module, model.module], model.example(batch))
                now, before = (timing.median for timing in timings)
                share = plan.predicted["flops"] / plan.predicted["flops_before"]
                yield (
                    f"{network}, batches of {batch}, multiples of {multiple}",
                    f"{before:.2f}",
                    f"{now:.2f}",
                    f"{now / before:.1%}",
                    f"{share:.1%}",
                    f"{bench.accuracy(network, plan):.2f}",
                )

    head = (
        "half of the latency requested",
        "original, ms",
        "pruned, ms",
        "latency ratio",
        "FLOPs that remain",
        "accuracy, %",
    )
    table("Latency as the budget, measured again afterwards, alternating between the two networks", head, rows())


def times(bench: Bench, name: str) -> None:
    """Time of each step, in seconds and in passes over the calibration images."""
    model = bench.model(name)
    drawn = bench.data(name, "calibration").take(USUAL)
    batches = [images.to(model.device) for images, _ in drawn.batches(model.input)]

    def seconds(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    def one_pass() -> None:
        with torch.inference_mode():
            for images in batches:
                model.module(images)

    one_pass()
    study = bench.study(name)
    decided = functools.partial(modhifi.allocate, study, flops=0.5)
    steps: dict[str, Callable[[], object]] = {
        "one pass over the calibration images": one_pass,
        "analysis (once for all plans)": lambda: bench._study(name),
        "deciding": decided,
        "deciding and full compensation": lambda: modhifi.prune(study, flops=0.5, compensate="full", model=model),
        "deciding and sequential compensation": lambda: modhifi.prune(study, flops=0.5, model=model),
    }
    taken = {words: statistics.median(seconds(work) for _ in range(3)) for words, work in steps.items()}
    one = taken["one pass over the calibration images"]
    where = torch.cuda.get_device_name() if model.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    rows = ((words, f"{value:.2f}", f"{value / one:.1f}") for words, value in taken.items())
    table(f"{name}, {where}, median of 3", ("", "seconds", "passes"), rows)


def chart(bench: Bench, name: str, path: Path) -> None:
    """Plots all measured accuracies of one network against FLOPs, as SVG."""
    width, height, left, right, bottom = 820, 360, 56, 300, 44
    colours = ("#2F7FE0", "#D9730D", "#7C8798", "#1B9E77", "#B0609F")
    shown = [pruning_methods()[method].title for method in ("studio", "one-shot+bn", "one-shot")]
    shown += [f"{pruning_methods()[method].title}, streams kept" for method in ("l2+bn", "l2")]

    def place(flops: float, accuracy: float) -> tuple[float, float]:
        return left + (width - left - right) * flops, 12 + (height - bottom - 12) * (1 - accuracy / 100)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for percent in range(0, 101, 20):
        _, y = place(0, percent)
        x, _ = place(percent / 100, 0)
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#444">{percent}%</text>')
        parts.append(f'<text x="{x:.1f}" y="{height - 26}" text-anchor="middle" fill="#444">{percent}%</text>')
    parts.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle" fill="#444">FLOPs that remain</text>'
    )
    x, y = place(1.0, bench.accuracy(name))
    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#444"/>')
    parts.append(f'<circle cx="{width - right + 24}" cy="16" r="5" fill="#444"/>')
    parts.append(f'<text x="{width - right + 34}" y="20" fill="#222">original network</text>')
    for row, (title, colour) in enumerate(zip(shown, colours, strict=True)):
        by_budget: dict[float, list[float]] = {}
        for network, of, flops, accuracy in bench.points:
            if (network, of) == (name, title):
                by_budget.setdefault(flops, []).append(accuracy)
        points = [place(f, statistics.mean(values)) for f, values in sorted(by_budget.items())]
        line = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{colour}"/>' for px, py in points]
        top = 40 + 20 * row
        parts.append(f'<circle cx="{width - right + 24}" cy="{top - 4}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{width - right + 34}" y="{top}" fill="#222">{title}</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


TABLES: dict[str, tuple[Callable[[Bench, str], None], str]] = {
    "digits": (digits, "digits-resnet20"),
    "resnet56": (budgets, "cifar10-resnet56"),
    "resnet20": (budgets, "cifar10-resnet20"),
    "vgg": (wide, "cifar10-vgg8"),
    "photographs": (photographs, PHOTOGRAPHS),
    "latency": (latency, "cifar10-vgg8"),
    "baselines": (baselines, "cifar10-resnet56"),
    "ablation": (ablation, "cifar10-resnet56"),
    "methods": (methods, "cifar10-resnet56"),
    "data-free": (data_free, "cifar10-resnet56"),
    "times": (times, "cifar10-resnet56"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument(
        "--imagenet", type=Path, help="folder of ImageNet photographs; without it, no table photographs"
    )
    parser.add_argument("--tables", default="all", help=f"comma-separated: {', '.join(TABLES)}")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the calibration images")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--chart", type=Path, help="SVG file to write the chart of resnet56 to")
    args = parser.parse_args()
    bench = Bench(args)
    for name in TABLES if args.tables == "all" else args.tables.split(","):
        make, network = TABLES[name]
        if network == PHOTOGRAPHS and args.imagenet is None:
            continue
        make(bench, network)
    if args.chart is not None:
        chart(bench, "cifar10-resnet56", args.chart)


if __name__ == "__main__":
    main()
