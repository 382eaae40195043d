"""Accuracy and loss of an engine on labelled pictures: one loop for ``eval`` and for training."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np

from . import distributed
from .errors import UserError
from .loader import Samples, batches, broken
from .progress import Progress


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an engine made of a data set; arrays are in the order of the data set."""

    indices: np.ndarray
    """int64 (samples,), the places of the evaluated pictures in the data set."""
    labels: np.ndarray
    """int64 (samples,)."""
    classes: np.ndarray
    """int64 (samples, k), the k most likely classes, the first one first."""
    probabilities: np.ndarray
    """float64 (samples, k), their softmax."""
    losses: np.ndarray
    """float64 (samples,), cross-entropy in nats."""
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
        hits = self.classes == self.labels[:, None]
        return {
            "samples": len(self.labels),
            "skipped": len(self.skipped),
            "top1": float(hits[:, 0].mean()),
            "top5": float(hits.any(axis=1).mean()),
            "k": self.k,
            "loss": float(self.losses.mean()),
            "images_per_second": len(self.labels) / self.seconds,
        }


def evaluate(
    engine: Any,
    samples: Samples,
    batch_size: int = 32,
    workers: int = 2,
    limit: int = 0,
    skip_broken: bool = False,
    keep_logits: bool = False,
) -> Evaluation:
    """Run ``engine`` over ``samples``; several processes share the work and all get the whole result.

    Args:
        limit: evaluate the first so many pictures only; 0 evaluates all.
        skip_broken: leave out pictures that cannot be read, and count them.

    Raises:
        UserError: a label the engine has no class for; broken pictures, all of them named, without
            ``skip_broken``; nothing left to evaluate.
    """
    samples.pictures.check_labels(engine.num_classes)
    order = np.arange(min(limit or len(samples), len(samples)))
    mine = order[distributed.RANK :: distributed.WORLD]
    parts: list[tuple[np.ndarray, ...]] = []
    skipped: list[int] = []
    started = time.monotonic()
    with Progress(len(mine), "evaluate") as progress:
        for batch in batches(samples, mine, batch_size, workers):
            ok = batch.readable
            skipped += batch.indices[~ok].tolist()
            if skipped and not skip_broken:
                break
            if ok.any():
                labels = batch.labels[ok]
                parts.append((batch.indices[ok], labels, *_score(engine(batch.images)[ok], labels, keep_logits)))
            progress.advance(len(ok))
    gathered = distributed.gather((parts, skipped, time.monotonic() - started))
    skipped = sorted(i for _, part, _ in gathered for i in part)
    if skipped and not skip_broken:
        raise broken(samples, workers, limit)
    parts = [part for shard, _, _ in gathered for part in shard]
    if not parts:
        raise UserError(f"none of the {len(order)} pictures can be read; there is nothing to evaluate")
    columns = [np.concatenate(column) for column in zip(*parts)]
    place = np.argsort(columns[0])
    indices, labels, classes, probabilities, losses, logits = (column[place] for column in columns)
    return Evaluation(
        *(indices, labels, classes, probabilities, losses, logits if keep_logits else None),
        *(tuple(skipped), max(seconds for _, _, seconds in gathered)),
    )


def top_k(logits: np.ndarray, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``k`` most likely classes (int64) and their probabilities (float64), each (N, min(k, classes)).

    Of equal logits the lower class comes first.
    """
    classes = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return classes, np.take_along_axis(np.exp(_log_softmax(logits)), classes, axis=1)


def _score(logits: np.ndarray, labels: np.ndarray, keep_logits: bool) -> Sequence[np.ndarray]:
    losses = -np.take_along_axis(_log_softmax(logits), labels[:, None], axis=1)[:, 0]
    return (*top_k(logits), losses, logits if keep_logits else np.empty((len(logits), 0), np.float32))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
