"""``modhifi export``."""

from __future__ import annotations

import argparse

import modhifi

from ..export import claim_export, formats
from ..progress import Progress
from ..text import number
from ._common import moved_weights, names, plan_and_models
from ._table import Answer, table

HELP = "Write the modified network and its plan to a folder."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="PLAN")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--format",
        type=names,
        default=["safetensors"],
        metavar="NAMES",
        help=f"comma-separated: {', '.join(formats())} (default: safetensors)",
    )
    moved_weights(parser, "plan")


def run(asked: argparse.Namespace, progress: Progress) -> Answer:
    claim_export(asked.out)
    _, _, changed = plan_and_models(asked.plan, asked.weights, "auto", progress)
    folder = modhifi.export(changed, asked.out, asked.format, progress=progress)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    value = {"out": asked.out, "files": files, "params": sum(p.numel() for p in changed.module.parameters())}
    return value, table([asked.out, "bytes"], [[name, number(size)] for name, size in files.items()])
