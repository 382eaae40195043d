"""Pillow's operations on many pictures at once, equal to Pillow's to the bit.

Pictures are uint8 (N, H, W, 3), RGB; a level is one number a picture. Called picture by picture, Pillow
spends most of its time on one of 32 x 32 in being called. To the bit is meant on x86-64: where a compiler
fuses multiplication and addition, as on ARM, Pillow's own blends may be off by one level.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Callable

import numpy as np
from PIL import Image

_CHUNK = 1 << 16  # pixels worked on at once: their indices and floats stay in a processor's cache
_LEVELS = np.arange(256)


def apply(operation: Callable[..., np.ndarray], pictures: np.ndarray, chosen: np.ndarray, *levels: np.ndarray) -> None:
    """Do ``operation`` with the ``chosen`` pictures and their levels, in place."""
    if chosen.any():
        pictures[chosen] = operation(pictures[chosen], *(level[chosen] for level in levels))


# --- tables: a new level for every old one ------------------------------------------------------------


def brightness(pictures: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Blend with black, as ``ImageEnhance.Brightness`` does."""
    return _look_up(pictures, _blend(0, _LEVELS, factors[:, None])[:, None])


def contrast(pictures: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Blend with the mean grey, rounded, as ``ImageEnhance.Contrast`` does."""
    sums = [_grey(pictures[part]).sum(axis=(1, 2), dtype=np.int64) for part in _chunks(pictures)]
    means = np.floor(np.concatenate(sums) / _pixels(pictures) + 0.5)
    return _look_up(pictures, _blend(means[:, None], _LEVELS, factors[:, None])[:, None])


def posterize(pictures: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Keep so many of the upper bits of every level, as ``ImageOps.posterize`` does."""
    lowest = 1 << (8 - bits.astype(np.int64))
    return pictures & (256 - lowest).astype(np.uint8)[:, None, None, None]


def solarize(pictures: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Invert the levels from the threshold on, as ``ImageOps.solarize`` does."""
    return np.where(pictures < thresholds[:, None, None, None], pictures, 255 - pictures)


def solarize_add(pictures: np.ndarray, added: np.ndarray) -> np.ndarray:
    """Make the levels below 128 lighter by so much, as timm's operation of this name does."""
    return _look_up(pictures, np.where(_LEVELS < 128, _LEVELS + added[:, None], _LEVELS).astype(np.uint8)[:, None])


def invert(pictures: np.ndarray) -> np.ndarray:
    """Take the negative, as ``ImageOps.invert`` does."""
    return 255 - pictures


def autocontrast(pictures: np.ndarray) -> np.ndarray:
    """Stretch every channel over all levels, as ``ImageOps.autocontrast`` does."""
    # Rows first: what is side by side in memory is quick to compare.
    low, high = (f(f(pictures, axis=1), axis=1)[..., None].astype(np.float64) for f in (np.min, np.max))
    flat = high <= low
    scale = 255.0 / np.where(flat, 1, high - low)
    stretched = np.trunc(_LEVELS * scale + -low * scale).clip(0, 255)
    return _look_up(pictures, np.where(flat, _LEVELS, stretched).astype(np.uint8))


def equalize(pictures: np.ndarray) -> np.ndarray:
    """Make every level of a channel about as frequent, as ``ImageOps.equalize`` does."""
    counts = np.empty((len(pictures), 3, 256), np.int64)
    for part in _chunks(pictures):
        bins = counts[part]
        places = pictures[part] + np.arange(len(bins) * 3).reshape(-1, 1, 1, 3) * 256
        bins[:] = np.bincount(places.ravel(), minlength=bins.size).reshape(bins.shape)
    highest = 255 - (counts[..., ::-1] > 0).argmax(axis=2)
    steps = (_pixels(pictures) - np.take_along_axis(counts, highest[..., None], axis=2)) // 255
    below = counts.cumsum(axis=2) - counts
    evened = (steps // 2 + below) // np.maximum(steps, 1)
    return _look_up(pictures, np.where(steps == 0, _LEVELS, evened.clip(0, 255)).astype(np.uint8))


def _look_up(pictures: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Replace every level by its entry in ``tables``, uint8 (N, 1 or 3 channels, 256)."""
    n, channels, _ = tables.shape
    starts = np.arange(n * channels, dtype=np.intp).reshape(n, 1, 1, channels) * 256
    result = np.empty_like(pictures)
    for part in _chunks(pictures):
        np.take(tables.reshape(-1), pictures[part] + starts[part], out=result[part], mode="clip")
    return result


# --- blends with another picture ----------------------------------------------------------------------


def color(pictures: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Blend with the grey picture, as ``ImageEnhance.Color`` does."""
    result = np.empty_like(pictures)
    for part in _chunks(pictures):
        result[part] = _blend(_grey(pictures[part])[..., None], pictures[part], factors[part, None, None, None])
    return result


def sharpness(pictures: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Blend with the smoothed picture, as ``ImageEnhance.Sharpness`` does; its outermost pixels stay."""
    result = pictures.copy()
    if min(pictures.shape[1:3]) < 3:
        return result
    for part in _chunks(pictures):
        wide = pictures[part].astype(np.uint16)
        rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
        total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * wide[:, 1:-1, 1:-1]
        # The weights are 1, and 5 in the middle, of 13. No sum lies half-way, so Pillow's float rounds as we do.
        smooth = (2 * total + 13) // 26
        result[part, 1:-1, 1:-1] = _blend(smooth, pictures[part, 1:-1, 1:-1], factors[part, None, None, None])
    return result


def _grey(pictures: np.ndarray) -> np.ndarray:
    """Pillow's luma in 16 bits of fraction, uint8 (N, H, W)."""
    red, green, blue = (pictures[..., c].astype(np.uint32) for c in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)


def _blend(a: np.ndarray, b: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """``Image.blend``: from ``a`` (factor 0) to ``b`` (1) and beyond, in single precision, cut off at 0 and 255."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    return (a + factors.astype(np.float32) * (b - a)).clip(0, 255).astype(np.uint8)


# --- moving pixels ------------------------------------------------------------------------------------

Matrix = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): the pixel at (x, y) comes from (ax + by + c, dx + ey + f)."""


def shear_x(level: float) -> Matrix:
    """Shift every row to the left by ``level`` times its distance from the top."""
    return 1, level, 0, 0, 1, 0


def shear_y(level: float) -> Matrix:
    """Shift every column upwards by ``level`` times its distance from the left."""
    return 1, 0, 0, level, 1, 0


def shift(x: float, y: float) -> Matrix:
    """Shift to the left and upwards by so many pixels."""
    return 1, 0, x, 0, 1, y


def turn(degrees: float, width: int, height: int) -> Matrix:
    """Turn counter-clockwise about the middle, with the rounding of ``Image.rotate``."""
    angle, x, y = -math.radians(degrees % 360), width / 2, height / 2
    c, s = round(math.cos(angle), 15), round(math.sin(angle), 15)
    return c, s, c * -x + s * -y + x, -s, c, -s * -x + c * -y + y


def move(pictures: np.ndarray, matrices: list[Matrix]) -> np.ndarray:
    """``Image.transform`` with ``AFFINE``, the nearest pixel, and black for what lies outside; a matrix a picture."""
    height, width = pictures.shape[1:3]
    a, b, c, d, e, f = np.array(matrices, np.float64).T
    # Pillow counts in 16 bits of fraction, from the middle of the first pixel.
    a, b, c, d, e, f = (
        np.floor(v * 65536 + 0.5).astype(np.int32)[:, None, None]
        for v in (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    )
    columns, rows = np.arange(width, dtype=np.int32), np.arange(height, dtype=np.int32)[:, None]
    result = np.empty_like(pictures)
    for part in _chunks(pictures):
        x = ((c[part] + b[part] * rows) + a[part] * columns) >> 16
        y = ((f[part] + e[part] * rows) + d[part] * columns) >> 16
        outside = (x.view(np.uint32) >= width) | (y.view(np.uint32) >= height)  # unsigned, what is negative is large
        source = y * width + x + np.arange(len(x), dtype=np.int32)[:, None, None] * (height * width)
        source[outside] = 0
        moved = np.take(pictures[part].reshape(-1, 3), source, axis=0)
        moved[outside] = 0
        result[part] = moved
    return result


def move_smoothly(
    pictures: np.ndarray, matrices: list[Matrix], bicubic: np.ndarray, fill: tuple[int, int, int]
) -> np.ndarray:
    """Move between pixels: by Pillow itself, since its sixteen weights a pixel are slow to apply in whole arrays.

    Args:
        bicubic: bool (N,); bilinear where it is False.
        fill: the colour of what lies outside.
    """
    result = np.empty_like(pictures)
    for place, (picture, matrix, cubic) in enumerate(zip(pictures, matrices, bicubic)):
        image, filter_ = Image.fromarray(picture), Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
        result[place] = image.transform(image.size, Image.Transform.AFFINE, matrix, filter_, fillcolor=fill)
    return result


def _pixels(pictures: np.ndarray) -> int:
    return pictures.shape[1] * pictures.shape[2]


def _chunks(pictures: np.ndarray) -> Iterator[slice]:
    """Yield the parts of a batch that are worked on at once."""
    count = max(_CHUNK // _pixels(pictures), 1)
    for start in range(0, len(pictures), count):
        yield slice(start, min(start + count, len(pictures)))
