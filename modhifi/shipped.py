"""Where the networks and texts that ship with the project are: in the installed package, or in a checkout's ``assets``."""

from __future__ import annotations

import importlib.resources
from importlib.resources.abc import Traversable
from pathlib import Path

from .errors import UserError

__all__ = ["TEXT_MODEL", "assets", "shipped_folder"]

TEXT_MODEL = "text-llama"
"""The language model that ships with the project."""


def assets() -> Traversable:
    """The folder of shipped files: inside the package in a wheel, next to the package in a checkout."""
    installed: Traversable = importlib.resources.files("modhifi") / "assets"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[1] / "assets"


def shipped_folder(name: str) -> Path:
    """The folder of a shipped model. Raises `UserError` if the package is not installed as files on disk."""
    folder = assets() / name
    if not isinstance(folder, Path) or not folder.is_dir():
        raise UserError(f"the files of {name} were not found on disk; install modhifi unpacked, as pip does")
    return folder
