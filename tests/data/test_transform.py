"""The transform against torchvision's."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from modhifi.data._transform import to_tensor
from modhifi.specs import InputSpec


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("mode", "shape"), [("RGB", (37, 50)), ("L", (8, 8)), ("RGBA", (90, 41)), ("RGB", (24, 24))])
@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_the_same_pixels_as_torchvision(interpolation: str, mode: str, shape: tuple[int, int], crop: float) -> None:
    channels = len(mode)
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, channels), dtype=np.uint8)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    spec = InputSpec(size=(24, 24), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), interpolation=interpolation, crop=crop)
    steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(spec.mean, spec.std)]
    if shape != (24, 24):  # a picture of the right size is taken as it is
        scale = 24 / min(shape) / crop
        resize = v2.Resize([round(shape[0] * scale), round(shape[1] * scale)], v2.InterpolationMode(interpolation))
        steps = [resize, v2.CenterCrop(24), *steps]
    torch.testing.assert_close(to_tensor(image, spec), v2.Compose(steps)(image.convert("RGB")), atol=1e-6, rtol=1e-6)
