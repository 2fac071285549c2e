"""Temporary replacement of module methods."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

__all__ = ["substituted"]


@contextlib.contextmanager
def substituted(methods: Iterable[tuple[nn.Module, str, Callable[..., Any]]]) -> Iterator[None]:
    """Inside the context, each (module, name, callable) replaces the named method of the module. Afterwards the previous one is
    restored, even if other code had put it there (accelerate's hooks).
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
