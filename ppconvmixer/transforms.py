"""From the bytes of a picture to the input of a network: declared once, used wherever a picture is read."""

from __future__ import annotations

import dataclasses
import functools
import io
import math
from typing import Any, Callable, Union

import numpy as np
from PIL import Image, ImageEnhance, UnidentifiedImageError

from .errors import UserError, said, unknown
from .zoo import InputSpec

Picture = Union[Image.Image, np.ndarray]
"""RGB: a Pillow image (backend "pil") or uint8 (H, W, 3) (backend "cv2")."""

BACKENDS = ("pil", "cv2")
# Pillow knows forty kinds, and one of them (EPS) is a program that it hands to Ghostscript.
KINDS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MAX_PIXELS = (1 << 30) // 12  # 89 million, where Pillow begins to warn: 1 GiB at three channels and a copy in float


def decode(data: bytes, backend: str = "pil") -> Picture:
    """Decode a picture of any kind to RGB as Pillow's ``convert("RGB")`` does, which is what timm evaluates.

    Grey becomes three equal channels, CMYK and palettes are converted, transparency is dropped and
    EXIF orientation is ignored. Grey of 16 bits is divided by 257 and rounded (Pillow would cut it off
    at 255, which makes most of the picture white). With the backend "cv2", whole grey and colour JPEGs are decoded by
    OpenCV; everything else, and any JPEG that does not end as it should, is Pillow's work, so that
    both backends accept and refuse the same files.

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
    levels = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8))


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
    short, size = math.floor(spec.size / spec.crop_pct), spec.size
    resize = {"pil": _resize_pil, "cv2": _resize_cv2}.get(backend)
    if resize is None:
        raise unknown("backend", backend, BACKENDS)
    if backend == "cv2":
        _cv2()

    def crop(picture: Picture) -> np.ndarray:
        width, height = _size(picture)
        if width <= height:
            shape = short, int(short * height / width)
        else:
            shape = int(short * width / height), short
        check_pixels(*shape)  # a picture of one pixel by sixty thousand would become one of gigabytes
        resized = np.asarray(resize(picture, shape, spec.interpolation))
        top, left = (int(round((n - size) / 2)) for n in resized.shape[:2])
        return resized[top : top + size, left : left + size]

    return crop


def eval_transform(spec: InputSpec, backend: str = "pil") -> Callable[[Picture], np.ndarray]:
    """Return the function from a picture to the network's input, float32 (3, size, size)."""
    crop, normalise = eval_crop(spec, backend), _normalise(spec)
    return lambda picture: normalise(crop(picture))


@dataclasses.dataclass(frozen=True)
class Augment:
    """How training pictures are varied; the defaults leave them as evaluation sees them.

    Args:
        crop_scale: smallest and largest share of the area a random crop keeps; null for the evaluation's crop.
        crop_ratio: smallest and largest width by height of that crop.
        hflip: chance to mirror left and right.
        color_jitter: brightness, contrast and saturation each change by a factor in [1 - c, 1 + c].
    """

    crop_scale: Union[tuple[float, float], None] = None
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    hflip: float = 0.0
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        for name in ("crop_scale", "crop_ratio"):
            pair = getattr(self, name)
            if pair is not None and not (len(pair) == 2 and 0 < pair[0] <= pair[1]):
                raise UserError(f"augment.{name} is {list(pair)}; want two numbers above 0, the smaller first")
        if self.crop_scale is not None and self.crop_scale[1] > 1:
            raise UserError(
                f"augment.crop_scale reaches {self.crop_scale[1]}; a crop is at most the whole picture, 1.0"
            )
        if self.crop_scale is None and tuple(self.crop_ratio) != (1.0, 1.0):
            raise UserError("augment.crop_ratio has no effect without augment.crop_scale; set both or neither")
        for name in ("hflip", "color_jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name} is {getattr(self, name)}; want a number in [0, 1]")


def train_transform(spec: InputSpec, augment: Augment) -> Callable[[Image.Image, np.random.Generator], np.ndarray]:
    """Return the function from a Pillow picture and a random generator to float32 (3, size, size)."""
    crop, normalise = eval_crop(spec), _normalise(spec)
    resample = _resample(spec.interpolation)

    def transform(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        if augment.crop_scale is not None:
            box = _random_box(image.size, augment, rng)
            image = image.resize((spec.size, spec.size), resample, box=box)
        if rng.random() < augment.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if augment.color_jitter:
            image = _jitter(image, augment.color_jitter, rng)
        return normalise(np.asarray(image) if augment.crop_scale is not None else crop(image))

    return transform


def _random_box(size: tuple[int, int], augment: Augment, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a crop (left, top, right, bottom): area uniform, log of the ratio uniform, ten tries (Inception's way)."""
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(*augment.crop_scale)
        ratio = math.exp(rng.uniform(*np.log(augment.crop_ratio)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    # No such crop fits: the largest one in the middle of the nearest allowed ratio.
    ratio = min(max(width / height, augment.crop_ratio[0]), augment.crop_ratio[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for i in rng.permutation(len(kinds)):
        image = kinds[i](image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image


def _normalise(spec: InputSpec) -> Callable[[np.ndarray], np.ndarray]:
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (spec.mean, spec.std))
    return lambda pixels: (pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255) - mean) / std


def _size(picture: Picture) -> tuple[int, int]:
    return picture.size if isinstance(picture, Image.Image) else picture.shape[1::-1]


def _resample(interpolation: str) -> Image.Resampling:
    return Image.Resampling[interpolation.upper()]


def _resize_pil(picture: Picture, shape: tuple[int, int], interpolation: str) -> Image.Image:
    return picture.resize(shape, _resample(interpolation))


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
