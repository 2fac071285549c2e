"""Predicted against measured: relative error and agreement of pruned networks on samples outside calibration.

    python benchmarks/predictions [--data-root CIFAR10] [--checkpoints FOLDER] [--imagenet FOLDER] [--networks NAME …]

Prints the tables of docs/results/predictions.md. ``CIFAR10`` contains CIFAR-10 as `modhifi.load_data` reads it; ``FOLDER`` of
checkpoints resnet56-4bfd9763.th and efficientnet_lite0.safetensors; that of ImageNet calibration.parquet and test.parquet.
Networks whose files are missing are left out. No label and no gradient is used. For each network and compensation, eight
budgets; the ratio of measured to closed-form error gives what `modhifi.pruning` takes for granted of networks that it has not
seen. Each network is judged with the ratios of the *other* ones.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import modhifi
from modhifi import Data, Model, Study
from modhifi.pruning import Prediction, Ratio, allocate, predict_outcome
from modhifi.specs import Compensation

BUDGETS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
COMPENSATIONS: tuple[Compensation, ...] = ("sequential", "full", "none")


@dataclass(frozen=True)
class Row:
    """One plan: what the closed form says, and what was measured."""

    network: str
    compensate: Compensation
    budget: float
    closed_form: float
    error: float
    agreement: float
    study: Study
    amplitudes: dict[str, dict[str, float]]

    def predicted(self, ratio: Ratio | None, measured: list[tuple[float, float]]) -> Prediction:
        found = predict_outcome(self.study, self.amplitudes, self.compensate, measured, ratio)
        assert found is not None
        return found


def networks(args: argparse.Namespace) -> Iterator[tuple[str, Model, Data, Data]]:
    """Name, network, calibration samples and others."""
    digits, test = modhifi.load_data("digits"), modhifi.load_data("digits", split="test")
    for name in ("digits-resnet20", "digits-vit"):
        yield name, modhifi.load_model(name, device=args.device), digits, test
    if args.data_root:
        train, other = (modhifi.load_data("cifar10", args.data_root, split) for split in ("calibration", "test"))
        yield "cifar10-vgg8", modhifi.load_model("cifar10-vgg8", device=args.device), train, other.take(1000, 0)
        if args.checkpoints:
            weights = args.checkpoints / "resnet56-4bfd9763.th"
            resnet = modhifi.load_model("cifar10-resnet56", weights, device=args.device)
            yield "cifar10-resnet56", resnet, train, other.take(1000, 0)
    if args.imagenet and args.checkpoints:
        weights = args.checkpoints / "efficientnet_lite0.safetensors"
        lite = modhifi.load_model("timm:tf_efficientnet_lite0", weights, device=args.device)
        photographs, others = (modhifi.load_data(args.imagenet / f"{name}.parquet") for name in ("calibration", "test"))
        yield "efficientnet-lite0", lite, photographs, others


def rows_of(name: str, model: Model, calibration: Data, other: Data) -> Iterator[Row]:
    study = modhifi.analyze(model, calibration, samples=512, constants=("directional",))
    images = [batch.to(model.device) for batch, _ in other.batches(model.input, 100)]

    @torch.inference_mode()
    def answers(one: Model) -> torch.Tensor:
        return torch.cat([one.module(batch) for batch in images]).double()

    before = answers(model)
    spread = (before - before.mean(0)).square().sum()
    for compensate in COMPENSATIONS:
        for budget in BUDGETS:
            decided = allocate(study, flops=budget, compensate=compensate)
            assert decided.outcome is not None
            plan = modhifi.prune(study, flops=budget, compensate=compensate, model=model)
            after = answers(modhifi.apply(plan, model))
            yield Row(
                name,
                compensate,
                budget,
                decided.outcome.closed_form,
                float(((after - before).square().sum() / spread).sqrt()),
                float((after.argmax(1) == before.argmax(1)).double().mean()),
                study,
                decided.amplitudes,
            )


def fitted(rows: list[Row]) -> Ratio:
    """Mean and spreads of the logarithm of measured over closed-form error: between and within networks."""
    logs: dict[str, list[float]] = {}
    for row in rows:
        logs.setdefault(row.network, []).append(math.log(row.error / row.closed_form))
    means = [statistics.fmean(some) for some in logs.values()]
    within = math.sqrt(statistics.fmean(statistics.pvariance(some) for some in logs.values()))
    between = statistics.stdev(means) if len(means) > 1 else 0.3
    return Ratio(statistics.fmean(means), max(between, 0.1), max(within, 0.05))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument("--imagenet", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--networks", nargs="*")
    args = parser.parse_args()
    torch.manual_seed(0)
    rows: list[Row] = []
    for name, model, calibration, other in networks(args):
        if args.networks and name not in args.networks:
            continue
        for row in rows_of(name, model, calibration, other):
            rows.append(row)
            print(
                f"{name} {row.compensate} {row.budget:.0%}: closed form {row.closed_form:.4f}, error {row.error:.4f},"
                f" ratio {row.error / row.closed_form:.3f}, agreement {row.agreement:.4f}",
                flush=True,
            )
    print(
        "\n| network | compensation | error inside | agreement inside | median factor, alone | median factor, measured |"
    )
    print("|---|---|---|---|---|---|")
    for compensate in COMPENSATIONS:
        mine = [row for row in rows if row.compensate == compensate]
        print(f"<!-- {compensate}: {fitted(mine)} -->")
        for name in dict.fromkeys(row.network for row in mine):
            others, these = [row for row in mine if row.network != name], [row for row in mine if row.network == name]
            ratio = fitted(others) if others else None
            error = agreement = 0
            alone, known = [], []
            for row in these:
                plain = row.predicted(ratio, [])
                larger = [(one.closed_form, one.error) for one in these if one.budget > row.budget]
                informed = row.predicted(ratio, larger)
                error += plain.relative_error_low <= row.error <= plain.relative_error_high
                low, high = plain.agreement_low, plain.agreement_high
                agreement += low is not None and high is not None and low <= row.agreement <= high
                alone.append(max(plain.relative_error / row.error, row.error / plain.relative_error))
                known.append(max(informed.relative_error / row.error, row.error / informed.relative_error))
            print(
                f"| {name} | {compensate} | {error} of {len(these)} | {agreement} of {len(these)} |"
                f" {statistics.median(alone):.2f} | {statistics.median(known):.2f} |"
            )


if __name__ == "__main__":
    main()
