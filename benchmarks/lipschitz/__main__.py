"""The cost of Lipschitz constants, the tightness of the resulting bounds, and the value of the constants to the pruner.

    python benchmarks/lipschitz --data-root CIFAR10 --checkpoints FOLDER [--tables cost,bounds,pruning]

``CIFAR10`` and ``FOLDER`` are as in benchmarks/pruning; without them the rows of CIFAR-10 networks are omitted. Prints the
tables of docs/results/lipschitz.md. *cost*: every estimator for ``--model`` (all layers that read components), in forward
passes of the same images in the same run. *bounds*: bound over measured error, for single layers and whole plans, on the
images that the constants come from, and how often bounds with constants from other images are violated. *pruning*: accuracy
with global allocation weighted by each kind of constant, and without constants.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import modhifi
from modhifi import Data, Model, Study
from modhifi.components import enumerate_components
from modhifi.layers import Edit, flat_weight, get_operator
from modhifi.lipschitz import certified, jacobian, moved_by, pairs, random, smallest_norms
from modhifi.specs import Compensation, PruningSpec

CHECKPOINTS = {"cifar10-resnet56": "resnet56-4bfd9763.th", "cifar10-resnet20": "resnet20-12fca82f.th"}
SEEN = ("directional", "jacobian", "random", "pairs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", default="cost,bounds,pruning", help="comma-separated (default: all)")
    parser.add_argument("--model", default="timm:resnet50", help="network of the cost table")
    parser.add_argument("--samples", type=int, default=64, help="images of the cost table")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of the cost table")
    parser.add_argument("--data-root", help="folder of CIFAR-10")
    parser.add_argument("--checkpoints", type=Path, help="folder of the CIFAR-10 checkpoints")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    for name in args.tables.split(","):
        {"cost": cost, "bounds": bounds, "pruning": pruning}[name](args)


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(f"\n**{title}**\n", flush=True)
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def cost(args: argparse.Namespace) -> None:
    model = modhifi.load_model(args.model, device=args.device)
    net = model.module
    layers = list(enumerate_components(net, model.example()).readers)
    images = torch.randn(args.samples, *model.input.shape, generator=torch.Generator().manual_seed(0))
    edits = {name: half_of(flat_weight(get_operator(net, name))) for name in layers}
    start: dict[str, Tensor] = {}

    def directional() -> None:
        start.update(moved_by(net, edits, images)[1])

    def forward() -> None:
        with torch.inference_mode():
            for batch in images.split(16):
                net(batch.to(model.device))

    steps: dict[str, Callable[[], object]] = {
        "a plain forward pass": forward,
        "directional": directional,
        "Jacobian, from the directions that arrived": lambda: jacobian(net, layers, images, start=start, rounds=1),
        "random": lambda: random(net, layers, images),
        "pairs": lambda: pairs(net, layers, images),
        "smallest norms of LayerNorms": lambda: smallest_norms(net, images),
    }
    forward()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            # Time forward passes around each step, because the clock speed may change in between.
            before = seconds(forward, model.device)
            own = seconds(step, model.device)
            plain = (before + seconds(forward, model.device)) / 2
            times[name].append(own / plain)
            print(f"{name}: {own:.1f} s, {own / plain:.1f} passes", file=sys.stderr, flush=True)
    upper = seconds(lambda: certified(net, layers, images[:1]), model.device)
    where = torch.cuda.get_device_name() if model.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    medians = {name: statistics.median(found) for name, found in times.items()}
    rows = [[name, f"{found:.1f}"] for name, found in medians.items()]
    default = medians["directional"] + medians["Jacobian, from the directions that arrived"]
    rows.append(["**the default: directional and Jacobian**", f"**{default:.1f}**"])
    plain = seconds(forward, model.device)
    size = "×".join(map(str, model.input.shape))
    title = f"{args.model}, {len(layers)} layers, {args.samples} images of {size}, {where}; one pass {plain:.1f} s"
    table(title, ["", "forward passes"], rows)
    print(f"\noperator norms, once, no samples: {upper:.1f} s, {upper / plain:.1f} passes")


def half_of(weight: Tensor) -> Edit:
    """An edit that sets the second half of the columns to zero."""
    edited = weight.clone()
    edited[:, weight.shape[1] // 2 :] = 0
    return Edit(edited, weight.new_zeros(len(weight)))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def networks(args: argparse.Namespace, names: Sequence[str]) -> Iterator[tuple[str, Model, Study, Data]]:
    """Each available network, its study with operator norms (512 calibration images; 64 for timm networks), and test images."""
    for name in names:
        if name in CHECKPOINTS:
            if args.data_root is None or args.checkpoints is None:
                continue
            model = modhifi.load_model(name, args.checkpoints / CHECKPOINTS[name], device=args.device)
            calibration, test = (modhifi.load_data("cifar10", args.data_root, part) for part in ("calibration", "test"))
        elif name.startswith("timm:"):  # random weights
            model = modhifi.load_model(name, device=args.device)
            calibration = test = modhifi.load_data("dead-leaves")  # the images of the study are excluded
        else:
            model = modhifi.load_model(name, device=args.device)
            calibration, test = (modhifi.load_data("digits", split=part) for part in ("calibration", "test"))
        few = name.startswith("timm:")
        study = modhifi.analyze(
            model,
            calibration,
            samples=64 if few else 512,
            constants=(*SEEN, "certified"),
            constant_samples=16 if few else 64,
        )
        yield name, model, study, test


def bounds(args: argparse.Namespace) -> None:
    rows, lowest = [], []
    names = ("digits-resnet20", "cifar10-resnet56", "digits-vit", "timm:vit_tiny_patch16_224", "timm:convnext_atto")
    for name, model, study, test in networks(args, names):
        few = name.startswith("timm:")
        levels: tuple[Compensation, ...] = ("full",) if few else ("full", "sequential")
        for compensate in levels:
            for remain in (0.75, 0.5):
                plan = modhifi.prune(study, flops=remain, compensate=compensate, model=model)
                found = modhifi.bounds.measure(study, plan, test, samples=16 if few else 128, model=model)
                product = sum(modhifi.bounds.predict(study, plan, "certified").values())
                alone = [row.tightness for row in found.rows if row.tightness is not None]
                lowest.append((min(alone), name, compensate, remain))
                held = found.held_out
                assert held is not None
                assert found.tightness is not None
                grains = [found.grains[grain] for grain in ("block", "stage")]
                rows.append(
                    [
                        name,
                        "one-shot" if compensate == "full" else compensate,
                        f"{remain:.0%}",
                        f"{found.tightness:.1f}",
                        *(f"{one.tightness:.1f}" for one in grains),
                        f"{found.slack_maximum:.1f} × {found.slack_sum:.1f}",
                        f"{grains[-1].slack_maximum:.1f} × {grains[-1].slack_sum:.1f}",
                        f"{found.predicted / found.measured:.1f}",
                        f"{statistics.median(alone):.2f}",
                        f"{product / found.measured:.0e}",
                        f"{held.layers:.2%} ({held.expected:.2%})",
                        f"{held.plan:.2%}",
                    ]
                )
                print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    head = [
        "",
        "",
        "FLOPs",
        "by layer",
        "by block",
        "by stage",
        "worst-case gain × summation, by layer",
        "worst-case gain × summation, by stage",
        "predicted",
        "one layer, median",
        "operator norms",
        "violated (expected)",
        "plan",
    ]
    table("Bound over measured error", head, rows)
    ratio, *which = min(lowest)
    print(f"\nsmallest ratio of a single layer: {ratio:.6f} ({', '.join(map(str, which))})")


def pruning(args: argparse.Namespace) -> None:
    remains = (0.75, 0.5, 0.375, 0.25)
    for name, model, study, test in networks(args, ("cifar10-resnet56", "cifar10-resnet20", "digits-resnet20")):
        batches = [(x.to(model.device), y) for x, y in test.batches(model.input, 250) if y is not None]

        def accuracy(net: torch.nn.Module, batches: list[tuple[Tensor, Tensor]] = batches) -> float:
            with torch.inference_mode():
                right = sum(int((net(x).argmax(1).cpu() == y).sum()) for x, y in batches)
            return 100 * right / sum(len(y) for _, y in batches)

        rows = []
        for constants in (*SEEN, "certified", "none", "uniform"):
            spec = PruningSpec(allocation="uniform") if constants == "uniform" else PruningSpec(constants=constants)
            row = [
                {"certified": "operator norms", "none": "none: every layer alike", "uniform": "uniform widths"}.get(
                    constants, constants
                )
            ]
            for remain in remains:
                plan = modhifi.prune(study, spec.changed(budget="flops", remain=remain), model=model)
                row.append(f"{accuracy(modhifi.apply(plan, model).module):.2f}")
            rows.append(row)
            print(name, " | ".join(row), file=sys.stderr, flush=True)
        title = f"{name}, original network {accuracy(model.module):.2f}: accuracy, % at the FLOPs that remain"
        table(title, ["allocation weighted by", *(f"{remain:.1%}" for remain in remains)], rows)


if __name__ == "__main__":
    main()
