"""What can be asked, and how."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from ..data import SHIPPED_TEXT, SYNTHETIC
from ..errors import UserError
from ..lipschitz import ESTIMATORS
from ..multimodal import FUSIONS, Settings
from ..multimodal import METHODS as BALANCING
from ..pruning import BASELINES, CHOLESKY, LANGUAGE_METHODS, METHODS, NEEDS_LABELS
from ..study import CONSTANT_SAMPLES, CONSTANTS, SCORES
from ..unlearning import METHODS as FORGETTING

__all__ = ["build_parser"]


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, like every other mistake, instead of the usage text."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _three(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _count(text: str) -> tuple[str, int]:
    name, equals, count = text.rpartition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not GROUP=COUNT")
    return name, int(count)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _several(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _budget(parser: argparse.ArgumentParser, kind: Callable[[str], Any], metavar: str, what: str) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--flops", type=kind, metavar=metavar, help=f"fraction of the FLOPs {what}")
    group.add_argument("--params", type=kind, metavar=metavar, help=f"fraction of the parameters {what}")
    group.add_argument("--latency", type=kind, metavar=metavar, help=f"fraction of the time, measured here, {what}")


def _data(parser: argparse.ArgumentParser, split: str | None, default: str | None = None) -> None:
    parser.add_argument(
        "--data",
        metavar="DATA",
        default=default,
        help=f"digits, cifar10, a folder, a .parquet file; without labels also {', '.join(SYNTHETIC)}; for language models"
        f" text:FILE or {SHIPPED_TEXT}",
    )
    parser.add_argument("--data-root", metavar="DIR", help="where the data lies")
    parser.add_argument("--split", default=split, help=f"which part of it (default: {split})")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of samples")


def _share(text: str) -> tuple[str, float]:
    name, _, share = text.rpartition("=")
    try:
        return name, float(share)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not MODALITY=SHARE, with a share above 0 and up to 1 (image=0.5)"
        ) from None


def _multimodal(parser: argparse.ArgumentParser) -> None:
    usual = Settings()
    calls = parser.add_subparsers(dest="do", required=True, metavar="train|report", parser_class=_Parser)
    train = calls.add_parser("train", help="train every method with every seed, and each modality alone; writes a run")
    report = calls.add_parser("report", help="the table of a run")
    for one in (train, report):
        # Not to undo the flag of the outer parser.
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one JSON object")
    report.add_argument("run", metavar="RUN")
    train.add_argument(
        "--data",
        metavar="DATA",
        default=usual.data,
        help="digits (two halves of each image, nothing needed), or a folder with the Free Spoken Digit Dataset as "
        "train.parquet and test.parquet (audio-visual digits)",
    )
    train.add_argument("--fusion", choices=FUSIONS, default=usual.fusion)
    train.add_argument(
        "--method",
        type=_names,
        metavar="NAMES",
        default=list(usual.methods),
        help=f"comma separated: {', '.join(BALANCING)}, or all (default: {','.join(usual.methods)})",
    )
    train.add_argument("--seeds", type=int, default=usual.seeds, metavar="N", help="networks for each method")
    train.add_argument("--epochs", type=int, default=usual.epochs, metavar="N")
    train.add_argument("--pairs", type=int, metavar="N", help="training pairs (default: every image once)")
    train.add_argument(
        "--degrade",
        type=_share,
        action="append",
        default=[],
        metavar="MODALITY=SHARE",
        help="keep so much of its PCA energy, as AV-MNIST does",
    )
    train.add_argument("--alpha", type=float, default=usual.alpha, help=f"of AGM (default: {usual.alpha:g})")
    train.add_argument(
        "--ogm-alpha",
        type=float,
        default=usual.ogm_alpha,
        metavar="A",
        help=f"of OGM-GE (default: {usual.ogm_alpha:g})",
    )
    train.add_argument(
        "--patience", type=int, default=usual.patience, metavar="N", help=f"of MSES, epochs (default: {usual.patience})"
    )
    train.add_argument("--batch-norm", action="store_true", help="behind every convolution")
    train.add_argument("--rate", type=float, default=usual.rate, help=f"of learning (default: {usual.rate:g})")
    train.add_argument("--batch", type=int, default=usual.batch, metavar="N")
    train.add_argument("--weight-decay", type=float, default=usual.decay, metavar="D")
    train.add_argument("--device", default="cpu")
    train.add_argument("--out", default="run", metavar="RUN", help="the folder to write (default: run)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of every call in the contract that this version answers."""
    parser = _Parser(
        prog="modhifi", description="Prune a trained network or make it forget a class, without labels or loss."
    )
    from .. import __version__

    parser.add_argument("--version", action="version", version=__version__)
    calls = parser.add_subparsers(dest="call", required=True, metavar="CALL", parser_class=_Parser)

    def call(name: str, text: str) -> argparse.ArgumentParser:
        made = calls.add_parser(name, help=text, description=text)
        made.add_argument("--json", action="store_true", help="one JSON object on standard output")
        return made

    call("models", "List what can be loaded.")

    analyze = call("analyze", "One pass over unlabelled data; writes a study folder.")
    analyze.add_argument("model", metavar="MODEL")
    _data(analyze, "calibration")
    analyze.add_argument("--samples", type=int, default=512, metavar="N")
    analyze.add_argument("--weights", metavar="FILE", help=".safetensors, or .pt/.pth/.th with tensors only")
    analyze.add_argument("--mean", type=_three, metavar="R,G,B")
    analyze.add_argument("--std", type=_three, metavar="R,G,B")
    analyze.add_argument("--classes", metavar="FILE", help="one class name a line")
    analyze.add_argument("--context", type=int, metavar="N", help="language models: tokens of a sample")
    analyze.add_argument(
        "--constants",
        type=_names,
        metavar="NAMES",
        help=f"estimators of Lipschitz constants: {','.join(ESTIMATORS)} (default: {','.join(CONSTANTS)}; of language models the"
        " first; none for none)",
    )
    analyze.add_argument(
        "--constant-samples",
        type=int,
        metavar="N",
        help=f"how many of the samples they look at (default: {CONSTANT_SAMPLES}; of language models 8)",
    )
    analyze.add_argument("--device", default="auto", help="auto, cpu, cuda…; language models also map (accelerate's)")
    analyze.add_argument("--out", required=True, metavar="STUDY")

    show = call("show", "Per group: components, fidelity, HiFi set size, Lipschitz estimate, cost.")
    show.add_argument("study", metavar="STUDY")
    show.add_argument("--group", metavar="G", help="one group, component by component")
    show.add_argument(
        "--sensitivity", action="store_true", help="what each group alone would cost at several shares of it"
    )
    show.add_argument(
        "--constants", action="store_true", help="the Lipschitz constants of each layer, and what each of them says"
    )
    show.add_argument("--eta", type=float, default=0.8, help="fidelity of a HiFi set (default: 0.8)")

    prune = call("prune", "ModHiFi-P: decide what stays; writes a plan.")
    prune.add_argument("study", metavar="STUDY")
    _budget(prune, float, "R", "that remains")
    prune.add_argument(
        "--latency-batch", type=int, default=1, metavar="N", help="images in one forward pass when latency is measured"
    )
    prune.add_argument(
        "--score",
        choices=(*SCORES, CHOLESKY, *BASELINES),
        default="greedy",
        help=f"what says which components stay (default: greedy); {' and '.join(NEEDS_LABELS)} use labels",
    )
    prune.add_argument(
        "--allocation",
        choices=("global", "uniform", "ranking", "width"),
        help="default: global; of language models whose blocks are alike width, the same number in every block, which"
        " transformers alone opens",
    )
    prune.add_argument(
        "--constants",
        choices=(*ESTIMATORS, "none"),
        default="directional",
        help="the study's Lipschitz constants that global allocation weighs by",
    )
    prune.add_argument(
        "--device", default="auto", help="where the network runs if it must; as in analyze, language models also map"
    )
    prune.add_argument("--compensate", choices=("none", "scalar", "full", "sequential"), default="sequential")
    prune.add_argument("--no-drift", action="store_true", help="sequential: leave residual streams' losses as they are")
    prune.add_argument(
        "--no-rectified", action="store_true", help="sequential: also meet the outputs that a ReLU cuts off"
    )
    prune.add_argument("--raw", action="store_true", help="raw instead of centred moments (Def. 3.1 as written)")
    prune.add_argument("--recalibrate-bn", action="store_true", help="re-estimate BatchNorm on the calibration images")
    prune.add_argument(
        "--multiple", type=int, default=1, metavar="N", help="keep multiples of N channels (8 suits tensor cores)"
    )
    prune.add_argument(
        "--keep", type=_count, action="append", default=[], metavar="GROUP=COUNT", help="set a group by hand"
    )
    prune.add_argument(
        "--floor",
        type=_count,
        action="append",
        default=[],
        metavar="GROUP=COUNT",
        help="a group keeps at least so many",
    )
    prune.add_argument(
        "--published", action="store_true", help="ModHiFi-P as published (Alg. 1) instead; takes a budget only"
    )
    prune.add_argument("--note", default="", help="kept in the plan")
    prune.add_argument("--out", required=True, metavar="PLAN", help="a .json or .zip file")

    compare = call("compare", "This project's method and the others at the same budget, measured.")
    compare.add_argument("study", metavar="STUDY")
    _budget(compare, _several, "R[,R…]", "that remains, one or several")
    _data(compare, "test")
    compare.add_argument("--samples", type=int, metavar="N", help="all if left out")
    compare.add_argument(
        "--methods",
        type=_names,
        metavar="NAMES",
        help=f"comma separated (default: all that need no labels): {', '.join(METHODS)}; of language models"
        f" {', '.join(LANGUAGE_METHODS)}",
    )
    compare.add_argument("--weights", metavar="FILE", help="where the study's checkpoint is now, if it has moved")
    compare.add_argument("--device", default="auto")
    compare.add_argument("--out", metavar="DIR", help="write every plan into this folder")

    unlearn = call("unlearn", "ModHiFi-U: make the network forget classes; writes a plan.")
    unlearn.add_argument("study", metavar="STUDY")
    unlearn.add_argument("--forget", required=True, metavar="NAMES", help="classes by name or index, comma separated")
    _data(unlearn, "calibration")
    unlearn.add_argument("--samples", type=int, default=1000, metavar="N")
    unlearn.add_argument(
        "--method",
        default="erase",
        metavar="NAME",
        help=f"one of {', '.join(FORGETTING)} (default: erase); ascent and finetune need gradients",
    )
    unlearn.add_argument(
        "--target",
        type=lambda text: text if text == "chance" else float(text),
        default=0.0,
        metavar="A",
        help="forget accuracy that is low enough, or chance (default: 0)",
    )
    unlearn.add_argument(
        "--depth", type=int, metavar="N", help="edit the last N layers (default: chosen by the method)"
    )
    unlearn.add_argument(
        "--towards",
        choices=("zero", "mean"),
        default="mean",
        help="ridge: what a layer should answer on forget samples (default: the retained mean)",
    )
    unlearn.add_argument(
        "--predicted-labels", action="store_true", help="the network's own answers say which images are of the classes"
    )
    unlearn.add_argument("--out", required=True, metavar="PLAN", help="a .json or .zip file")

    bound = call("bound", "Bound, measured global error and tightness, per layer and whole.")
    bound.add_argument("study", metavar="STUDY")
    bound.add_argument("plan", metavar="PLAN")
    _data(bound, "calibration")
    bound.add_argument("--samples", type=int, default=128, metavar="N")
    bound.add_argument(
        "--no-held-out",
        action="store_true",
        help="do not count how often a bound from the calibration images is broken (half of the time)",
    )

    evaluate = call("evaluate", "Before and after: accuracy (or perplexity), per class, parameters, FLOPs, latency.")
    evaluate.add_argument("plan", metavar="PLAN")
    _data(evaluate, "test")
    evaluate.add_argument("--samples", type=int, metavar="N", help="all if left out")
    evaluate.add_argument(
        "--context", type=int, metavar="N", help="perplexity: tokens of a window (default: the model's)"
    )
    evaluate.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="perplexity: tokens from one window to the next (default: half of the context)",
    )
    evaluate.add_argument("--weights", metavar="FILE", help="where the plan's checkpoint is now, if it has moved")
    evaluate.add_argument("--device", default="auto")

    _multimodal(
        call("multimodal", "Train several modalities together, modulated or not, and measure how they compete.")
    )

    export = call("export", "Write the changed network and its plan into a folder.")
    export.add_argument("plan", metavar="PLAN")
    export.add_argument("--out", required=True, metavar="DIR")
    export.add_argument("--format", default="safetensors", metavar="NAMES", help="safetensors,onnx,pt2")
    export.add_argument("--weights", metavar="FILE", help="where the plan's checkpoint is now, if it has moved")
    return parser
