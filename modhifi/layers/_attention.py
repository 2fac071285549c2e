"""torch's fast path for attention, which computes what several layers would without running them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

__all__ = ["without_fast_path"]

_lock = threading.Lock()
_inside = 0
_before = True


@contextlib.contextmanager
def without_fast_path() -> Iterator[None]:
    """Inside the context, of any thread, `torch.nn.TransformerEncoderLayer` runs its layers one by one, so that hooks
    see them.
    """
    global _inside, _before
    with _lock:
        if not _inside:
            _before = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                torch.backends.mha.set_fastpath_enabled(_before)
