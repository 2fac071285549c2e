"""A call that torchrun started in several processes: they join before the work and part after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from ..devices import choose_device

__all__ = ["first", "joined"]

# While the first process derives scores from the sums, the others wait for it.
_PATIENCE = timedelta(days=1)


def _several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def first() -> bool:
    """Whether this process is the one that speaks."""
    return not _several() or os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Joins the processes that share the call, if there are any; gives the device of this one: on CUDA each has its own."""
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
