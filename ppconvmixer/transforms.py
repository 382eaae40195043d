"""From the bytes of a picture to the input of a network: declared once, used wherever a picture is read."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from typing import Any, Callable, Optional, Union

import numpy as np
from PIL import Image, UnidentifiedImageError

from . import randaugment
from .augment import TRIES, Augment, crop_box, erase, flip, jitter
from .draws import Draws
from .errors import UserError, said, unknown
from .zoo import InputSpec

Picture = Union[Image.Image, np.ndarray]
"""RGB: a Pillow image or uint8 (H, W, 3)."""

BACKENDS = ("pil", "cv2")
# Pillow knows forty kinds, and one of them (EPS) is a program that it hands to Ghostscript.
KINDS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MAX_PIXELS = (1 << 30) // 12  # 89 million, where Pillow begins to warn: 1 GiB at three channels and a copy in float


def decode(data: bytes, backend: str = "pil") -> Picture:
    """Decode a picture of any kind to RGB as Pillow's ``convert("RGB")`` does, which is what timm evaluates.

    Grey becomes three equal channels, CMYK and palettes are converted, transparency is dropped and
    EXIF orientation is ignored. Grey of 16 bits (and of 12 in TIFF) is scaled to 8 and rounded; Pillow
    would cut it off at 255, which makes most of the picture white. With the backend "cv2", whole grey and
    colour JPEGs are decoded by OpenCV; everything else, and any JPEG that does not end as it should, is
    Pillow's work, so that both backends accept and refuse the same files, but for a few that are damaged
    in their middle.

    Raises:
        UserError: not a picture of ``KINDS``, a damaged one, one of more than ``MAX_PIXELS``, or one of
            32-bit grey; the message is the decoder's.
    """
    try:
        with Image.open(io.BytesIO(data), formats=KINDS) as image:
            check_pixels(*image.size)
            if (
                backend == "cv2"
                and image.format == "JPEG"
                and image.mode in ("L", "RGB")
                and data.endswith(b"\xff\xd9")
            ):
                return _decode_cv2(data)
            rgb = _of_8_bits(image).convert("RGB")
    except UserError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever their parsing runs into
        raise UserError(_reason(error)) from error
    return rgb if backend == "pil" else np.asarray(rgb)


def check_pixels(width: int, height: int) -> None:
    """Raise a UserError for a picture that would take too much memory."""
    if width * height > MAX_PIXELS:
        raise UserError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}; make the picture smaller")


def _of_8_bits(image: Image.Image) -> Image.Image:
    # Pillow's mode for 16 bits is "I;16", and "I" for some kinds of file and in older versions.
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if image.mode == "F" or (image.mode == "I" and not sixteen):
        raise UserError(f"its grey levels are of 32 bits (mode {image.mode}); convert it to 8 or 16 bits")
    if not sixteen:
        return image
    levels, most = np.asarray(image).astype(np.uint32), 65535
    if image.format == "TIFF":  # of 12 bits, perhaps, or with 0 for white; Pillow leaves both to us
        bits, photometric = image.tag_v2.get(258, (16,))[0], image.tag_v2.get(262)
        most = (1 << bits) - 1
        levels = most - levels if photometric == 0 else levels
    return Image.fromarray(((255 * levels + most // 2) // most).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no picture of a known kind"  # Pillow's own words name a buffer in memory
    return said(error)


def _decode_cv2(data: bytes) -> np.ndarray:
    cv2 = _cv2()
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if bgr is None:
        raise UserError("OpenCV cannot decode it")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def eval_crop(spec: InputSpec, backend: str = "pil") -> Callable[[Picture], np.ndarray]:
    """Return the function that resizes the short side and cuts out the middle, to uint8 (size, size, 3).

    Sizes and offsets are rounded as torchvision's ``Resize`` and ``CenterCrop`` round them. "pil"
    resizes with Pillow, whose filter grows with the reduction (antialiasing). "cv2" resizes with
    OpenCV, whose filter does not: faster, other pixels, and an accuracy that may differ by some
    tenths of a point from the published one.
    """
    size = spec.size
    resize = {"pil": _resize_pil, "cv2": _resize_cv2}.get(backend)
    if resize is None:
        raise unknown("backend", backend, BACKENDS)
    if backend == "cv2":
        _cv2()

    def crop(picture: Picture) -> np.ndarray:
        shape, (left, top) = _middle(spec, *dimensions(picture))
        check_pixels(*shape)  # a picture of one pixel by sixty thousand would become one of gigabytes
        resized = np.asarray(picture if dimensions(picture) == shape else resize(picture, shape, spec.interpolation))
        return resized[top : top + size, left : left + size]

    return crop


def eval_box(spec: InputSpec, width: int, height: int) -> tuple[float, float, float, float]:
    """Return which part of a picture ``eval_crop`` takes: left, top, right and bottom, in pixels of the picture."""
    shape, corner = _middle(spec, width, height)
    (left, right), (top, bottom) = (
        (start * whole / resized, (start + spec.size) * whole / resized)
        for start, whole, resized in zip(corner, (width, height), shape)
    )
    return left, top, right, bottom


def _middle(spec: InputSpec, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the (width, height) a picture is resized to, and the (left, top) corner of what is cut out of that."""
    short = math.floor(spec.size / spec.crop_pct)
    shape = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    left, top = (int(round((n - spec.size) / 2)) for n in shape)
    return shape, (left, top)


class Transform:
    """The way from a picture to the network's input: a crop for each picture, then the rest for a whole batch.

    Args:
        augment: how pictures are varied; then ``draws`` must be given.
    """

    def __init__(self, spec: InputSpec, backend: str = "pil", augment: Optional[Augment] = None):
        self.spec, self.backend, self.augment = spec, backend, augment or Augment()
        self._crop = eval_crop(spec, backend)
        text = self.augment.randaugment
        self._randaugment = randaugment.parse(text, spec.mean) if text else None
        self._mean, self._std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (spec.mean, spec.std))

    def __call__(self, picture: Picture, draws: Optional[Draws] = None) -> np.ndarray:
        """Return the input made of one picture, float32 (3, size, size)."""
        (numbers,) = self.crop_numbers(draws, 1)
        return self.finish(self.crop(picture, numbers)[None].copy(), draws)[0]

    def crop_numbers(self, draws: Optional[Draws], count: int) -> Sequence[Optional[tuple[np.ndarray, str]]]:
        """Return what ``crop`` wants to know for each of ``count`` pictures."""
        if self.augment.crop_scale is None:
            return [None] * count
        ways = [self.spec.interpolation] * count
        if self.augment.crop_interpolation == "random":
            ways = ["bicubic" if number < 0.5 else "bilinear" for number in draws.uniform("crop bicubic")]
        return list(zip(draws.uniform("crop", TRIES, 4), ways))

    def crop(self, picture: Picture, numbers: Optional[tuple[np.ndarray, str]] = None) -> np.ndarray:
        """Return what is cut out of a picture, uint8 (size, size, 3)."""
        if numbers is None:
            return self._crop(picture)
        numbers, interpolation = numbers
        size = self.spec.size, self.spec.size
        box = crop_box(*dimensions(picture), self.augment, numbers)
        if box == (0, 0, *size) and dimensions(picture) == size:
            return np.asarray(picture)
        return np.asarray(_image(picture).resize(size, _resample(interpolation), box=box))

    def finish(self, pictures: np.ndarray, draws: Optional[Draws] = None) -> np.ndarray:
        """Vary ``pictures``, uint8 (N, size, size, 3), in place; return them normalised, float32 (N, 3, size, size)."""
        augment = self.augment
        if augment.hflip:
            flip(pictures, draws, augment.hflip)
        if self._randaugment:
            self._randaugment(pictures, draws)
        if augment.color_jitter:
            jitter(pictures, draws, augment.color_jitter)
        images = np.empty((len(pictures), 3, *pictures.shape[1:3]), np.float32)
        for image, picture in zip(images, pictures):  # one at a time stays in the cache
            np.divide(picture.transpose(2, 0, 1), np.float32(255), out=image)
            image -= self._mean
            image /= self._std
        if augment.erasing and not augment.mixes:  # a rectangle is erased of what was mixed, see ``TrainBatches``
            erase(images, draws, augment)
        return images


def eval_transform(spec: InputSpec, backend: str = "pil") -> Transform:
    """Return the transform of evaluation and prediction."""
    return Transform(spec, backend)


def train_transform(spec: InputSpec, augment: Augment) -> Transform:
    """Return the transform of training."""
    return Transform(spec, augment=augment)


def to_pixels(images: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Return the pixels, uint8 (N, size, size, 3), that a network's input, float32 (N, 3, size, size), was made of."""
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (spec.mean, spec.std))
    pixels = np.rint(255 * (images * std + mean)).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def dimensions(picture: Picture) -> tuple[int, int]:
    """Return width and height, in pixels."""
    return picture.size if isinstance(picture, Image.Image) else picture.shape[1::-1]


def _resample(interpolation: str) -> Image.Resampling:
    return Image.Resampling[interpolation.upper()]


def _image(picture: Picture) -> Image.Image:
    return picture if isinstance(picture, Image.Image) else Image.fromarray(picture)


def _resize_pil(picture: Picture, shape: tuple[int, int], interpolation: str) -> Image.Image:
    return _image(picture).resize(shape, _resample(interpolation))


def _resize_cv2(picture: Picture, shape: tuple[int, int], interpolation: str) -> np.ndarray:
    cv2 = _cv2()
    name = {"nearest": "NEAREST", "bilinear": "LINEAR", "bicubic": "CUBIC", "lanczos": "LANCZOS4"}[interpolation]
    return cv2.resize(np.asarray(picture), shape, interpolation=getattr(cv2, f"INTER_{name}"))


@functools.cache
def _cv2() -> Any:
    """Import OpenCV with one thread; the data workers are the parallelism.

    It must first happen before workers are forked, which is why making the transform calls it: a
    child that sets the number of threads waits for ever for the threads of its parent's pool.
    """
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"the backend cv2 needs OpenCV ({error}); pip install opencv-python, or use --backend pil"
        ) from error
    cv2.setNumThreads(1)
    return cv2
