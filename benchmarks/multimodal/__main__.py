"""Whether modulating gradients helps: every balancing method on audio-visual digits, in late and early fusion, and a sweep.

    python benchmarks/multimodal --data FSDD [--tables main,batch-norm,sweep] [--seeds 3] [--processes 2]

``FSDD`` is a folder with the Free Spoken Digit Dataset as train.parquet and test.parquet; without it, the two halves of
scikit-learn's digits stand in. Prints the tables of docs/results/multimodal.md. *main*: joint training, AGM, OGM-GE (late
fusion only), MSLR, MSES and each modality alone, with the images degraded to `ENERGY` of their PCA energy. *batch-norm*: the
same with BatchNorm in the networks, at a third of the learning rate. *sweep*: joint training and AGM for every α in `ALPHAS`,
degradation in `ENERGIES` and fusion. Accuracies are in percent of the test pairs, mean ± deviation over seeds; each seed draws
its own training pairs. Diverging runs are reported as such. ``--out DIR`` keeps the runs of *main* and *batch-norm*.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from modhifi.multimodal import BALANCING_METHODS, Diverged, MeanSpread, Run, Settings, in_words, rows, train

ENERGY = 0.5
ALPHA = 1.0
ENERGIES = (0.25, 0.5, 1.0)
ALPHAS = (0.3, 1.0, 3.0)
FUSIONS = ("late", "early")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="folder of the Free Spoken Digit Dataset, or digits")
    parser.add_argument("--tables", default="main,batch-norm,sweep", help="comma-separated (default: all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=Settings().epochs)
    parser.add_argument("--pairs", type=int, help="training pairs (default: every image once)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder to keep the runs of main and batch-norm in")
    args = parser.parse_args()
    began = time.perf_counter()
    # One thread per process: the networks are small.
    with ProcessPoolExecutor(args.processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for name in args.tables.split(","):
            {"main": compare, "batch-norm": with_batch_norm, "sweep": sweep}[name](args, pool)
    print(f"\n{(time.perf_counter() - began) / 60:.0f} minutes in {args.processes} processes", flush=True)


def settings(args: argparse.Namespace, fusion: str, methods: Sequence[str], alpha: float, energy: float) -> Settings:
    degraded = "left" if args.data == "digits" else "image"
    return Settings.of(
        data=args.data,
        fusion=fusion,
        methods=tuple(methods),
        seeds=args.seeds,
        epochs=args.epochs,
        pairs=args.pairs,
        alpha=alpha,
        degrade={} if energy == 1.0 else {degraded: energy},
    )


def table(title: str, head: Sequence[str], found: Iterable[Sequence[str]]) -> None:
    print(f"\n**{title}**\n", flush=True)
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for row in found:
        print(f"| {' | '.join(row)} |", flush=True)


def with_batch_norm(args: argparse.Namespace, pool: ProcessPoolExecutor) -> None:
    compare(args, pool, batch_norm=True, rate=Settings().rate / 3)


def compare(args: argparse.Namespace, pool: ProcessPoolExecutor, **changed: Any) -> None:
    jobs = []
    for fusion in FUSIONS:
        methods = [name for name in BALANCING_METHODS if name != "ogm-ge" or fusion == "late"]
        out = None if args.out is None else args.out / (f"{fusion}-norm" if changed else fusion)
        wanted = settings(args, fusion, methods, ALPHA, ENERGY).model_copy(update=changed)
        jobs.append(pool.submit(train, wanted, out=out))
    for job in jobs:
        run = attempt(job)
        if run is None:
            continue
        table(in_words(run), *rows(run))
        if run.rates:
            print(
                f"\nMSLR: {', '.join(f'{name} {rate:g}×' for name, rate in run.rates.items())} the common rate",
                flush=True,
            )


def sweep(args: argparse.Namespace, pool: ProcessPoolExecutor) -> None:
    jobs = {}
    for fusion in FUSIONS:
        for energy in ENERGIES:
            for alpha in ALPHAS:
                methods = ("joint", "agm") if alpha == ALPHAS[0] else ("agm",)
                jobs[fusion, energy, alpha] = pool.submit(train, settings(args, fusion, methods, alpha, energy))
    names = ("left", "right") if args.data == "digits" else ("image", "audio")
    for fusion in FUSIONS:
        head = [
            "energy kept",
            *(f"{name} alone" for name in names),
            "joint",
            *(f"AGM, α = {alpha:g}" for alpha in ALPHAS),
        ]
        title = f"{fusion} fusion: test accuracy, % ({', '.join(names)} outputs; d {', d '.join(names)})"
        table(title, head, (swept(jobs, fusion, energy, names) for energy in ENERGIES))


def swept(
    jobs: Mapping[tuple[str, float, float], Future[Run]], fusion: str, energy: float, names: Sequence[str]
) -> list[str]:
    runs = {alpha: attempt(jobs[fusion, energy, alpha]) for alpha in ALPHAS}
    first = runs[ALPHAS[0]]
    alone = ["diverged" if first is None else percent(first.reference(name)) for name in names]
    return [f"{energy:.0%}", *alone, cell(first, "joint"), *(cell(runs[alpha], "agm") for alpha in ALPHAS)]


def attempt(job: Future[Run]) -> Run | None:
    """The run; if it diverged, prints the error and returns None."""
    try:
        return job.result()
    except Diverged as error:
        print(f"\n{error}", flush=True)
        return None


def cell(run: Run | None, method: str) -> str:
    if run is None:
        return "diverged"
    summary = run.summary()[method]
    mono = ", ".join(f"{100 * summary['mono'][name].mean:.0f}" for name in run.modalities)
    strength = ", ".join(f"{summary['competition'][name].mean:.2f}" for name in run.modalities)
    return f"{percent(summary['accuracy'])} ({mono}; {strength})"


def percent(value: MeanSpread | None) -> str:
    if value is None:
        return "n/a"
    return f"{100 * value.mean:.1f}" + ("" if value.spread is None else f" ± {100 * value.spread:.1f}")


if __name__ == "__main__":
    main()
