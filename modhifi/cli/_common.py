"""Arguments that several commands share, and the objects they name."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

import modhifi

from ..data import Data, load_data, sources
from ..errors import UserError
from ..loading import reload
from ..models import Model
from ..plan import Plan
from ..progress import Progress
from ..specs import DataRef, InputSpec, ModelRef, TokenSpec

__all__ = [
    "Parser",
    "budget_arguments",
    "count",
    "data_arguments",
    "moved_weights",
    "named_data",
    "names",
    "numbers",
    "out_plan",
    "plan_and_models",
    "positive",
    "samples_of",
    "seed",
]


class Parser(argparse.ArgumentParser):
    """Reports errors in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def names(text: str) -> list[str]:
    """``a,b`` as a list of names."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str) -> list[float]:
    """``0.75,0.5`` as a list of numbers."""
    return [float(part) for part in text.split(",")]


def count(text: str) -> tuple[str, int]:
    """``GROUP=COUNT``."""
    name, equals, number = text.rpartition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not GROUP=COUNT")
    return name, int(number)


def positive(text: str) -> int:
    """A whole number from 1 to 2³¹ − 1."""
    return _whole(text, 1, 2**31 - 1)


def seed(text: str) -> int:
    """A whole number from 0 to 2³² − 1, which every generator takes."""
    return _whole(text, 0, 2**32 - 1)


def _whole(text: str, least: int, most: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a whole number from {least} to {most}")
    return value


def budget_arguments(parser: argparse.ArgumentParser, kind: Callable[[str], Any], metavar: str, what: str) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--flops", type=kind, metavar=metavar, help=f"fraction of FLOPs to keep{what}")
    group.add_argument("--params", type=kind, metavar=metavar, help=f"fraction of parameters to keep{what}")
    group.add_argument("--latency", type=kind, metavar=metavar, help=f"fraction of the measured latency to keep{what}")


def data_arguments(parser: argparse.ArgumentParser, split: str) -> None:
    parser.add_argument(
        "--data",
        metavar="DATA",
        help=f"{', '.join(source.form for source in sources())}, a folder of images, or a .parquet, .npz, .npy or"
        " .safetensors file",
    )
    parser.add_argument("--data-root", metavar="DIR", help="the folder that holds the data")
    parser.add_argument("--split", default=split, help=f"split of the data (default: {split})")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the draw of samples (default: 0)")


def moved_weights(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--weights", metavar="FILE", help=f"the {what}'s checkpoint, if it has moved")


def out_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="PLAN", help="a .json or .zip file")


def named_data(asked: argparse.Namespace, known: DataRef, samples: int | None = None) -> Data:
    """The data named on the command line, or the study's own source."""
    if asked.data is None:
        return load_data(known.spec, asked.data_root or known.root, asked.split, samples, asked.seed)
    return load_data(asked.data, asked.data_root, asked.split, samples, asked.seed)


def plan_and_models(path: str, weights: str | None, device: str, progress: Progress) -> tuple[Plan, Model, Model]:
    """The plan, the original network and the modified network."""
    plan = Plan.load(path)
    model = reload(plan.model, weights, device=device, progress=progress)
    return plan, model, modhifi.apply(plan, model)


def samples_of(model: ModelRef) -> str:
    """The name of a network's samples: images, windows of tokens, or samples."""
    if isinstance(model.input, InputSpec):
        return "images"
    return f"windows of {model.input.context} tokens" if isinstance(model.input, TokenSpec) else "samples"
