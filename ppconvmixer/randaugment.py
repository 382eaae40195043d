"""RandAugment (Cubuk et al. 2020, arXiv 1909.13719) in the two meanings of recipes: torchvision's and timm's."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Callable

import numpy as np

from . import operations as o
from .draws import Draws
from .errors import UserError, shown, unknown

BINS = 31  # magnitudes of torchvision, 0 to 30
MOST = 10  # the largest magnitude of timm

Operation = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""From pictures, the share of the largest magnitude in [0, 1], the sign (-1 or 1) and whether to interpolate
bicubically, one of each a picture, to pictures."""


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Draws so many operations a picture, each as likely, and applies them one after the other.

    Args:
        magnitude: share of the largest.
        spread: standard deviation of that share; it is cut off at 0 and 1.
        chance: that an operation that was drawn is applied.
    """

    table: Mapping[str, Operation]
    num_ops: int
    magnitude: float
    spread: float = 0.0
    chance: float = 1.0

    def __call__(self, pictures: np.ndarray, draws: Draws) -> None:
        """Change ``pictures`` in place."""
        n = self.num_ops
        kinds = (draws.uniform("randaugment", n) * len(self.table)).astype(int)
        kinds[draws.uniform("randaugment applied", n) >= self.chance] = -1
        shares = (self.magnitude + self.spread * draws.normal("randaugment magnitude", n)).clip(0, 1)
        signs = np.where(draws.uniform("randaugment sign", n) < 0.5, -1.0, 1.0)
        bicubic = draws.uniform("randaugment bicubic", n) < 0.5
        for turn in range(n):
            levels = shares[:, turn], signs[:, turn], bicubic[:, turn]
            for kind, operation in enumerate(self.table.values()):
                o.apply(operation, pictures, kinds[:, turn] == kind, *levels)


def parse(text: str, mean: tuple[float, float, float] = (0.5, 0.5, 0.5)) -> RandAugment:
    """Return what ``augment.randaugment`` means.

    ``n2-m12`` is torchvision's ``RandAugment(num_ops=2, magnitude=12)``. ``rand-m9-mstd0.5-inc1`` is timm's: the parts
    after ``rand`` are m (magnitude, 0 to 10), mstd (its standard deviation, 0 by default), n (operations, 2),
    p (chance of each, 0.5) and inc1 (all operations grow stronger with the magnitude), in any order.

    Args:
        mean: the colour, in [0, 1], of what timm's moves bring in from outside.

    Raises:
        UserError: the text means nothing, or a part of it would do nothing.
    """
    words = text.split("-")
    if words[0] == "rand":
        return _parse_timm(text, words[1:], mean)
    match = re.fullmatch(r"n([1-9]\d?)-m(\d\d?)", text, re.ASCII)
    if match is None or int(match[2]) >= BINS:
        raise UserError(
            f"augment.randaugment is {shown(text)}; want nN-mM, such as n2-m12 (N operations at magnitude M, 0 to 30), "
            "or timm's notation, such as rand-m9-mstd0.5-inc1"
        )
    return RandAugment(torchvision(), int(match[1]), int(match[2]) / (BINS - 1))


# part: the values it takes, and which.
_PARTS = {
    "m": (lambda v: v <= MOST and v.is_integer(), f"a whole number from 0 to {MOST}"),
    "mstd": (lambda v: 0 < v <= MOST, f"a number above 0, at most {MOST}"),
    "n": (lambda v: 1 <= v < 100 and v.is_integer(), "a whole number from 1 to 99"),
    "p": (lambda v: 0 < v <= 1, "a number above 0, at most 1"),
    "inc": (lambda v: v == 1, "1; leave it out for operations of which some grow weaker"),
}


def _parse_timm(text: str, words: list[str], mean: tuple[float, float, float]) -> RandAugment:
    parts: dict[str, float] = {}
    for word in words:
        match = re.fullmatch(r"([a-z]+)(\d{1,9}(?:\.\d{1,9})?)?", word, re.ASCII)
        name, value = (match[1], float(match[2] or "nan")) if match else (word, math.nan)
        if name not in _PARTS:
            raise unknown(f"part of augment.randaugment {shown(text)}:", name, _PARTS)
        fine, want = _PARTS[name]
        if not fine(value):
            raise UserError(f"augment.randaugment is {shown(text)}; want as {name} {want}")
        if name in parts:
            raise UserError(f"augment.randaugment is {shown(text)}; it gives {name} twice")
        parts[name] = value
    if "m" not in parts:
        raise UserError(f"augment.randaugment is {shown(text)}; the magnitude is missing, as in rand-m9-mstd0.5-inc1")
    table = timm(tuple(min(255, round(255 * channel)) for channel in mean), "inc" in parts)
    return RandAugment(
        table, int(parts.get("n", 2)), parts["m"] / MOST, parts.get("mstd", 0.0) / MOST, parts.get("p", 0.5)
    )


def _plain(operation: Callable[[np.ndarray], np.ndarray]) -> Operation:
    return lambda pictures, share, sign, bicubic: operation(pictures)


def _at(operation: Callable[[np.ndarray, np.ndarray], np.ndarray], level: Callable[..., np.ndarray]) -> Operation:
    return lambda pictures, share, sign, bicubic: operation(pictures, level(share, sign))


def torchvision() -> dict[str, Operation]:
    """Return torchvision's 14 operations: the nearest pixel, black from outside.

    torch holds the levels in single precision; their definition is followed in double precision here.
    """

    def moved(matrix: Callable[[float, int, int], o.Matrix], most: float) -> Operation:
        def operation(pictures: np.ndarray, share: np.ndarray, sign: np.ndarray, bicubic: np.ndarray) -> np.ndarray:
            height, width = pictures.shape[1:3]
            return o.move(pictures, [matrix(level, width, height) for level in (sign * most * share).tolist()])

        return operation

    def enhanced(operation: Callable[..., np.ndarray]) -> Operation:
        return _at(operation, lambda share, sign: 1 + sign * 0.9 * share)

    side = 150 / 331  # the largest shift
    return {
        "identity": _plain(lambda pictures: pictures),
        "shear_x": moved(lambda level, width, height: o.shear_x(level), 0.3),
        "shear_y": moved(lambda level, width, height: o.shear_y(level), 0.3),
        "translate_x": moved(lambda level, width, height: o.shift(-int(level * width), 0), side),
        "translate_y": moved(lambda level, width, height: o.shift(0, -int(level * height)), side),
        "rotate": moved(o.turn, 30),
        "brightness": enhanced(o.brightness),
        "color": enhanced(o.color),
        "contrast": enhanced(o.contrast),
        "sharpness": enhanced(o.sharpness),
        "posterize": _at(o.posterize, lambda share, sign: 8 - np.round(4 * share)),
        "solarize": _at(o.solarize, lambda share, sign: 255 - 255 * share),
        "autocontrast": _plain(o.autocontrast),
        "equalize": _plain(o.equalize),
    }


def timm(fill: tuple[int, int, int], increasing: bool) -> dict[str, Operation]:
    """Return timm's 15 operations: bilinear or bicubic at random, the colour ``fill`` from outside.

    Args:
        increasing: all grow stronger with the magnitude; otherwise a larger magnitude keeps more bits and levels
            in posterize and solarize, and brightness, color, contrast and sharpness go from less to more.
    """

    def moved(matrix: Callable[[float, int, int], o.Matrix], most: float) -> Operation:
        def operation(pictures: np.ndarray, share: np.ndarray, sign: np.ndarray, bicubic: np.ndarray) -> np.ndarray:
            height, width = pictures.shape[1:3]
            matrices = [matrix(level, width, height) for level in (sign * most * share).tolist()]
            return o.move_smoothly(pictures, matrices, bicubic, fill)

        return operation

    def enhanced(operation: Callable[..., np.ndarray]) -> Operation:
        if increasing:
            return _at(operation, lambda share, sign: np.maximum(0.1, 1 + sign * (share * 0.9)))
        return _at(operation, lambda share, sign: share * 1.8 + 0.1)

    def whole(most: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        if increasing:
            return lambda share, sign: most - np.trunc(share * most)
        return lambda share, sign: np.trunc(share * most)

    return {
        "autocontrast": _plain(o.autocontrast),
        "equalize": _plain(o.equalize),
        "invert": _plain(o.invert),
        "rotate": moved(o.turn, 30),
        "posterize": _at(o.posterize, whole(4)),
        "solarize": _at(o.solarize, whole(256)),
        "solarize_add": _at(o.solarize_add, lambda share, sign: np.trunc(share * 110)),
        "color": enhanced(o.color),
        "contrast": enhanced(o.contrast),
        "brightness": enhanced(o.brightness),
        "sharpness": enhanced(o.sharpness),
        "shear_x": moved(lambda level, width, height: o.shear_x(level), 0.3),
        "shear_y": moved(lambda level, width, height: o.shear_y(level), 0.3),
        "translate_x": moved(lambda level, width, height: o.shift(level * width, 0), 0.45),
        "translate_y": moved(lambda level, width, height: o.shift(0, level * height), 0.45),
    }
