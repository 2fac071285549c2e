"""A plain CNN for 32×32 images, in the style of Simonyan and Zisserman's VGG with BatchNorm.

Seven 3×3 convolutions, max pooling after the first, third and fifth, global average pooling and one linear layer. It has
nearly three times the parameters of ResNet-56 and no residual connections that couple its layers: the over-parameterised
kind of network on which structured pruning is usually demonstrated. https://arxiv.org/abs/1409.1556
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["WIDTHS", "CifarVGG"]

WIDTHS = (64, 128, 128, 256, 256, 256, 256)
_POOL_AFTER = (0, 2, 4)


class CifarVGG(nn.Module):
    """Maps (B, 3, H, W) float32 to (B, num_classes) logits; H and W are at least 8."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 3
        for i, width in enumerate(WIDTHS):
            layers[f"conv{i}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers[f"bn{i}"] = nn.BatchNorm2d(width)
            layers[f"relu{i}"] = nn.ReLU(inplace=True)
            if i in _POOL_AFTER:
                layers[f"pool{i}"] = nn.MaxPool2d(2)
            channels = width
        self.features = nn.Sequential(layers)
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # (B, 256, H / 8, W / 8)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (B, 256)
        return self.linear(x)  # type: ignore[no-any-return]
