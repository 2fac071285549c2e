"""The residual networks for 32×32 images of He et al., "Deep Residual Learning for Image Recognition", section 4.2.

A network of depth 6n + 2 has a 3×3 convolution, three stages of n blocks with 16, 32 and 64 channels at 32×32, 16×16
and 8×8, global average pooling and one linear layer. The shortcuts have no parameters (option A): at the start of a
stage they take every second pixel and pad the missing channels with zeros. https://arxiv.org/abs/1512.03385
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..specs import InputSpec

__all__ = ["CIFAR10_CLASSES", "CIFAR10_INPUT", "DEPTHS", "CifarResNet", "cifar_resnet"]

DEPTHS = (20, 32, 44, 56, 110)
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# The normalisation used by the checkpoints of github.com/akamaster/pytorch_resnet_cifar10, not CIFAR-10's own statistics.
CIFAR10_INPUT = InputSpec(size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions plus the identity, (B, C, H, W) -> (B, width, H / stride, W / stride)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        # The old channels are in the middle: half of the new ones come before them, half after.
        self.padding = ((width - channels) // 2, width - channels - (width - channels) // 2)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))  # (B, width, H / stride, W / stride)
        out = self.bn2(self.conv2(out))
        if self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if any(self.padding):
            x = F.pad(x, (0, 0, 0, 0, *self.padding))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """Maps (B, 3, H, W) float32 to (B, num_classes) logits; H and W are 32 in the paper; any multiple of 4 works."""

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(channels, width, stride)
        return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # (B, 16, 32, 32)
        x = self.layer1(x)  # (B, 16, 32, 32)
        x = self.layer2(x)  # (B, 32, 16, 16)
        x = self.layer3(x)  # (B, 64, 8, 8)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (B, 64)
        return self.linear(x)  # type: ignore[no-any-return]


def cifar_resnet(depth: int, num_classes: int = 10) -> CifarResNet:
    """The network of the given depth, one of `DEPTHS`, with He initialisation. Raises ValueError for any other depth."""
    if depth not in DEPTHS:
        raise ValueError(f"depth must be one of {DEPTHS}, not {depth}")
    return CifarResNet((depth - 2) // 6, num_classes)
