"""Methods of modules that are replaced for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

__all__ = ["replaced"]


@contextlib.contextmanager
def replaced(methods: Iterable[tuple[nn.Module, str, Callable[..., Any]]]) -> Iterator[None]:
    """While open, the named method of each module is what stands beside it; afterwards it is what it was, even where somebody
    else had put that there (accelerate's hooks).
    """
    before: list[tuple[nn.Module, str, Any]] = []
    try:
        for module, name, instead in methods:
            before.append((module, name, module.__dict__.get(name)))
            module.__dict__[name] = instead
        yield
    finally:
        for module, name, own in reversed(before):
            if own is None:
                del module.__dict__[name]
            else:
                module.__dict__[name] = own
