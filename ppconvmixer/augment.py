"""How training pictures are varied: settings, and what they do to a batch.

Pictures are uint8 (N, size, size, 3), RGB, and changed in place; ``Draws`` says what happens to each.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, Callable, Optional, Union

import numpy as np

from . import operations
from .draws import Draws
from .errors import UserError, shown, unknown

ERASING_MODES = ("pixel", "const")
TRIES = 10  # to find a rectangle that fits, in torchvision and timm alike
_ERASED_AREA, _ERASED_RATIO = (0.02, 1 / 3), (0.3, 3.3)


@dataclasses.dataclass(frozen=True)
class Augment:
    """How training pictures are varied; the defaults leave them as evaluation sees them.

    They are applied in the order of the official script: crop, flip, randaugment, jitter, erasing.

    Args:
        crop_scale: smallest and largest share of the area a random crop keeps; null for the evaluation's crop.
        crop_ratio: smallest and largest width by height of that crop.
        hflip: chance to mirror left and right.
        randaugment: ``n2-m12``: as torchvision's ``RandAugment(2, 12)``, two operations at magnitude 12 of 0 to 30.
        color_jitter: brightness, contrast and saturation each change by a factor in [1 - c, 1 + c], in any order.
        erasing: chance to erase a rectangle of 1/50 to 1/3 of the area, after normalisation.
        erasing_mode: what takes its place: ``pixel`` (normal noise) or ``const`` (0, which is the mean colour).
    """

    crop_scale: Union[tuple[float, float], None] = None
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    hflip: float = 0.0
    randaugment: Optional[str] = None
    color_jitter: float = 0.0
    erasing: float = 0.0
    erasing_mode: str = "pixel"

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
        for name in ("hflip", "color_jitter", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name} is {getattr(self, name)}; want a number in [0, 1]")
        if self.erasing_mode not in ERASING_MODES:
            raise unknown("augment.erasing_mode", self.erasing_mode, ERASING_MODES)
        if not self.erasing and self.erasing_mode != Augment.erasing_mode:
            raise UserError("augment.erasing_mode has no effect without augment.erasing; leave it out")
        if self.randaugment is not None:
            parse_randaugment(self.randaugment)


# --- rectangles ---------------------------------------------------------------------------------------


def crop_box(width: int, height: int, augment: Augment, numbers: np.ndarray) -> tuple[int, int, int, int]:
    """Return a random crop (left, top, right, bottom) as torchvision's ``RandomResizedCrop`` defines it.

    Args:
        numbers: (TRIES, 4) in [0, 1), for area, ratio, left and top.
    """
    ratios = augment.crop_ratio
    for w, h, x, y in _rectangles(width * height, augment.crop_scale, ratios, numbers):
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    # No such crop fits: the largest one in the middle of the nearest allowed ratio.
    ratio = min(max(width / height, ratios[0]), ratios[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _rectangles(
    area: int, scale: tuple[float, float], ratio: tuple[float, float], numbers: np.ndarray
) -> Iterator[tuple[int, int, float, float]]:
    """Yield width, height and the two numbers for the place of every try: area uniform, log of the ratio uniform."""
    (least, most), (low, high) = scale, map(math.log, ratio)
    for a, r, x, y in numbers.tolist():
        share, shape = area * (least + (most - least) * a), math.exp(low + (high - low) * r)
        yield round(math.sqrt(share * shape)), round(math.sqrt(share / shape)), x, y


def erase(images: np.ndarray, draws: Draws, augment: Augment) -> None:
    """Erase a rectangle of some of the normalised ``images``, float32 (N, 3, H, W), in place, as timm does."""
    height, width = images.shape[2:]
    chosen = draws.uniform("erase") < augment.erasing
    numbers = draws.uniform("erased rectangle", TRIES, 4)
    for place in np.flatnonzero(chosen):
        for w, h, x, y in _rectangles(width * height, _ERASED_AREA, _ERASED_RATIO, numbers[place]):
            if w < width and h < height:
                left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
                erased = images[place, :, top : top + h, left : left + w]
                if augment.erasing_mode == "const":
                    erased[:] = 0
                else:
                    erased[:] = draws.generator("noise", place).standard_normal(erased.shape, np.float32)
                break


# --- flips and colours --------------------------------------------------------------------------------


def flip(pictures: np.ndarray, draws: Draws, chance: float) -> None:
    """Mirror some pictures left and right."""
    _apply(pictures, draws.uniform("hflip") < chance, lambda chosen: chosen[:, :, ::-1])


def jitter(pictures: np.ndarray, draws: Draws, strength: float) -> None:
    """Change brightness, contrast and saturation in a random order, as torchvision's ``ColorJitter`` does."""
    kinds = (operations.brightness, operations.contrast, operations.color)
    order = draws.uniform("jitter order", len(kinds)).argsort(axis=1)
    factors = 1 - strength + 2 * strength * draws.uniform("jitter", len(kinds))
    for turn in order.T:
        for kind, operation in enumerate(kinds):
            _apply(pictures, turn == kind, operation, factors[:, kind])


def _apply(pictures: np.ndarray, chosen: np.ndarray, operation: Callable[..., np.ndarray], *levels: np.ndarray) -> None:
    if chosen.any():
        pictures[chosen] = operation(pictures[chosen], *(level[chosen] for level in levels))


# --- RandAugment --------------------------------------------------------------------------------------

BINS = 31  # magnitudes of torchvision's RandAugment, 0 to 30


def parse_randaugment(text: str) -> RandAugment:
    """Return what ``augment.randaugment`` means.

    Raises:
        UserError: it means nothing.
    """
    match = re.fullmatch(r"n([1-9]\d?)-m(\d\d?)", text)
    if match is None or int(match[2]) >= BINS:
        raise UserError(
            f"augment.randaugment is {shown(text)}; want nN-mM, such as n2-m12: N operations at magnitude M, 0 to 30"
        )
    return RandAugment(int(match[1]), int(match[2]))


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """torchvision's ``RandAugment(num_ops, magnitude)``: 14 operations, each as likely, nearest pixels, black fill."""

    num_ops: int
    magnitude: int

    def __call__(self, pictures: np.ndarray, draws: Draws) -> None:
        table = self.table(pictures.shape[1])
        kinds = (draws.uniform("randaugment", self.num_ops) * len(table)).astype(int)
        negative = draws.uniform("randaugment sign", self.num_ops) < 0.5
        for turn in range(self.num_ops):
            for kind, (operation, *levels) in enumerate(table.values()):
                drawn = [np.where(negative[:, turn], *levels)] if levels else []
                _apply(pictures, kinds[:, turn] == kind, operation, *drawn)

    def table(self, side: int) -> dict[str, tuple[Any, ...]]:
        """Return each operation, with its levels of negative and of positive sign where it has any.

        torch holds these levels in single precision; the definition is followed in double precision here.
        """
        share = self.magnitude / (BINS - 1)

        def both(operation: Any, most: float, origin: float = 0.0) -> tuple[Any, float, float]:
            return operation, origin - most * share, origin + most * share

        return {
            "identity": (lambda pictures: pictures,),
            "shear_x": both(operations.shear_x, 0.3),
            "shear_y": both(operations.shear_y, 0.3),
            "translate_x": both(operations.translate_x, 150 / 331 * side),
            "translate_y": both(operations.translate_y, 150 / 331 * side),
            "rotate": both(operations.rotate, 30.0),
            "brightness": both(operations.brightness, 0.9, 1.0),
            "color": both(operations.color, 0.9, 1.0),
            "contrast": both(operations.contrast, 0.9, 1.0),
            "sharpness": both(operations.sharpness, 0.9, 1.0),
            "posterize": (operations.posterize, *[8 - round(4 * share)] * 2),
            "solarize": (operations.solarize, *[255 - 255 * share] * 2),
            "autocontrast": (operations.autocontrast,),
            "equalize": (operations.equalize,),
        }
