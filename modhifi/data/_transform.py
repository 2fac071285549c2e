"""From an image to the network's input."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..specs import InputSpec

__all__ = ["to_tensor"]

_LARGEST = 1 << 29
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def to_tensor(image: Image.Image, spec: InputSpec) -> Tensor:
    """(C, H, W) float32, normalised; see `InputSpec` for the steps. The pixels match torchvision's transforms.

    Raises `UserError` for an image so elongated that it would have more than `_LARGEST` pixels before it is cropped.
    """
    grey = len(spec.mean) == 1
    picture = image.convert("L" if grey else "RGB")
    height, width = spec.size
    if picture.size != (width, height):
        scale = max(height / picture.height, width / picture.width) / spec.crop
        size = (round(picture.width * scale), round(picture.height * scale))
        if size[0] * size[1] > _LARGEST:
            raise UserError(
                f"an image of {picture.width}×{picture.height} pixels is too elongated for an input of {width}×{height};"
                " crop it"
            )
        picture = picture.resize(size, _FILTERS[spec.interpolation])
        left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
        picture = picture.crop((left, top, left + width, top + height))
    array = torch.from_numpy(np.array(picture))
    pixels = (array[None] if grey else array.permute(2, 0, 1)).float() / 255  # (C, H, W)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    return ((pixels - mean) / std).contiguous()
