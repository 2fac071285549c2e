"""Networks of a person's own, one kind of input or output each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["NETWORKS", "Answer", "Images", "Own"]


@dataclass
class Answer:
    logits: Tensor
    note: str = ""


class Two(NamedTuple):
    first: Tensor
    second: Tensor


class Images(nn.Module):
    """Images of ``channels`` channels; ``how`` says what becomes of the features (B, 12, H, W)."""

    def __init__(self, channels: int = 3, how: Callable[[Any, Tensor], Any] | None = None) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 12, 3, padding=1)
        self.head = nn.Conv2d(12, 5, 1)
        self.how = how or (lambda net, z: net.head(z).mean((2, 3)))

    def forward(self, x: Tensor, *more: Tensor, scale: Tensor | None = None) -> Any:
        for one in more:
            x = x + one
        if scale is not None:
            x = x * scale[:, None, None, None]
        return self.how(self, torch.relu(self.b(torch.relu(self.a(x)))))


class Tokens(nn.Module):
    """Token ids with a mask, by name."""

    def __init__(self, places: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.out = nn.Linear(16, 4)
        self.places = places

    def forward(self, input_ids: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        h = self.embed(input_ids)
        h = h + self.down(torch.relu(self.up(h)))
        if not self.places:
            assert mask is not None
            h = (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return {"logits": self.out(h), "hidden": h}


class Table(nn.Sequential):
    """Rows of numbers to ``outputs`` numbers."""

    def __init__(self, outputs: int) -> None:
        super().__init__(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, outputs))


class Own(NamedTuple):
    """How `modhifi.wrap` is called, and what it should make of it: the kind of input, the form of the answer, its classes."""

    make: Callable[[], nn.Module]
    examples: Any
    fields: dict[str, Any]
    form: str
    answer: Callable[[Any], Tensor]
    """Takes the answer out of what the module returns."""


def _images(channels: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, channels, 10, 10, generator=torch.Generator().manual_seed(4)).to(dtype)


def _same(y: Any) -> Any:
    return y


_IDS = {"input_ids": torch.arange(21).reshape(3, 7), "mask": torch.ones(3, 7, dtype=torch.long)}

NETWORKS: dict[str, Own] = {
    "image": Own(Images, _images(), {}, "image", _same),
    "grey": Own(lambda: Images(1), _images(1), {}, "image", _same),
    "four channels": Own(lambda: Images(4), _images(4), {}, "classes", _same),
    "float64": Own(lambda: Images().double(), _images(dtype=torch.float64), {}, "image", _same),
    "float64 map": Own(
        lambda: Images(how=lambda net, z: net.head(z)).double(), _images(dtype=torch.float64), {}, "map", _same
    ),
    "two inputs": Own(Images, (_images(), _images()), {}, "classes", _same),
    "keyword": Own(Images, (_images(), {"scale": torch.rand(3)}), {}, "classes", _same),
    "dict": Own(
        lambda: Images(how=lambda net, z: {"logits": net.head(z).mean((2, 3))}),
        _images(),
        {},
        "classes",
        lambda y: y["logits"],
    ),
    "dataclass": Own(
        lambda: Images(how=lambda net, z: Answer(net.head(z).mean((2, 3)))),
        _images(),
        {},
        "classes",
        lambda y: y.logits,
    ),
    "tuple": Own(
        lambda: Images(how=lambda net, z: Two(net.head(z).mean((2, 3)), net.head(z))),
        _images(),
        {"output": 0},
        "classes",
        lambda y: y[0],
    ),
    "tuple with None": Own(
        lambda: Images(how=lambda net, z: (net.head(z).mean((2, 3)), None)), _images(), {}, "classes", lambda y: y[0]
    ),
    "squeezed": Own(
        lambda: Images(how=lambda net, z: net.head(z).mean((2, 3)).squeeze()), _images(), {}, "classes", _same
    ),
    "map": Own(lambda: Images(how=lambda net, z: net.head(z)), _images(), {}, "map", _same),
    "one number": Own(lambda: Images(how=lambda net, z: net.head(z).mean((1, 2, 3))), _images(), {}, "values", _same),
    "numbers": Own(lambda: Table(3), torch.randn(8, 6), {"classes": ()}, "values", _same),
    "table": Own(lambda: Table(3), torch.randn(8, 6), {"classes": ("a", "b", "c")}, "classes", _same),
    "tokens": Own(Tokens, _IDS, {"output": "logits"}, "classes", lambda y: y["logits"]),
    "sequence": Own(
        lambda: Tokens(places=True), _IDS["input_ids"], {"output": "logits"}, "sequence", lambda y: y["logits"]
    ),
}
