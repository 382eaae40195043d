"""The ways a picture is seen at evaluation: larger, smaller, mirrored (test-time augmentation).

The network is fully convolutional, so the same weights take any of them. A view of another size is
what evaluation would be with that ``input.size``: the same middle of the picture in more or fewer pixels.
"""

from __future__ import annotations

import dataclasses

from .errors import UserError, shown
from .zoo import InputSpec, variant

USUAL = "flip,0.875,1,1.125"
"""What ``--tta`` alone stands for."""


@dataclasses.dataclass(frozen=True)
class View:
    """The middle of a picture as ``size`` x ``size`` pixels, mirrored from left to right or not."""

    size: int
    flip: bool = False


def parse(text: str, model: str, spec: InputSpec) -> tuple[View, ...]:
    """Return the views that words between commas ask for: scales of the input's size, and ``flip``.

    Every scale is seen as it is and, with ``flip``, mirrored as well; without a scale it is 1, the input's own size.
    Other sizes are rounded to whole patches of ``model``, of which the rest would be cut off.

    Raises:
        UserError: a word that is neither, or a size that no input may have.
    """
    patch, sizes, flips = variant(model).patch_size, {}, [False]
    for word in map(str.strip, text.split(",")):
        if word == "flip":
            flips = [False, True]
            continue
        try:
            scale = float(word)
            size = spec.size if scale == 1 else patch * max(round(scale * spec.size / patch), 1)
        except (ValueError, OverflowError):
            scale = 0.0
        if scale <= 0:
            raise UserError(f"unknown view {shown(word)}; want flip, scales such as 1.125, or both as in {USUAL}")
        sizes[dataclasses.replace(spec, size=size).size] = None
    return tuple(View(size, flip) for size in sizes or [spec.size] for flip in flips)
