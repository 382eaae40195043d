"""The epochs of a run as ``paddle.Model.fit`` iterates them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Optional

import numpy as np

from .loader import TrainBatches
from .mixing import Mixing
from .recipe import Phase, Recipe


class Epochs:
    """Every pass is the next epoch, every item what one step of the optimiser takes.

    An item is ``[images, labels]`` with an axis in front that counts the batches of the step. Where an epoch
    does not hold a whole number of steps, its last step is of the batches that are left.

    Args:
        batches: of every epoch; those of a phase share an object.
        accumulate: batches a step.

    Attributes:
        epoch: of the next pass.
        skip: steps of the next pass that are done already.
        counts: steps of every epoch.
        current: int64, the pictures of the step under work.
        waited: seconds that step waited for its pictures.
    """

    def __init__(self, batches: Sequence[TrainBatches], accumulate: int = 1):
        self.batches, self.accumulate = batches, accumulate
        self.epoch = self.skip = 0
        self.counts = [-(-len(part) // accumulate) for part in batches]
        self.current, self.waited = np.empty(0, np.int64), 0.0

    def __len__(self) -> int:
        """Return the steps of the next pass; ``fit`` asks, but goes by the iterator."""
        return self.counts[min(self.epoch, len(self.counts) - 1)] - self.skip

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        batches = self.batches[self.epoch]
        batches.epoch, batches.skip = self.epoch, self.skip * self.accumulate
        self.epoch, self.skip = self.epoch + 1, 0
        each = iter(batches)
        while True:
            parts, pictures, since = [], [], time.monotonic()
            for batch in itertools.islice(each, self.accumulate):
                parts.append(batch)
                pictures.append(batches.current)
            if not parts:
                return
            self.current, self.waited = np.concatenate(pictures), time.monotonic() - since
            yield [column[0][np.newaxis] if len(parts) == 1 else np.stack(column) for column in zip(*parts)]


def create(recipe: Recipe, samples: Callable[[Phase], Any], mixing: Optional[Mixing] = None) -> Epochs:
    """Return the epochs of a recipe; ``samples`` makes the training samples of a phase, ``mixing`` mixes batches."""
    parts = recipe.phases()
    batches = [TrainBatches(samples(part), part.batch_size, recipe.data.workers, mixing=mixing) for part in parts]
    return Epochs([b for part, b in zip(parts, batches) for _ in range(part.epochs)], recipe.train.accumulate)
