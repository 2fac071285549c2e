"""Where the dashboard keeps its files."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["home"]


def home() -> Path:
    return Path(os.environ.get("MODHIFI_HOME") or Path.home() / ".cache" / "modhifi").expanduser()
