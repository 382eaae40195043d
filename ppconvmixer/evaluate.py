"""Accuracy and loss of an engine on labelled pictures: one loop for ``eval`` and for training."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

import numpy as np

from . import distributed
from .errors import UserError, brief, said
from .loader import Samples, batches, broken
from .progress import Progress
from .views import View


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an engine made of a data set; arrays are in the order of the data set."""

    indices: np.ndarray
    """int64 (samples,), the places of the evaluated pictures in the data set."""
    labels: np.ndarray
    """int64 (samples,); or (samples, most labels of one) where several are right, a sample's first filling its row."""
    classes: np.ndarray
    """int64 (samples, k), the k most likely classes, the first one first."""
    probabilities: np.ndarray
    """float64 (samples, k), their softmax."""
    losses: np.ndarray
    """float64 (samples,), cross-entropy in nats; where several labels are right, of their probabilities together."""
    logits: Optional[np.ndarray]
    """float32 (samples, classes), where they were asked for."""
    skipped: tuple[int, ...]
    """Places of the pictures that could not be read."""
    seconds: float

    @property
    def k(self) -> int:
        """5, or the number of classes where that is smaller."""
        return self.classes.shape[1]

    def metrics(self) -> dict[str, Any]:
        """Return the figures of ``result.json``; accuracies in [0, 1], loss the mean over all samples."""
        hits = (self.classes[:, :, None] == self.labels.reshape(len(self.labels), 1, -1)).any(axis=2)
        return {
            "samples": len(self.labels),
            "skipped": len(self.skipped),
            "top1": float(hits[:, 0].mean()),
            "top5": float(hits.any(axis=1).mean()),
            "k": self.k,
            "loss": float(self.losses.mean()),
            "images_per_second": len(self.labels) / self.seconds,
        }

    def confusion(self) -> np.ndarray:
        """Return the cells of the confusion matrix that are not 0: rows of class, predicted class and pictures, int64.

        A thousand classes have a million cells, of which an evaluation fills some thousands.
        """
        pairs = np.stack([self.labels, self.classes[:, 0]], axis=1)
        return np.column_stack(np.unique(pairs, axis=0, return_counts=True))

    def scores(self) -> np.ndarray:
        """Return the probabilities of all classes, float64 (samples, classes), where logits were kept."""
        return softmax(self.logits)


def evaluate(
    engine: Any,
    samples: Samples,
    batch_size: int = 32,
    workers: int = 2,
    limit: int = 0,
    skip_broken: bool = False,
    keep_logits: bool = False,
    views: Sequence[View] = (),
) -> Evaluation:
    """Run ``engine`` over ``samples``; several processes share the work and all get the whole result.

    Args:
        workers: processes that read pictures, shared out among the sizes of the views.
        limit: evaluate the first so many pictures only; 0 evaluates all.
        skip_broken: leave out pictures that cannot be read, and count them.
        views: how every picture is seen, see ``see``; none for once, at the size of ``samples``.

    Raises:
        UserError: a label the engine has no class for; a size the engine does not take; broken pictures,
            all of them named, without ``skip_broken``; nothing left to evaluate; a loss that is no number.
    """
    samples.pictures.check_labels(engine.num_classes)
    views = views or [View(samples.size)]
    sizes = {view.size: samples.resized(view.size) for view in views}
    check_sizes(engine, sizes.keys() - {samples.size})
    order = np.arange(min(limit or len(samples), len(samples)))
    mine = order[distributed.RANK :: distributed.WORLD]
    parts: list[tuple[np.ndarray, ...]] = []
    skipped: list[int] = []
    started = time.monotonic()
    with Progress(len(mine), "evaluate") as progress:
        share = -(-workers // len(sizes))
        for parallel in zip(*(batches(resized, mine, batch_size, share) for resized in sizes.values())):
            batch, ok = parallel[0], np.all([batch.readable for batch in parallel], axis=0)
            skipped += batch.indices[~ok].tolist()
            if skipped and not skip_broken:
                break
            if ok.any():
                logits = see(engine, {size: batch.images for size, batch in zip(sizes, parallel)}, views)
                labels = batch.labels[ok]
                parts.append((batch.indices[ok], labels, *_score(logits[ok], labels, keep_logits)))
            progress.advance(len(ok))
    gathered = distributed.gather((parts, skipped, time.monotonic() - started))
    skipped = sorted(i for _, part, _ in gathered for i in part)
    if skipped and not skip_broken:
        raise broken(sizes[max(sizes)], workers, limit, skipped)  # what is too large at one size is at the largest
    parts = [part for shard, _, _ in gathered for part in shard]
    if not parts:
        raise UserError(f"none of the {len(order)} pictures can be read; there is nothing to evaluate")
    columns = [np.concatenate(column) for column in zip(*parts)]
    place = np.argsort(columns[0])
    indices, labels, classes, probabilities, losses, logits = (column[place] for column in columns)
    bad = indices[~np.isfinite(losses)]
    if len(bad):
        raise no_number(samples.pictures.names[bad[0]])
    return Evaluation(
        *(indices, labels, classes, probabilities, losses, logits if keep_logits else None),
        *(tuple(skipped), max(seconds for _, _, seconds in gathered)),
    )


def no_number(picture: str) -> UserError:
    """Return the error for a network that gives something else than numbers for ``picture``."""
    return UserError(
        f"the network gives what is no number for {brief(picture)}; take another checkpoint, or train at a lower rate"
    )


def see(engine: Any, images: Mapping[int, np.ndarray], views: Sequence[View]) -> np.ndarray:
    """Return what ``engine`` makes of pictures in several views: float32 (N, classes).

    The probabilities are averaged, each view's softmax with the same weight, and the logarithm of the mean takes
    the place of logits: its softmax is the mean. Of a single view the logits are returned as they are.

    Args:
        images: float32 (N, 3, size, size) by size, for the size of every view.
    """
    seen = [images[view.size][..., ::-1] if view.flip else images[view.size] for view in views]
    logits = [engine(np.ascontiguousarray(part)) for part in seen]
    if len(logits) == 1:
        return logits[0]
    mean = np.logaddexp.reduce([_log_softmax(part) for part in logits]) - np.log(len(logits))
    return mean.astype(np.float32)


def check_sizes(engine: Any, sizes: Iterable[int]) -> None:
    """Try the engine on a picture of each of ``sizes``, before the work and not in its middle.

    Raises:
        UserError: it does not take one of them.
    """
    for size in sizes:
        try:
            engine(np.zeros((1, 3, size, size), np.float32))
        except Exception as error:  # each engine has exceptions of its own
            raise UserError(
                f"the engine {engine.name} does not take {size} x {size} pixels ({said(error)}); take no scales"
            ) from error


def top_k(logits: np.ndarray, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``k`` most likely classes (int64) and their probabilities (float64), each (N, min(k, classes)).

    Of equal logits the lower class comes first.
    """
    classes = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return classes, np.take_along_axis(softmax(logits), classes, axis=1)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits (N, classes), float64."""
    return np.exp(_log_softmax(logits))


@np.errstate(invalid="ignore")
def _score(logits: np.ndarray, labels: np.ndarray, keep_logits: bool) -> Sequence[np.ndarray]:
    labels = labels.reshape(len(labels), -1)
    right = np.take_along_axis(_log_softmax(logits), labels, axis=1)
    right[:, 1:][labels[:, 1:] == labels[:, :1]] = -np.inf  # a first label that fills its row counts once
    losses = -np.logaddexp.reduce(right, axis=1)
    return (*top_k(logits), losses, logits if keep_logits else np.empty((len(logits), 0), np.float32))


@np.errstate(invalid="ignore")  # of what is no number, which the callers look for
def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
