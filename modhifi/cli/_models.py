"""``modhifi models``."""

from __future__ import annotations

import argparse

from ..loading import list_models
from ..progress import Progress
from ._table import Answer

HELP = "List the networks that can be loaded."


def arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(asked: argparse.Namespace, progress: Progress) -> Answer:  # noqa: ARG001
    forms = list_models()
    width = max(len(spec) for spec, _ in forms)
    text = "\n".join(f"{spec.ljust(width)}  {what}" for spec, what in forms)
    return {"models": [{"spec": spec, "what": what} for spec, what in forms]}, text
