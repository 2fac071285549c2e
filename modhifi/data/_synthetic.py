"""Synthetic images: independent noise, and dead leaves, which share the statistics of natural images.

Each image depends only on its index and its size. It is drawn at the network's input size, because resizing would correlate
the pixels of noise and blur the edges of leaves.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from ._data import Data

__all__ = ["LENGTH", "dead_leaves", "draw_leaves", "draw_noise", "noise"]

LENGTH = 65_536
"""The number of images in each source."""

# Part of the data's fingerprint: raise the version whenever a recipe draws different pixels.
_NOISE, _LEAVES = "noise 1", "dead-leaves 1"
_THUMBNAIL = (64, 64)
_MEAN, _STD = 0.45, 0.25

# Average number of leaves over each point, so that e⁻⁶ of the image shows the leaf behind all others.
_LAYERS = 6.0
_SMALLEST = 2.0
"""Radius of the smallest leaf in pixels; that of the largest is the longer side of the image."""
# Disc, rectangle and triangle, each the part of the unit disc where low ≤ v ≤ high and u² ≤ a + b v + c v².
_SHAPES = np.array([[-1, 1, 1, 0, -1], [-0.6, 0.6, 0.64, 0, 0], [-0.5, 1, 1 / 3, -2 / 3, 1 / 3]])
_FREQUENCIES = np.array([0.6, 0.25, 0.15])
_AREAS = np.array([np.pi, 4 * 0.6 * 0.8, 0.75 * 3**0.5])
# Luminance, red against blue, green against both: roughly the principal axes of natural colours, and their spread.
_AXES = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
_SPREADS = np.array([[0.42], [0.12], [0.06]])
_SHADING, _TEXTURE = 0.3, 0.03
# The blur of a lens; without it, edges have more of the highest frequencies than any photograph.
_BLUR = (0.15, 0.7, 0.15)


def noise(split: str) -> Data:
    """Independent Gaussian pixels, see `draw_noise`; for a network with an `ArraySpec`, random inputs like its examples."""
    return dataclasses.replace(_source("noise", _NOISE, draw_noise, split), any_shape=True)


def dead_leaves(split: str) -> Data:
    """Overlapping shapes of all sizes, see `draw_leaves`."""
    return _source("dead-leaves", _LEAVES, draw_leaves, split)


def _source(spec: str, recipe: str, draw: Callable[[int, tuple[int, int]], Image.Image], split: str) -> Data:
    return Data(
        spec=spec,
        root=None,
        split=split,
        read=lambda i: draw(i, _THUMBNAIL),
        order=tuple(range(LENGTH)),
        labels=None,
        classes=None,
        source=hashlib.sha256(recipe.encode()).hexdigest(),
        draw=draw,
    )


def draw_noise(index: int, size: tuple[int, int]) -> Image.Image:
    """RGB image number ``index`` of ``size`` (height, width): independent values, normal with mean 0.45 and standard
    deviation 0.25, clipped to [0, 1].
    """
    return _picture(np.random.default_rng([0, index]).normal(_MEAN, _STD, (*size, 3)))


def draw_leaves(index: int, size: tuple[int, int]) -> Image.Image:
    """RGB image number ``index`` of ``size`` (height, width): overlapping discs, rectangles and triangles.

    The dead leaves model (Lee, Mumford & Huang, "Occlusion models for natural images", 2001) as training images (Baradad et
    al., "Learning to see by looking at noise", 2021): radii with density ∝ r⁻³, which makes the image look the same at every
    scale, and a separate colour, gradient and grain for each leaf.
    """
    rng = np.random.default_rng([1, index])
    height, width = size[0] + 2, size[1] + 2  # the blur consumes one pixel on each side
    sides = np.array([[height], [width]])
    radii, shares, count = _radii(height, width)
    radius = np.interp(rng.random(count), shares, radii)
    centre = sides / 2 + rng.uniform(-1, 1, (2, count)) * (sides / 2 + radius)
    angle, shape = rng.uniform(0, 2 * np.pi, count), rng.choice(len(_SHAPES), count, p=_FREQUENCIES)
    front = _front((height, width), centre, radius, angle, shape)
    # One more leaf lies behind all others and covers the whole image.
    colour = _MEAN + (_SPREADS * rng.standard_normal((3, count + 1))).T @ _AXES
    slope = _SHADING / max(size) * rng.standard_normal((2, count + 1))
    grain = _TEXTURE * rng.standard_normal(count + 1)
    offset = (
        np.mgrid[:height, :width] - np.append(centre, sides / 2, axis=1)[:, front]
    )  # (2, H, W) from the leaf's centre
    light = (slope[:, front] * offset).sum(0) + grain[front] * rng.standard_normal((height, width))
    pixels = colour[front] + light[..., None]
    pixels = sum(share * pixels[i : height - 2 + i] for i, share in enumerate(_BLUR))
    return _picture(sum(share * pixels[:, i : width - 2 + i] for i, share in enumerate(_BLUR)))


@functools.lru_cache(maxsize=8)
def _radii(height: int, width: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Radii, the share of leaves that are no larger, and the number of leaves that cover the image `_LAYERS` times.

    A leaf's centre lies up to its radius outside the image. Among the leaves that touch the image, large ones are therefore
    more frequent than in the plane, where the density is r⁻³.
    """
    radii = np.geomspace(_SMALLEST, max(height, width), 512)
    area = (height + 2 * radii) * (width + 2 * radii)
    density = radii**-3 * area * radii  # over log r
    density /= density.sum()
    covered = (density * (_FREQUENCIES @ _AREAS) * radii**2 / area).sum()
    return radii, np.cumsum(density), int(np.ceil(_LAYERS / covered))


def _front(
    size: tuple[int, int], centre: np.ndarray, radius: np.ndarray, angle: np.ndarray, shape: np.ndarray
) -> np.ndarray:
    """(H, W): the leaf visible at each pixel, which is the lowest index among the N leaves that cover it; N if none does.

    ``centre`` (2, N) is vertical and horizontal; ``radius``, ``angle`` and ``shape`` are (N,). Leaves of similar size are drawn
    together.
    """
    height, width = size
    front = np.full(height * width, len(radius))
    reach = np.ceil(np.sqrt(2) ** np.ceil(2 * np.log2(radius))).astype(
        int
    )  # half the side of the square that is examined
    for half in np.unique(reach):
        some = np.flatnonzero(reach == half)
        middle = centre[:, some, None]
        near = np.floor(middle).astype(int) + np.arange(-half, half + 1)
        y, x = near if 2 * half < min(size) else (np.arange(height)[None], np.arange(width)[None])
        down, across = (y - middle[0])[:, :, None], (x - middle[1])[:, None, :]
        cos, sin = ((f(angle[some]) / radius[some])[:, None, None] for f in (np.cos, np.sin))
        u, v = cos * across - sin * down, sin * across + cos * down
        low, high, a, b, c = _SHAPES[shape[some]].T[:, :, None, None]
        seen = (v >= low) & (v <= high) & (u * u <= a + v * (b + c * v))
        seen &= ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
        leaf, row, column = np.nonzero(seen)
        y, x = np.broadcast_to(y, seen.shape[:2]), np.broadcast_to(x, seen.shape[::2])
        np.minimum.at(front, y[leaf, row] * width + x[leaf, column], some[leaf])
    return front.reshape(size)


def _picture(pixels: np.ndarray) -> Image.Image:
    """(H, W, 3) as an RGB image; values are clipped to [0, 1]."""
    return Image.fromarray(np.rint(255 * pixels.clip(0, 1)).astype(np.uint8))
