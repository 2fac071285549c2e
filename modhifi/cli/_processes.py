"""Commands started by torchrun: the processes form a group for the duration of the work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from ..devices import choose_device

__all__ = ["first", "joined"]

# The other processes wait while the first one derives scores from the sums.
_PATIENCE = timedelta(days=1)


def _several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def first() -> bool:
    """Whether this process prints: the only one, or the first of several."""
    return not _several() or os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Joins the process group, if there are several processes, and yields this process's device: on CUDA each has its own."""
    if not _several():
        yield device
        return
    own = choose_device(device)
    if own.type == "cuda":
        own = choose_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(own)
    torch.distributed.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield str(own)
    finally:
        torch.distributed.destroy_process_group()
