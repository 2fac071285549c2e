"""Opening a picture that a stranger made."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..errors import UserError

__all__ = ["SUFFIXES", "open_image"]

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# Pillow would try every format it knows, whatever the name says, and some of those (EPS) start other programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def open_image(source: Path | bytes, name: str) -> Image.Image:
    """The decoded picture (the first frame of several). ``name`` is what the message calls it.

    Raises `UserError` if it cannot be read, is damaged, or has more pixels than Pillow's limit against image bombs.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{image.width}×{image.height} pixels")
            image.load()
            return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name} has too many pixels to be opened safely; make it smaller or take it out") from error
    except Exception as error:
        # The bytes are a stranger's: Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error...
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise UserError(f"{name} is not an image, or a damaged one{reason}; take it out or replace it") from error
