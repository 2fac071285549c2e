"""The argument parser: one subcommand per module."""

from __future__ import annotations

import argparse
from typing import Protocol

from .. import __version__
from ..progress import Progress
from . import _analyze, _bound, _compare, _evaluate, _export, _models, _multimodal, _prune, _show, _ui, _unlearn
from ._common import Parser
from ._table import Answer

__all__ = ["CALLS", "Call", "build_parser"]


class Call(Protocol):
    """A module that defines one command: its one-line help, its arguments and what it does."""

    HELP: str

    def arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, asked: argparse.Namespace, progress: Progress) -> Answer: ...


CALLS: dict[str, Call] = {
    "models": _models,
    "analyze": _analyze,
    "show": _show,
    "prune": _prune,
    "compare": _compare,
    "unlearn": _unlearn,
    "bound": _bound,
    "evaluate": _evaluate,
    "multimodal": _multimodal,
    "export": _export,
    "ui": _ui,
}


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command."""
    parser = Parser(
        prog="modhifi", description="Prune a trained network or make it forget a class, without labels or loss."
    )
    parser.add_argument("--version", action="version", version=__version__)
    calls = parser.add_subparsers(dest="call", required=True, metavar="COMMAND", parser_class=Parser)
    for name, call in CALLS.items():
        made = calls.add_parser(name, help=call.HELP, description=call.HELP)
        made.add_argument("--json", action="store_true", help="print one JSON object on standard output")
        call.arguments(made)
    return parser
