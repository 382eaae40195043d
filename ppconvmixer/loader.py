"""Batches of decoded pictures, made by worker processes.

A broken picture ends nothing: ``paddle.io.DataLoader`` hangs or dies without a reason when a sample
raises, so a sample that cannot be read arrives marked, and the consumer decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Callable

import numpy as np
from PIL import Image

from . import distributed
from .datasets import Pictures
from .errors import UserError
from .transforms import decode


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images float32 (N, 3, size, size) and labels int64 (N,) as Paddle tensors; the rest as arrays."""

    images: Any
    labels: Any
    indices: np.ndarray
    """The place of every picture in the data set."""
    readable: np.ndarray
    """False where the picture is broken; its image is then all zero."""


class Samples:
    """The map from (epoch, index) to a sample that the worker processes compute.

    Args:
        transform: a function of the picture and, with ``seed``, a generator that depends on
            (seed, epoch, index) alone, so that neither workers nor interruptions change a draw.
        size: side of the transformed picture, in pixels.
    """

    def __init__(
        self,
        pictures: Pictures,
        transform: Callable[..., np.ndarray],
        size: int,
        backend: str = "pil",
        seed: Any = None,
    ):
        self.pictures, self.transform, self.size, self.backend, self.seed = pictures, transform, size, backend, seed

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int, epoch: int = 0) -> np.ndarray:
        """Return the input made of picture ``index``, float32 (3, size, size).

        Raises:
            UserError: the picture cannot be read.
        """
        try:
            content = self.pictures.fetch(index)
        except OSError as error:
            raise UserError(error.strerror or str(error)) from error
        if isinstance(content, bytes):
            picture = decode(content, self.backend)
        else:
            picture = Image.fromarray(content) if self.backend == "pil" else content
        if self.seed is None:
            return self.transform(picture)
        return self.transform(picture, np.random.default_rng((self.seed, epoch, index)))

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, int, int, int]:
        epoch, index = key
        try:
            image, readable = self.read(index, epoch), True
        except Exception:  # whatever it is, an exception must not leave a worker; `broken` finds the reason
            image, readable = np.zeros((3, self.size, self.size), np.float32), False
        return image, int(self.pictures.labels[index]), index, int(readable)


def batches(samples: Samples, order: Sequence[int], batch_size: int, workers: int, epoch: int = 0) -> Iterator[Batch]:
    """Yield the samples at ``order``, ``batch_size`` at a time; the last batch may be smaller.

    Args:
        workers: processes that read and transform; 0 does it in a thread of this one.
    """
    import paddle

    keys = [[(epoch, int(i)) for i in order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    loader = paddle.io.DataLoader(samples, batch_sampler=keys, num_workers=workers, return_list=True)
    for images, labels, indices, readable in loader:
        yield Batch(images, labels, indices.numpy(), readable.numpy().astype(bool))


class TrainBatches:
    """What ``paddle.Model.fit`` iterates: every pass is the next epoch, shuffled by (seed, epoch).

    With several processes each global batch is drawn as one process would draw it and dealt out. A
    last batch that is not full is left out, unless it is the only one.

    Raises:
        UserError: while iterating, when a picture is broken; all broken ones are named.
    """

    def __init__(self, samples: Samples, batch_size: int, workers: int, epoch: int = 0):
        self.samples, self.batch_size, self.workers, self.epoch = samples, batch_size, workers, epoch
        self.global_batch = batch_size * distributed.WORLD
        if distributed.WORLD > 1 and len(samples) < self.global_batch:
            raise UserError(
                f"{len(samples)} pictures do not fill a batch of {self.global_batch} over {distributed.WORLD} processes"
            )

    def __len__(self) -> int:
        return max(len(self.samples) // self.global_batch, 1)

    def __iter__(self) -> Iterator[list[Any]]:
        order = np.random.default_rng((self.samples.seed, self.epoch)).permutation(len(self.samples))
        order = order[: len(self) * self.global_batch][distributed.RANK :: distributed.WORLD]
        for batch in batches(self.samples, order, self.batch_size, self.workers, self.epoch):
            if not batch.readable.all():
                raise broken(self.samples, self.workers)
            yield [batch.images, batch.labels]
        self.epoch += 1


def broken(samples: Samples, workers: int, limit: int = 0) -> UserError:
    """Read every picture and return the error that names all that are broken.

    Args:
        limit: look at the first so many only; 0 looks at all.
    """
    order = range(min(limit or len(samples), len(samples)))
    found = [i for batch in batches(samples, order, 64, workers) for i in batch.indices[~batch.readable]]
    return UserError(f"{len(found)} of {len(order)} pictures cannot be read:\n" + "\n".join(reasons(samples, found)))


def reasons(samples: Samples, indices: Sequence[int]) -> list[str]:
    """Return a line with name and reason for every picture at ``indices``."""
    lines = []
    for index in indices:
        try:
            samples.read(int(index))
            reason = "it could not be read before, but can be now"
        except Exception as error:
            reason = str(error) or type(error).__name__
        lines.append(f"  {samples.pictures.names[int(index)]}: {reason}")
    return lines
