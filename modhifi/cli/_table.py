"""The result of a command, and plain-text tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Answer", "table"]

Answer = tuple[dict[str, Any], str]
"""A JSON value, and the text to print."""


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with columns as wide as their widest cell: the first left-aligned, the others right-aligned."""
    cells = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)
