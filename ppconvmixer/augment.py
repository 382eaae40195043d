"""How training pictures are varied: settings, and what they do to a batch.

Pictures are uint8 (N, size, size, 3), RGB, and changed in place; ``Draws`` says what happens to each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Optional, Union

import numpy as np

from . import operations, randaugment
from .draws import Draws
from .errors import UserError, unknown

ERASING_MODES = ("pixel", "const")
TRIES = 10  # to find a rectangle that fits, in torchvision and timm alike
ALPHAS = (0.01, 100.0)  # of mixup and cutmix; beyond, a share is 0, 1 or 1/2 in effect, and in the end no number
_ERASED = {  # area, and width by height; timm's RandomErasing draws noise, torchvision's is black by default
    "pixel": ((0.02, 1 / 3), (0.3, 1 / 0.3)),
    "const": ((0.02, 0.33), (1 / 3.3, 1 / 0.3)),  # torchvision's 0.3 to 3.3 are height by width
}


@dataclasses.dataclass(frozen=True)
class Augment:
    """How training pictures are varied; the defaults leave them as evaluation sees them.

    They are applied in the order of the official scripts: crop, flip, randaugment, jitter, erasing; where batches are
    mixed, that comes before erasing, as in timm, so that noise of one picture does not get into another.

    Args:
        crop_scale: smallest and largest share of the area a random crop keeps; null for the evaluation's crop.
        crop_ratio: smallest and largest width by height of that crop.
        hflip: chance to mirror left and right.
        randaugment: ``n2-m12``, as torchvision's ``RandAugment(2, 12)``, or timm's ``rand-m9-mstd0.5-inc1``; see
            ``randaugment.parse``.
        color_jitter: brightness, contrast and saturation each change by a factor in [1 - c, 1 + c], in any order.
        erasing: chance to erase a rectangle of 1/50 to 1/3 of the area (``const``: to 0.33), after normalisation.
        erasing_mode: what takes its place: ``pixel`` (normal noise) or ``const`` (0, which is the mean colour).
        mixup: parameter of the Beta distribution of the share a picture keeps when a whole other one is
            blended in; 0 for none.
        cutmix: the same, when a rectangle of another one is pasted in; 0 for none.
        mix_prob: chance that a batch is mixed.
        mix_switch_prob: chance of cutmix, where both are given.
        crop_interpolation: ``random`` resizes every crop bilinearly or bicubically, by an even chance, as timm does;
            null takes the input's.
    """

    crop_scale: Union[tuple[float, float], None] = None
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    hflip: float = 0.0
    randaugment: Optional[str] = None
    color_jitter: float = 0.0
    erasing: float = 0.0
    erasing_mode: str = "pixel"
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    mix_switch_prob: float = 0.5
    crop_interpolation: Optional[str] = None

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
        if self.crop_interpolation not in (None, "random"):
            raise unknown("augment.crop_interpolation", self.crop_interpolation, ["random"])
        if self.crop_interpolation and self.crop_scale is None:
            raise UserError("augment.crop_interpolation has no effect without augment.crop_scale; set both or neither")
        for name in ("hflip", "color_jitter", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name} is {getattr(self, name)}; want a number in [0, 1]")
        if self.erasing_mode not in ERASING_MODES:
            raise unknown("augment.erasing_mode", self.erasing_mode, ERASING_MODES)
        if not self.erasing and self.erasing_mode != Augment.erasing_mode:
            raise UserError("augment.erasing_mode has no effect without augment.erasing; leave it out")
        self._check_mixing()
        if self.randaugment is not None:
            randaugment.parse(self.randaugment)

    def _check_mixing(self) -> None:
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            if alpha and not ALPHAS[0] <= alpha <= ALPHAS[1]:
                raise UserError(f"augment.{name} is {alpha}; want 0, or a number from {ALPHAS[0]} to {ALPHAS[1]}")
        if not 0 < self.mix_prob <= 1:
            raise UserError(f"augment.mix_prob is {self.mix_prob}; want a number above 0, at most 1")
        if not 0 < self.mix_switch_prob < 1:
            raise UserError(f"augment.mix_switch_prob is {self.mix_switch_prob}; want a number between 0 and 1")
        if not self.mixes and self.mix_prob != Augment.mix_prob:
            raise UserError("augment.mix_prob has no effect without augment.mixup or augment.cutmix; leave it out")
        if not (self.mixup and self.cutmix) and self.mix_switch_prob != Augment.mix_switch_prob:
            raise UserError("augment.mix_switch_prob has no effect without both augment.mixup and augment.cutmix")

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed, and targets soft."""
        return bool(self.mixup or self.cutmix)


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
    """Erase a rectangle of some of the normalised ``images``, float32 (N, 3, H, W), in place."""
    height, width = images.shape[2:]
    chosen = draws.uniform("erase") < augment.erasing
    numbers = draws.uniform("erased rectangle", TRIES, 4)
    for place in np.flatnonzero(chosen):
        for w, h, x, y in _rectangles(width * height, *_ERASED[augment.erasing_mode], numbers[place]):
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
    operations.apply(lambda chosen: chosen[:, :, ::-1], pictures, draws.uniform("hflip") < chance)


def jitter(pictures: np.ndarray, draws: Draws, strength: float) -> None:
    """Change brightness, contrast and saturation in a random order, as torchvision's ``ColorJitter`` does."""
    kinds = (operations.brightness, operations.contrast, operations.color)
    order = draws.uniform("jitter order", len(kinds)).argsort(axis=1)
    factors = 1 - strength + 2 * strength * draws.uniform("jitter", len(kinds))
    for turn in order.T:
        for kind, operation in enumerate(kinds):
            operations.apply(operation, pictures, turn == kind, factors[:, kind])
