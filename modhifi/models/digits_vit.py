"""A small vision transformer for 32×32 images: timm's, with 4 blocks, 64 channels, 4 heads, 16 patches and a class token.

The shipped network that has LayerNorm and residual streams (Dosovitskiy et al., "An Image is Worth 16x16
Words", https://arxiv.org/abs/2010.11929).
"""

from __future__ import annotations

from torch import nn

__all__ = ["digits_vit"]


def digits_vit(num_classes: int = 10) -> nn.Module:
    """Maps (B, 3, 32, 32) float32 to (B, num_classes) logits; initialised as in timm."""
    # timm takes a second to import; only callers that need it should wait.
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=4, num_heads=4, num_classes=num_classes)
