"""What can be extended: scores, estimators, unlearning methods, data sources, export formats and network families."""

from __future__ import annotations

from typing import TypeVar

__all__ = ["Registry"]

_Entry = TypeVar("_Entry")


class Registry(dict[str, _Entry]):
    """Entries by name, in the order in which they were registered; ``kind`` is what one of them is called in messages."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str, entry: _Entry) -> _Entry:
        """Adds and returns ``entry``. Raises ValueError if the name is taken."""
        if name in self:
            raise ValueError(f"the {self.kind} {name!r} is registered already")
        self[name] = entry
        return entry
