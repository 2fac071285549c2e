"""``modhifi multimodal train`` and ``modhifi multimodal report``."""

from __future__ import annotations

import argparse

from ..multimodal import BALANCING_METHODS, FUSIONS, Run, Settings, in_words, methods_for, report, rows, train
from ..progress import Progress
from ._common import Parser, names
from ._table import Answer, table

HELP = "Train on several modalities with different methods and measure how the modalities compete."


def _share(text: str) -> tuple[str, float]:
    name, _, share = text.rpartition("=")
    try:
        return name, float(share)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not MODALITY=SHARE with a share above 0 and at most 1, such as image=0.5"
        ) from None


def arguments(parser: argparse.ArgumentParser) -> None:
    usual = Settings()
    calls = parser.add_subparsers(dest="do", required=True, metavar="train|report", parser_class=Parser)
    train = calls.add_parser(
        "train", help="train every method with every seed, and each modality alone, and write a run"
    )
    report = calls.add_parser("report", help="print the results of a run")
    for one in (train, report):
        # SUPPRESS keeps the flag of the outer parser.
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
    report.add_argument("run", metavar="RUN")
    train.add_argument(
        "--data",
        metavar="DATA",
        default=usual.data,
        help="digits (two halves of each image, no files needed), or a folder that holds the Free Spoken Digit Dataset"
        " as train.parquet and test.parquet (audio-visual digits)",
    )
    train.add_argument("--fusion", choices=FUSIONS, default=usual.fusion, help=f"default: {usual.fusion}")
    train.add_argument(
        "--method",
        type=names,
        metavar="NAMES",
        default=list(usual.methods),
        help=f"comma-separated: {', '.join(BALANCING_METHODS)}, or all (default: {','.join(usual.methods)})",
    )
    train.add_argument(
        "--seeds", type=int, default=usual.seeds, metavar="N", help=f"networks per method (default: {usual.seeds})"
    )
    train.add_argument("--epochs", type=int, default=usual.epochs, metavar="N", help=f"default: {usual.epochs}")
    train.add_argument("--pairs", type=int, metavar="N", help="number of training pairs (default: every image once)")
    train.add_argument(
        "--degrade",
        type=_share,
        action="append",
        default=[],
        metavar="MODALITY=SHARE",
        help="keep this share of the modality's PCA energy, as in AV-MNIST",
    )
    train.add_argument("--alpha", type=float, default=usual.alpha, help=f"strength of AGM (default: {usual.alpha:g})")
    train.add_argument(
        "--ogm-alpha",
        type=float,
        default=usual.ogm_alpha,
        metavar="A",
        help=f"strength of OGM-GE (default: {usual.ogm_alpha:g})",
    )
    train.add_argument(
        "--patience",
        type=int,
        default=usual.patience,
        metavar="N",
        help=f"epochs that MSES waits (default: {usual.patience})",
    )
    train.add_argument("--batch-norm", action="store_true", help="add BatchNorm after every convolution")
    train.add_argument("--rate", type=float, default=usual.rate, help=f"learning rate (default: {usual.rate:g})")
    train.add_argument(
        "--batch", type=int, default=usual.batch, metavar="N", help=f"batch size (default: {usual.batch})"
    )
    train.add_argument("--weight-decay", type=float, default=usual.decay, metavar="D", help=f"default: {usual.decay:g}")
    train.add_argument("--device", default="cpu", help="where to train (default: cpu)")
    train.add_argument("--out", default="run", metavar="RUN", help="the folder to write (default: run)")


def run(asked: argparse.Namespace, progress: Progress) -> Answer:
    if asked.do == "report":
        return _answer(Run.load(asked.run), asked.run)
    methods = methods_for(asked.fusion) if asked.method == ["all"] else asked.method
    settings = Settings.of(
        data=asked.data,
        fusion=asked.fusion,
        methods=tuple(methods),
        seeds=asked.seeds,
        epochs=asked.epochs,
        pairs=asked.pairs,
        degrade=dict(asked.degrade),
        alpha=asked.alpha,
        ogm_alpha=asked.ogm_alpha,
        patience=asked.patience,
        batch_norm=asked.batch_norm,
        rate=asked.rate,
        batch=asked.batch,
        decay=asked.weight_decay,
    )
    value, text = _answer(train(settings, out=asked.out, device=asked.device, progress=progress), asked.out)
    return value, f"{text}\nwritten to {asked.out}"


def _answer(run: Run, path: str) -> Answer:
    return {"run": path} | report(run), f"{in_words(run)}\n\n{table(*rows(run))}"
