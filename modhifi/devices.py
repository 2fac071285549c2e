"""The device is chosen once, when a model is loaded; everything else runs where the model's parameters are."""

import contextlib
from collections.abc import Iterator

import torch

from .errors import UserError

__all__ = ["choose_device", "full_precision"]


def choose_device(name: str = "auto") -> torch.device:
    """``auto`` selects CUDA if available, then MPS, then the CPU; any other name is passed to `torch.device`.

    Raises `UserError` if the device is unknown or unavailable.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {name!r} is not available; use auto or cpu") from error
    return device


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Inside the context, CUDA multiplies float32 matrices without rounding to TF32: moments are sums of very many products."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
