"""Small convolutional networks for two or more modalities with late, early or hybrid fusion.

BatchNorm is off by default: with it a slow modality learns almost as fast as a fast one, and they compete less.

All networks take a dict of modalities, each (B, C, H, W), and return logits (B, K). ``encoders`` holds the part that belongs to
each modality alone; ``features`` returns the input of the last layer. With a single modality each is the mono-modal network of
the same kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import UserError

__all__ = ["FUSIONS", "Early", "Fusion", "Hybrid", "Late", "network"]

Fusion = Literal["late", "early", "hybrid"]
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)
Shapes = Mapping[str, tuple[int, int, int]]

_WIDTH = 64
_GRID = 8


def _block(inputs: int, outputs: int, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm)]
    return nn.Sequential(*layers, *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU())


def _encoder(shape: tuple[int, int, int], norm: bool) -> nn.Sequential:
    """(B, C, H, W) → (B, 64): halves the feature map until its shorter side is at most 4."""
    channels, height, width = shape
    layers: list[nn.Module] = [_block(channels, 8, norm)]
    wide = 8
    while min(height, width) > 4:
        layers += [nn.MaxPool2d(2), _block(wide, 2 * wide, norm)]
        wide, height, width = 2 * wide, height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(wide * height * width, _WIDTH), nn.ReLU())


class Late(nn.Module):
    """Late fusion: an encoder and a linear head per modality; the outputs of the heads are added."""

    def __init__(self, shapes: Shapes, classes: int, norm: bool = False) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: _encoder(shape, norm) for name, shape in shapes.items()})
        self.heads = nn.ModuleDict({name: nn.Linear(_WIDTH, classes) for name in shapes})

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, 64·M): the inputs of the heads."""
        return torch.cat([encoder(inputs[name]) for name, encoder in self.encoders.items()], dim=1)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        parts = self.features(inputs).split(_WIDTH, dim=1)
        return torch.stack([head(part) for head, part in zip(self.heads.values(), parts, strict=True)]).sum(0)


class Early(nn.Module):
    """Early fusion: one convolution per modality maps it to an 8×8 grid; from there on the modalities are channels of one
    network.
    """

    def __init__(self, shapes: Shapes, classes: int, norm: bool = False) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {
                name: nn.Sequential(_block(shape[0], 16, norm), nn.AdaptiveAvgPool2d(_GRID))
                for name, shape in shapes.items()
            }
        )
        self.trunk = _encoder((16 * len(shapes), _GRID, _GRID), norm)
        self.head = nn.Linear(_WIDTH, classes)

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, 64): the input of the head."""
        maps: Tensor = torch.cat([encoder(inputs[name]) for name, encoder in self.encoders.items()], dim=1)
        return self.trunk(maps)  # type: ignore[no-any-return]

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.head(self.features(inputs))  # type: ignore[no-any-return]


class Hybrid(nn.Module):
    """Hybrid fusion: late fusion plus a hidden layer that reads all encoders; one head reads both."""

    def __init__(self, shapes: Shapes, classes: int, norm: bool = False) -> None:
        super().__init__()
        self.late = Late(shapes, classes, norm)
        self.joint = nn.Sequential(nn.Linear(_WIDTH * len(shapes), _WIDTH), nn.ReLU())
        self.head = nn.Linear(_WIDTH * (len(shapes) + 1), classes)

    @property
    def encoders(self) -> nn.Module:
        return self.late.encoders

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, 64·(M + 1)): the input of the head."""
        apart = self.late.features(inputs)
        return torch.cat([apart, self.joint(apart)], dim=1)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.head(self.features(inputs))  # type: ignore[no-any-return]


_NETWORKS: dict[str, type[Late | Early | Hybrid]] = {"late": Late, "early": Early, "hybrid": Hybrid}


def network(fusion: str, shapes: Shapes, classes: int, norm: bool = False) -> Late | Early | Hybrid:
    """A network with new random weights for modalities of these shapes (C, H, W); ``norm`` adds BatchNorm after each
    convolution.

    Raises `UserError` for an unknown fusion.
    """
    if fusion not in _NETWORKS:
        raise UserError(f"unknown fusion {fusion!r}; choose one of {', '.join(FUSIONS)}")
    return _NETWORKS[fusion](shapes, classes, norm)
