"""Mixup (Zhang et al. 2018, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899), as timm mixes batches.

Every picture has its neighbour as partner: the first the second, the second the first, and so on.
Pairs are dealt out whole to several processes, so that these mix what one would.
"""

from __future__ import annotations

import math

import numpy as np

from .augment import Augment
from .draws import Draws
from .losses import soft_targets

PAIR = 2  # pictures that must stay together


class Mixing:
    """Mixes a batch by the settings; all its pictures with one share.

    Args:
        smoothing: share of every target spread over all classes.
    """

    def __init__(self, augment: Augment, num_classes: int, smoothing: float = 0.0):
        self.augment, self.num_classes, self.smoothing = augment, num_classes, smoothing

    def __call__(self, images: np.ndarray, labels: np.ndarray, draws: Draws) -> np.ndarray:
        """Mix ``images``, float32 (N, 3, H, W), in place, and return their targets, float32 (N, classes).

        Args:
            labels: int64 (N,).
            draws: of the batch, which is the only sample.
        """
        rng = draws.generator("mix", 0)
        targets = soft_targets(labels, self.num_classes, self.smoothing)
        if rng.random() >= self.augment.mix_prob:
            return targets
        partners = np.minimum(np.arange(len(images)) ^ 1, len(images) - 1)  # an odd one out is its own
        if self._cuts(rng):
            height, width = images.shape[2:]
            kept = rng.beta(self.augment.cutmix, self.augment.cutmix)
            top, bottom, left, right = cut_box(height, width, kept, rng)
            images[:, :, top:bottom, left:right] = images[partners, :, top:bottom, left:right]
            kept = 1 - (bottom - top) * (right - left) / (height * width)  # what is kept in truth
        else:
            kept = rng.beta(self.augment.mixup, self.augment.mixup)
            others = images[partners] * np.float32(1 - kept)
            images *= np.float32(kept)
            images += others
        return (kept * targets + (1 - kept) * targets[partners]).astype(np.float32)

    def _cuts(self, rng: np.random.Generator) -> bool:
        if self.augment.mixup and self.augment.cutmix:
            return rng.random() < self.augment.mix_switch_prob
        return bool(self.augment.cutmix)


def cut_box(height: int, width: int, kept: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return top, bottom, left and right of the rectangle that another picture fills.

    It has the picture's shape and about 1 - ``kept`` of its area; its middle may be anywhere, and what is outside is
    cut off.
    """
    share = math.sqrt(1 - kept)
    spans = []
    for side in (height, width):
        middle, half = int(rng.integers(side)), int(side * share) // 2
        spans += [max(middle - half, 0), min(middle + half, side)]
    return tuple(spans)
