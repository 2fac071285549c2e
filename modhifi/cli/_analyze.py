"""``modhifi analyze``."""

from __future__ import annotations

import argparse

import modhifi

from ..data import DEFAULT_DATA, SHIPPED_TEXT, load_data
from ..errors import UserError
from ..lipschitz import estimators
from ..progress import Progress
from ..study import CONSTANT_SAMPLES, CONSTANTS
from ._common import data_arguments, names, numbers, positive, samples_of
from ._processes import joined
from ._table import Answer

HELP = "Collect statistics in one pass over unlabelled data and write a study."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    data_arguments(parser, "calibration")
    parser.add_argument("--samples", type=positive, default=512, metavar="N", help="number of samples (default: 512)")
    parser.add_argument(
        "--weights", metavar="FILE", help="checkpoint: .safetensors, or .pt/.pth/.th/.ckpt/.bin that holds only tensors"
    )
    parser.add_argument("--mean", type=numbers, metavar="R,G,B", help="input mean per channel, for inputs in [0, 1]")
    parser.add_argument("--std", type=numbers, metavar="R,G,B", help="input standard deviation per channel")
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="class names, one per line, in the order of the logits; none: FACTORY has no classes",
    )
    parser.add_argument("--input", metavar="SHAPES", help="FILE.py:FACTORY: shapes of one sample, such as 3x224x224,10")
    parser.add_argument("--output", metavar="NAME", help="FILE.py:FACTORY: the answer, where there are several outputs")
    parser.add_argument("--context", type=positive, metavar="N", help="language models: tokens per sample")
    parser.add_argument(
        "--constants",
        type=names,
        metavar="NAMES",
        help=f"estimators of Lipschitz constants: {','.join(estimators())} (default: {','.join(CONSTANTS)}; for"
        " language models only the first; none to skip them)",
    )
    parser.add_argument(
        "--constant-samples",
        type=positive,
        metavar="N",
        help=f"number of samples for the constants (default: {CONSTANT_SAMPLES}; for language models 8)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda…; for language models also map (accelerate)")
    parser.add_argument("--out", required=True, metavar="STUDY", help="the folder to write")


def run(asked: argparse.Namespace, progress: Progress) -> Answer:
    with joined(asked.device) as device:
        model = modhifi.load_model(
            asked.model,
            asked.weights,
            mean=asked.mean,
            std=asked.std,
            classes=asked.classes,
            context=asked.context,
            input=asked.input,
            output=asked.output,
            device=device,
            progress=progress,
        )
        if asked.data is None and model.source is not None:
            raise UserError(f"say what {model.spec} is given: --data with a file or folder, or --data noise")
        usual = DEFAULT_DATA if model.tokens is None else SHIPPED_TEXT
        data = load_data(asked.data or usual, asked.data_root, asked.split)
        study = modhifi.analyze(
            model,
            data,
            asked.samples,
            seed=asked.seed,
            constants=asked.constants,
            constant_samples=asked.constant_samples,
            out=asked.out,
            progress=progress,
        )
    value = {
        "study": asked.out,
        "model": study.model.spec,
        "fingerprint": study.model.fingerprint,
        "samples": study.data.samples,
        "groups": len(study.groups),
        "components": sum(group.size for group in study.groups),
        "skipped": [skip.model_dump() for skip in study.skipped],
        "params": study.dense.params,
        "flops": study.dense.flops,
        "seconds": study.seconds,
        "samples_needed": study.samples_needed(),
    }
    warning = study.sample_warning()
    text = (
        f"{study.model.spec}: {value['components']} components in {value['groups']} groups,"
        f" {len(study.skipped)} layers not prunable; {study.data.samples} {samples_of(study.model)} in"
        f" {study.seconds:.1f} s\n" + (f"{warning}\n" if warning else "") + f"written to {asked.out}"
    )
    return value, text
