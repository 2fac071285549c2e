"""The cost of collecting the statistics, in forward passes of the same images in the same run.

    python benchmarks/statistics [--model timm:resnet50] [--samples 128] [--batch 32] [--device auto] [--rounds 3]

Prints the table of docs/results/statistics.md. Memory is the peak above that of the plain forward pass: of the process, with
each step in its own process, or of the device's allocator on a GPU. The naive approaches are run in full on a few of the images
and related to a plain forward pass of the same images.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import modhifi
from modhifi.components import enumerate_components
from modhifi.statistics import collect, collect_singletons
from modhifi.study import read_columns

NAIVE_IMAGES = 4
STEPS = ("forward", "singletons", "moments", "moments and class tables")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="timm:resnet50")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-of", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    bench = Bench(args)
    if args.memory_of:
        print(bench.peak(args.memory_of))
        return
    memory = {step: memory_of(step) for step in STEPS}
    times: dict[str, list[float]] = {step: [] for step in STEPS}
    for step in STEPS:
        bench.steps[step](bench.images[: args.batch])  # warm-up: allocates memory and selects kernels
    for _ in range(args.rounds):
        for step in STEPS:  # in turn, so that a change of clock speed affects all of them
            times[step].append(bench.seconds(step))
    where = torch.cuda.get_device_name() if bench.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    size = "×".join(map(str, bench.images.shape[1:]))
    print(f"{args.model}, {args.samples} images of {size}, {where}, median of {args.rounds} rounds\n")
    print("| | forward passes | seconds | GB above the forward pass |")
    print("|---|---|---|---|")
    for step in STEPS:
        ratios = [own / plain for own, plain in zip(times[step], times["forward"], strict=True)]
        above = (memory[step] - memory["forward"]) / 2**30
        print(f"| {step} | {statistics.median(ratios):.2f} | {statistics.median(times[step]):.2f} | {above:.2f} |")
    for name, ratio in bench.naive().items():
        print(f"| {name} | {ratio:.0f} | | |")


def memory_of(step: str) -> int:
    """Peak memory of ``step`` in bytes, measured in a separate process."""
    command = [sys.executable, *sys.argv, "--memory-of", step]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        model = modhifi.load_model(args.model, device=args.device)
        self.net, self.device, self.batch = model.module, model.device, args.batch
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(args.samples, *model.input.shape, generator=generator)
        structure = enumerate_components(self.net, model.example())
        self.groups = {name: read_columns(structure, name) for name in structure.readers}
        self.columns = {
            name: torch.cat([c.reshape(-1, c.shape[1]) for c in g.values()]) for name, g in self.groups.items()
        }
        classes = len(model.classes)
        self.steps: dict[str, Callable[[Tensor], object]] = {
            "forward": self.forward,
            "singletons": lambda images: collect_singletons(
                self.net, self.columns, images.split(self.batch), len(images)
            ),
            "moments": lambda images: self.collect(images, 0),
            "moments and class tables": lambda images: self.collect(images, classes),
        }
        # The layer for the naive approaches: a 3×3 convolution that reads a block's own channels.
        self.layer = next(name for name, columns in self.columns.items() if columns.shape[1] > 1)

    def collect(self, images: Tensor, classes: int) -> object:
        batches = lambda start: images[start:].split(self.batch)  # noqa: E731
        return collect(self.net, self.groups, batches, len(images), classes=classes)

    def forward(self, images: Tensor) -> None:
        with torch.inference_mode():
            for batch in images.split(self.batch):
                self.net(batch.to(self.device))

    def seconds(self, step: str) -> float:
        self._wait()
        began = time.perf_counter()
        self.steps[step](self.images)
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak(self, step: str) -> int:
        self.steps[step](self.images)
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def naive(self) -> dict[str, float]:
        from captum.attr import LayerFeatureAblation

        images = self.images[:NAIVE_IMAGES].to(self.device)
        layer = self.net.get_submodule(self.layer)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        channels = layer.weight.shape[1]

        def timed(work: Callable[[], object]) -> float:
            work()
            self._wait()
            began = time.perf_counter()
            work()
            self._wait()
            return time.perf_counter() - began

        def masked() -> None:
            with torch.inference_mode():
                own = layer.weight.data.clone()
                for channel in range(channels):
                    layer.weight.data[:, channel] = 0
                    self.net(images)
                    layer.weight.data.copy_(own)

        def captum() -> None:
            ablation = LayerFeatureAblation(lambda x: self.net(x).max(1).values, layer)
            mask = torch.arange(channels, device=self.device)[None, :, None, None]
            ablation.attribute(images, layer_mask=mask, attribute_to_layer_input=True)

        plain = timed(lambda: self.forward(images))
        of = f"every component of {self.layer} ({channels})"
        return {
            f"one masked forward pass for {of}": timed(masked) / plain,
            f"captum's feature ablation of {of}": timed(captum) / plain,
        }


if __name__ == "__main__":
    main()
