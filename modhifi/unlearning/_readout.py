"""How a classifier's features come from the last sum of the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Readout", "find_readout"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "relu6": F.relu6,
}


@dataclass(frozen=True)
class Readout:
    """An activation, a normalisation over the channels and an average over the positions (or the first position alone), the
    last two in either order.
    """

    activation: str
    norm: nn.LayerNorm | None
    first: bool
    """Only the first position (a class token) is read."""

    def active(self, rows: Tensor) -> Tensor:
        """``rows`` after the activation."""
        return _ACTIVATIONS[self.activation](rows)

    def positions(self, rows: Tensor) -> Tensor:
        """(N, P, O) to (N, O)."""
        return rows[:, 0] if self.first else rows.mean(1)

    def __call__(self, rows: Tensor, late: bool) -> Tensor:
        rows = self.active(rows)
        return self._normed(self.positions(rows)) if late else self.positions(self._normed(rows))

    def _normed(self, x: Tensor) -> Tensor:
        if self.norm is None:
            return x
        return F.layer_norm(x, x.shape[-1:], self.norm.weight, self.norm.bias, self.norm.eps)


def find_readout(total: Tensor, features: Tensor, norm: nn.LayerNorm | None) -> Readout | None:
    """Which of the usual ways leads from the last sum ``total`` (N, P, O) to the ``features`` (N, O), ``norm`` being the
    last LayerNorm that ran; None if it is another one.
    """
    if total.shape[-1] != features.shape[1]:
        return None
    for activation in _ACTIVATIONS:
        for used in (None, norm) if norm is not None else (None,):
            for first in (False, True):
                for late in (False, True) if used is not None else (False,):
                    readout = Readout(activation, used, first)
                    if torch.allclose(readout(total, late), features, rtol=1e-3, atol=1e-3):
                        return readout
    return None
