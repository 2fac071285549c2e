"""From a picture to the network's input."""

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..models._types import InputSpec

__all__ = ["to_tensor"]


def to_tensor(image: Image.Image, spec: InputSpec) -> Tensor:
    """(3, H, W) float32, normalised; see `InputSpec` for the steps."""
    picture = image.convert("RGB")
    height, width = spec.size
    if picture.size != (width, height):
        scale = max(height / picture.height, width / picture.width) / spec.crop
        target = [round(picture.height * scale), round(picture.width * scale)]
        resized = F.resize(picture, target, interpolation=InterpolationMode(spec.interpolation), antialias=True)
        picture = F.center_crop(resized, [height, width])
    pixels = F.to_dtype(F.pil_to_tensor(picture), torch.float32, scale=True)
    normalised: Tensor = F.normalize(pixels, list(spec.mean), list(spec.std))
    return normalised
