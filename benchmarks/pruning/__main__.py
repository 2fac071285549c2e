"""How much accuracy stays at which budget: this project's pruning, what it is made of, and what it is compared with.

    python benchmarks/pruning --data-root CIFAR10 --checkpoints FOLDER [--tables all] [--seeds 3] [--chart FILE.svg]

``CIFAR10`` holds CIFAR-10 as `modhifi.load_data` reads it, ``FOLDER`` resnet20-12fca82f.th and resnet56-4bfd9763.th of
github.com/akamaster/pytorch_resnet_cifar10. Prints the tables that the README shows. Nothing is fine-tuned; calibration looks at
512 training images without their labels (2,000 for cifar10-vgg8, whose layers have up to 2,304 inputs), and *seeds* are draws of
those images; a row without a spread is of one draw. Accuracy is that on all test images. About an hour on two CPU cores.
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

SAMPLES = {"cifar10-vgg8": 2000}
USUAL = 512
BUDGETS = (0.75, 0.5, 0.375, 0.25)
CHECKPOINTS = {"cifar10-resnet56": "resnet56-4bfd9763.th", "cifar10-resnet20": "resnet20-12fca82f.th"}
LABEL_FREE = [score.name for score in scores() if score.baseline and not score.needs_labels]


class Bench:
    """Networks, studies and test images, each made once."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.root, self.checkpoints, self.seeds, self.device = (
            asked.data_root,
            asked.checkpoints,
            asked.seeds,
            asked.device,
        )
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
        """Per cent."""
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
        """Mean and half of the range over the seeds."""
        found = [make(seed) for seed in range(self.seeds)]
        spread = (max(found) - min(found)) / 2
        return f"{statistics.mean(found):.2f}" + (f" ± {spread:.2f}" if self.seeds > 1 else "")

    def rows(
        self, name: str, ours: Sequence[str], others: Sequence[str], remains: Sequence[float]
    ) -> Iterable[list[str]]:
        """A row a method: this project's with a spread over the seeds, what it is compared with from one draw."""
        for method in ours:
            runs = (
                self.several(lambda seed, method=method, remain=remain: self.method(name, method, remain, seed))
                for remain in remains
            )
            yield [pruning_methods()[method].title, *runs]
        for method in others:
            yield [pruning_methods()[method].title, *(f"{self.method(name, method, remain):.2f}" for remain in remains)]


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(f"\n**{title}**\n", flush=True)
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def budgets(bench: Bench, name: str) -> None:
    """This project's way and the best that has no labels, over the budgets."""
    ours = ("studio", "studio+bn", "one-shot", "one-shot+bn")
    draws = f"mean ± half the range of {bench.seeds} draws"
    title = f"{name}, {USUAL} unlabelled images, {draws}; unchanged {bench.accuracy(name):.2f}%"
    head = ("accuracy, % at", *(f"{remain:.1%} of FLOPs" for remain in BUDGETS))
    table(title, head, bench.rows(name, ours, [*(f"{score}+bn" for score in LABEL_FREE), "l2"], BUDGETS))


def baselines(bench: Bench, name: str) -> None:
    """What others would do at their best: channels of residual streams, whose removal hurts most, are left whole for them."""
    study, model = bench.study(name), bench.model(name)
    streams = {group.name: group.size for group in study.groups if group.kind == "stream"}
    asked = [(f"{score}+bn", True) for score in LABEL_FREE] + [("l2+full", False), ("l2+full", True), ("l2", False)]

    def rows() -> Iterable[Sequence[str]]:
        for method, recalibrate in asked:
            how = pruning_methods()[method]
            found = []
            for remain in BUDGETS:
                spec = how.for_budget(study, "flops", remain)
                spec = spec.changed(overrides=streams, recalibrate_bn=recalibrate)
                plan = modhifi.prune(study, spec, model=model)
                accuracy = bench.accuracy(name, plan)
                found.append(f"{accuracy:.2f}")
                title = how.title + (", BN re-estimated" if recalibrate and not how.spec.recalibrate_bn else "")
                bench.points.append((name, f"{title}, whole streams", remain, accuracy))
            yield title, *found

    head = ("accuracy, % at", *(f"{remain:.1%} of FLOPs" for remain in BUDGETS))
    table(f"{name}, label-free baselines with whole residual streams, one draw", head, rows())


def ablation(bench: Bench, name: str) -> None:
    """Each part switched off in turn."""
    shares = (0.5, 0.375)
    parts: dict[str, str | dict[str, object]] = {
        "everything": "studio",
        "raw moments, no constant put back": {"centred": False},
        "one-shot (full) instead of sequential": "one-shot",
        "no drift correction": {"drift": False},
        "outputs met also where a ReLU cuts them off": {"rectified": False},
        "uniform instead of global allocation": {"allocation": "uniform"},
        "with BatchNorm re-estimated": "studio+bn",
        "one-shot, BatchNorm re-estimated": "one-shot+bn",
    }

    def measured(part: str | dict[str, object], remain: float, seed: int) -> float:
        if isinstance(part, str):
            return bench.method(name, part, remain, seed)
        plan = modhifi.prune(bench.study(name, seed), flops=remain, model=bench.model(name), **part)
        return bench.accuracy(name, plan)

    rows = (
        (words, *(bench.several(lambda seed, part=part, at=at: measured(part, at, seed)) for at in shares))
        for words, part in parts.items()
    )
    table(f"{name}, parts switched off in turn", ("accuracy, % at", *(f"{at:.1%} of FLOPs" for at in shares)), rows)


def methods(bench: Bench, name: str) -> None:
    """Every method at half of the FLOPs, one draw."""

    def rows() -> Iterable[Sequence[str]]:
        for method in pruning_methods().values():
            began = time.perf_counter()
            found = bench.method(name, method.name, 0.5)
            yield method.title, f"{found:.2f}", f"{time.perf_counter() - began:.1f}"

    table(f"{name}, every method at 50% of FLOPs, one draw", ("", "accuracy, %", "seconds, test included"), rows())


def data_free(bench: Bench, name: str) -> None:
    """Calibration without any data."""

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
    title = f"{name}, {SAMPLES[name]} unlabelled images, {bench.seeds} draws; unchanged {bench.accuracy(name):.2f}%"
    table(title, ("accuracy, % at", *(f"{1 / share:.0f}× fewer FLOPs" for share in shares)), rows)


def digits(bench: Bench, name: str) -> None:
    """The default network."""
    title = f"{name}, {USUAL} unlabelled images, {bench.seeds} draws; unchanged {bench.accuracy(name):.1f}%"
    head = ("accuracy, % at", *(f"{remain:.1%} of FLOPs" for remain in BUDGETS))
    table(title, head, bench.rows(name, ("studio", "one-shot", "one-shot+bn"), ("l2+bn", "l2"), BUDGETS))


def latency(bench: Bench, name: str) -> None:
    """A budget of measured time: half of what the network takes."""

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

    head = ("half of the latency asked for", "ms before", "ms after", "that is", "FLOPs left", "accuracy, %")
    table("Measured latency as the budget, measured again afterwards in turns", head, rows())


def times(bench: Bench, name: str) -> None:
    """Seconds of each step beside one pass over the calibration set."""
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
    steps = {
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
    table(f"{name}, {where}, median of 3", ("", "seconds", "in such passes"), rows)


def chart(bench: Bench, name: str, path: Path) -> None:
    """Accuracy against FLOPs of what was measured of one network, as SVG."""
    width, height, left, right, bottom = 820, 360, 56, 300, 44
    colours = ("#2F7FE0", "#D9730D", "#7C8798", "#1B9E77", "#B0609F")
    shown = [pruning_methods()[method].title for method in ("studio", "one-shot+bn", "one-shot")]
    shown += [f"{pruning_methods()[method].title}, whole streams" for method in ("l2+bn", "l2")]

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
    parts.append(f'<text x="{width - right + 34}" y="20" fill="#222">unchanged</text>')
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
    "latency": (latency, "cifar10-vgg8"),
    "baselines": (baselines, "cifar10-resnet56"),
    "ablation": (ablation, "cifar10-resnet56"),
    "methods": (methods, "cifar10-resnet56"),
    "data-free": (data_free, "cifar10-resnet56"),
    "times": (times, "cifar10-resnet56"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--tables", default="all", help=f"comma separated: {', '.join(TABLES)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--chart", type=Path, help="write the chart of resnet56 here, as SVG")
    asked = parser.parse_args()
    bench = Bench(asked)
    for name in TABLES if asked.tables == "all" else asked.tables.split(","):
        make, network = TABLES[name]
        make(bench, network)
    if asked.chart is not None:
        chart(bench, "cifar10-resnet56", asked.chart)


if __name__ == "__main__":
    main()
