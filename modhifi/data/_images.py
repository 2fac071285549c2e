"""Opening untrusted images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import UserError

__all__ = ["SUFFIXES", "open_image"]

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# Pillow would try every format it knows, whatever the suffix, and some of them (EPS) start other programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def open_image(source: Path | bytes, name: str) -> Image.Image:
    """The decoded image (the first frame if there are several). Error messages call it ``name``. Grey values of 16 bits are
    reduced to 8: Pillow would cut them off at 255.

    Raises `UserError` if it cannot be read, is damaged, exceeds Pillow's limit against decompression bombs, or has pixels of 32
    bits, whose range nobody knows.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{image.width}×{image.height} pixels")
            image.load()
            if image.mode in ("I", "F"):
                raise UserError(f"{name} has pixels of 32 bits; save it with 8 or 16 bits per channel")
            if image.mode.startswith("I;16"):
                return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
            return image
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name} has too many pixels to be opened safely; shrink or remove it") from error
    except Exception as error:
        # The file is untrusted: Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error...
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise UserError(f"{name} is damaged or not an image{reason}; remove or replace it") from error
