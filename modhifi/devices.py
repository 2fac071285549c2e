"""The device is chosen once, when a model is loaded; everything else follows the model's parameters."""

import torch

from .errors import UserError

__all__ = ["choose_device"]


def choose_device(name: str = "auto") -> torch.device:
    """``auto`` is CUDA where there is one, else MPS, else the CPU; any other name is taken as `torch.device` takes it.

    Raises `UserError` if the device is unknown or not present.
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
        raise UserError(f"device {name!r} is not available here; use auto or cpu") from error
    return device
