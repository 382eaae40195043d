"""Batches of decoded pictures, made by worker processes.

A broken picture ends nothing: it arrives marked, and the consumer decides. A worker that dies or
hangs ends the iteration with an error that names the picture it was at; ``paddle.io.DataLoader``
waits for ever there, or says that a queue was killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import mmap
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize
from typing import Any, Callable, Optional

import numpy as np

from . import distributed
from .augment import erase
from .datasets import Pictures
from .draws import Draws
from .errors import UserError, said, unreadable
from .mixing import PAIR, Mixing
from .progress import Progress
from .transforms import Picture, Transform, decode, eval_transform

_TICK = 0.2  # seconds
SECONDS_A_SAMPLE = 60.0  # no picture takes so long; a worker that does not get on hangs (a dead network disk, say)
SLOTS = 2  # batches every worker makes ahead
KEPT_BYTES = 256 << 20  # of decoded pixels; CIFAR-10's training part takes 147 MiB, in each process of several
_FOR_THE_PARENT = (signal.SIGINT, signal.SIGTERM)  # a terminal and a scheduler send them to the workers as well


@dataclasses.dataclass(frozen=True)
class Batch:
    """Samples in the order they were asked for."""

    images: np.ndarray
    """float32 (N, 3, size, size)."""
    labels: np.ndarray
    """int64 (N,)."""
    indices: np.ndarray
    """int64 (N,), the place of every picture in the data set."""
    readable: np.ndarray
    """bool (N,), False where the picture is broken; its image is then all zero."""


class Kept:
    """Memory for the pixels of ``count`` small pictures, which forked workers share: each is decoded once.

    A picture is kept where it fits into its share of ``KEPT_BYTES``: a large set of small ones is, ImageNet is not.
    """

    def __init__(self, count: int):
        self._pixels = _shared((count, KEPT_BYTES // count), np.uint8)
        self._shapes = _shared((count, 2), np.int32)
        """Height and width of what is kept; 0 where nothing is."""

    def get(self, index: int) -> Optional[np.ndarray]:
        """Return a picture, uint8 (H, W, 3), or None where it is not kept."""
        height, width = self._shapes[index].tolist()
        return self._pixels[index, : height * width * 3].reshape(height, width, 3) if height else None

    def put(self, index: int, pixels: np.ndarray) -> None:
        """Keep a picture if there is room for it."""
        if pixels.size <= self._pixels.shape[1]:
            self._pixels[index, : pixels.size] = pixels.reshape(-1)
            self._shapes[index] = pixels.shape[:2]  # last: what says that the rest is there


class Samples:
    """The map from (epoch, index) to a sample that the worker processes compute.

    Args:
        seed: of a transform that varies pictures: a sample depends on (seed, epoch, index) alone, so that
            neither workers nor interruptions nor the rest of a batch change it.
        kept: where small pictures are kept, once decoded, for further passes.
    """

    def __init__(
        self,
        pictures: Pictures,
        transform: Transform,
        seed: Any = None,
        kept: Optional[Kept] = None,
    ):
        self.pictures, self.transform, self.seed, self.kept = pictures, transform, seed, kept

    @property
    def size(self) -> int:
        """Side of the transformed pictures, in pixels."""
        return self.transform.spec.size

    def __len__(self) -> int:
        return len(self.pictures)

    def resized(self, size: int) -> Samples:
        """Return the same samples as evaluation would have them at another size."""
        if size == self.size:
            return self
        spec = dataclasses.replace(self.transform.spec, size=size)
        return Samples(self.pictures, eval_transform(spec, self.transform.backend))

    def read(self, index: int, epoch: int = 0) -> np.ndarray:
        """Return the input made of picture ``index``, float32 (3, size, size).

        Raises:
            UserError: the picture cannot be read.
        """
        return self.transform(self._picture(index), self._draws(epoch, [index]))

    def fill(
        self,
        images: np.ndarray,
        indices: Sequence[int],
        epoch: int = 0,
        begin: Callable[[int], None] = lambda index: None,
    ) -> np.ndarray:
        """Write the samples at ``indices`` to ``images``, or zeros; tell which of the pictures could be read.

        Args:
            images: float32 (N, 3, size, size).
            begin: is told every index before the picture is read.

        Returns:
            bool (N,).
        """
        draws = self._draws(epoch, indices)
        cut = np.zeros((len(indices), self.size, self.size, 3), np.uint8)
        readable = np.ones(len(indices), bool)
        numbers = self.transform.crop_numbers(draws, len(indices))
        for place, index in enumerate(np.asarray(indices).tolist()):
            begin(index)
            try:
                cut[place] = self.transform.crop(self._picture(index), numbers[place])
            except Exception:  # whatever it is, it must not end a worker; `reasons` finds it out
                readable[place] = False
        images[:] = self.transform.finish(cut, draws)
        images[~readable] = 0
        return readable

    def _draws(self, epoch: int, indices: Sequence[int]) -> Optional[Draws]:
        return None if self.seed is None else Draws(self.seed, epoch, indices)

    def _picture(self, index: int) -> Picture:
        pixels = self.kept.get(index) if self.kept else None
        if pixels is not None:
            return pixels
        try:
            content = self.pictures.fetch(index)
        except OSError as error:
            raise UserError(error.strerror or str(error)) from error
        if not isinstance(content, bytes):
            return content
        picture = decode(content, self.transform.backend)
        if self.kept:
            self.kept.put(index, np.asarray(picture))
        return picture


def batches(samples: Samples, order: Sequence[int], batch_size: int, workers: int, epoch: int = 0) -> Iterator[Batch]:
    """Yield the samples at ``order``, ``batch_size`` at a time; the last batch may be smaller.

    Args:
        workers: processes that read and transform; 0 does it in this one.

    Raises:
        UserError: a worker died, or took longer than ``SECONDS_A_SAMPLE`` over one picture.
    """
    order = np.asarray(order, np.int64)
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    workers = min(workers, len(parts)) if hasattr(os, "fork") else 0
    made = _with_workers(samples, parts, workers, epoch) if workers else _here(samples, parts, epoch)
    with contextlib.closing(made):
        for indices, (images, readable) in zip(parts, made):
            yield Batch(images, samples.pictures.labels[indices], indices, readable)


def _here(samples: Samples, parts: list[np.ndarray], epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for indices in parts:
        images = np.empty((len(indices), 3, samples.size, samples.size), np.float32)
        yield images, samples.fill(images, indices, epoch)


def _with_workers(
    samples: Samples, parts: list[np.ndarray], workers: int, epoch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Deal the batches out in turn; every worker fills one slot while the other waits to be taken."""
    pool: list[_Worker] = []
    try:
        for _ in range(workers):
            try:
                pool.append(_Worker(samples, epoch, len(parts[0]), [worker.connection for worker in pool]))
            except (OSError, OverflowError) as error:
                raise UserError(
                    f"cannot start {workers} data workers: {said(error)}; use fewer, or a smaller batch"
                ) from error
        for number in range(min(workers * SLOTS, len(parts))):
            pool[number % workers].start(number // workers % SLOTS, parts[number])
        for number, indices in enumerate(parts):
            worker, slot = pool[number % workers], number // workers % SLOTS
            worker.wait()
            made = worker.images[slot, : len(indices)].copy(), worker.readable[slot, : len(indices)].copy()
            if number + workers * SLOTS < len(parts):
                worker.start(slot, parts[number + workers * SLOTS])
            yield made
    finally:
        for worker in pool:
            worker.stop()


class _Worker:
    """A process that makes batches in memory it shares with this one, so that no pixel goes through a pipe."""

    def __init__(self, samples: Samples, epoch: int, batch_size: int, others: list[Connection]):
        self.samples, self.epoch = samples, epoch
        self.images = _shared((SLOTS, batch_size, 3, samples.size, samples.size), np.float32)
        self.readable = _shared((SLOTS, batch_size), np.bool_)
        self.at = _shared((2,), np.int64)
        """The picture under work, and how many have been begun."""
        context = multiprocessing.get_context("fork")  # shares the pictures; nothing need be picklable
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=self._serve, args=(theirs, [*others, self.connection]), daemon=True)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_PARENT)  # until the child ignores them
        try:
            self.process.start()
            theirs.close()
            # Should nobody call `stop`, the end of the program does, before multiprocessing waits for its children:
            # for one that hears no signal, that would be for ever.
            self.stop = Finalize(self, _stop, (self.process, self.connection), exitpriority=0)
        finally:  # Ctrl-C arrives here
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def start(self, slot: int, indices: np.ndarray) -> None:
        """Have the samples at ``indices`` made."""
        with contextlib.suppress(OSError):  # it died; `wait` says so
            self.connection.send((slot, indices))

    def wait(self) -> None:
        """Wait for the batch that was started first.

        Raises:
            UserError: the process died or hangs.
        """
        begun, waited = self.at[1], 0.0  # not by a clock: that goes on where all of us are stopped, by Ctrl-Z, say
        while not wait([self.connection, self.process.sentinel], timeout=_TICK):
            if self.at[1] != begun:
                begun, waited = self.at[1], 0.0
                continue
            waited += _TICK
            if waited > SECONDS_A_SAMPLE:
                raise UserError(f"reading {self._name()} took more than {SECONDS_A_SAMPLE:g} s; is its disk reachable?")
        try:
            self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.join()
            raise UserError(
                f"a data worker died ({_death(self.process.exitcode)}) at {self._name()}; "
                "take that picture out, or, if memory was short, use fewer workers or a smaller batch"
            ) from error

    def _name(self) -> str:
        return self.samples.pictures.names[int(self.at[0])]

    def _serve(self, connection: Connection, others: list[Connection]) -> None:
        """Work in the child process until the parent closes the connection or is gone."""
        for other in others:  # held open here, they would keep the workers from noticing that the parent is gone
            other.close()
        for number in _FOR_THE_PARENT:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_THE_PARENT)
        with contextlib.suppress(EOFError, OSError):
            while True:
                slot, indices = connection.recv()
                images = self.images[slot, : len(indices)]
                self.readable[slot, : len(indices)] = self.samples.fill(images, indices, self.epoch, self._begin)
                connection.send(slot)

    def _begin(self, index: int) -> None:
        self.at[:] = index, self.at[1] + 1


def _shared(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an array of zeros that forked processes share; containers often limit /dev/shm, which this is not."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, size), dtype).reshape(shape)


def _stop(process: Any, connection: Connection) -> None:
    connection.close()
    process.kill()
    process.join()


def _death(exitcode: int) -> str:
    if exitcode >= 0:
        return f"exit code {exitcode}"
    try:
        return f"signal {signal.Signals(-exitcode).name}"
    except ValueError:  # one of the real-time signals, most of which have no name
        return f"signal {-exitcode}"


class TrainBatches:
    """What ``paddle.Model.fit`` iterates: every pass is the next epoch, shuffled by (seed, epoch).

    With several processes each global batch is drawn as one process would draw it and dealt out. A
    last batch that is not full is left out, unless it is the only one.

    Args:
        epoch: of the first pass.
        skip: batches of the first pass that are done already.
        mixing: yield mixed images and soft targets by it; its draws depend on (seed, epoch, number of the batch).

    Raises:
        UserError: while iterating, when a picture is broken; all broken ones are named.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        workers: int,
        epoch: int = 0,
        skip: int = 0,
        mixing: Optional[Mixing] = None,
    ):
        self.samples, self.batch_size, self.workers = samples, batch_size, workers
        self.epoch, self.skip, self.mixing = epoch, skip, mixing
        self.current = np.empty(0, np.int64)
        """The pictures of the batch under work."""
        self.global_batch = batch_size * distributed.WORLD
        if distributed.WORLD > 1 and len(samples) < self.global_batch:
            raise UserError(
                f"{len(samples)} pictures do not fill a batch of {self.global_batch} over {distributed.WORLD} processes"
            )

    def __len__(self) -> int:
        return max(len(self.samples) // self.global_batch, 1)

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        order = np.random.default_rng((self.samples.seed, self.epoch)).permutation(len(self.samples))
        order = order[self.skip * self.global_batch : len(self) * self.global_batch]
        dealt = np.arange(len(order)) // (PAIR if self.mixing else 1) % distributed.WORLD
        mine = order[dealt == distributed.RANK]
        epoch, first, self.epoch, self.skip = self.epoch, self.skip, self.epoch + 1, 0
        for number, batch in enumerate(batches(self.samples, mine, self.batch_size, self.workers, epoch), first):
            if not batch.readable.all():
                raise broken(self.samples, self.workers, seen=batch.indices[~batch.readable])
            self.current = batch.indices
            targets = batch.labels
            if self.mixing:
                targets = self.mixing(batch.images, targets, Draws(self.samples.seed, epoch, [number]))
                if self.mixing.augment.erasing:  # the transform leaves it to us, see there
                    erase(batch.images, Draws(self.samples.seed, epoch, batch.indices), self.mixing.augment)
            yield [batch.images, targets]


def evenly(total: int, count: int) -> np.ndarray:
    """Return ``count`` places of ``total``, from all over, the first and the last among them; all where that is more.

    Returns:
        int64, rising.
    """
    return np.linspace(0, total - 1, min(count, total)).round().astype(np.int64)


def some(samples: Samples, count: int) -> np.ndarray:
    """Return ``count`` samples from all over the data set, float32 (N, 3, size, size); all where there are fewer.

    Raises:
        UserError: broken pictures among them, all of them named.
    """
    chosen = evenly(len(samples), count)
    images = np.empty((len(chosen), 3, samples.size, samples.size), np.float32)
    readable = samples.fill(images, chosen)
    if not readable.all():
        raise unreadable(reasons(samples, chosen[~readable]), len(chosen))
    return images


def broken(samples: Samples, workers: int, limit: int = 0, seen: Iterable[int] = ()) -> UserError:
    """Read every picture and return the error that names all that are broken.

    Args:
        limit: look at the first so many only; 0 looks at all.
        seen: what could not be read before, and perhaps can be now.
    """
    order = range(min(limit or len(samples), len(samples)))
    found = set(map(int, seen))
    with Progress(len(order), "look for broken pictures") as progress:
        for batch in batches(samples, order, 64, workers):
            found.update(batch.indices[~batch.readable].tolist())
            progress.advance(len(batch.indices))
    return unreadable(reasons(samples, sorted(found)), len(order))


def reasons(samples: Samples, indices: Sequence[int]) -> list[str]:
    """Return a line with name and reason for every picture at ``indices``."""
    lines = []
    for index in indices:
        try:
            samples.read(int(index))
            reason = "it could not be read before, but can be now"
        except Exception as error:
            reason = str(error) or type(error).__name__
        lines.append(f"{samples.pictures.names[int(index)]}: {reason}")
    return lines
