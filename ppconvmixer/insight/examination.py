"""What a network makes of the pictures it was trained on: which it tells right, and what its batch norms see.

A run is examined with its best checkpoint. The labels are judged on training pictures as evaluation sees them,
the batch norms on batches as training made them, augmented and mixed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle

from .. import phases
from ..datasets import Pictures
from ..engines import Dygraph
from ..evaluate import evaluate
from ..loader import Samples, evenly
from ..mixing import Mixing
from ..model import ConvMixer
from ..recipe import Phase, Recipe
from ..transforms import eval_transform, train_transform
from .maps import check_plain, watched

BATCH = 256
"""Training pictures whose statistics are taken: with 64 positions and more each, a mean is known to a hundredth of a
standard deviation where pixels are independent, and to a sixteenth where a picture is one draw."""
_PART = 32  # pictures at a time: a map of the largest published network then takes 0.2 GB


@dataclasses.dataclass(frozen=True)
class Norm:
    """A batch norm: what it remembers of its input, and what its input is. All arrays are float64 (channels,)."""

    name: str
    running_mean: np.ndarray
    running_variance: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    scale: np.ndarray
    """What a channel is multiplied by in evaluation, weight / sqrt(running variance + epsilon)."""

    @property
    def spread(self) -> np.ndarray:
        """Return the standard deviation of every channel behind the norm: what the next layer gets to see of it."""
        return np.sqrt(self.variance) * np.abs(self.scale)


@dataclasses.dataclass(frozen=True)
class Examination:
    """What was found on training pictures."""

    names: tuple[str, ...]
    labels: np.ndarray
    """int64 (samples,)."""
    probabilities: np.ndarray
    """float64 (samples, classes)."""
    total: int
    """Training pictures there are; the samples are spread evenly over them."""
    norms: tuple[Norm, ...]
    """From the stem up."""
    remembered: float
    """Share of the augmented batch that is told right in evaluation, by the running statistics."""
    own: float
    """The same, by the statistics of the batch itself."""
    batch: int
    """Pictures of that batch."""

    @property
    def top1(self) -> float:
        """Return the share of the samples that are told right."""
        return float((self.probabilities.argmax(axis=1) == self.labels).mean())


def examine(network: ConvMixer, recipe: Recipe, train: Pictures, limit: int) -> Examination:
    """Examine a trained ``network``, which is changed by it, on the training pictures of its recipe.

    Args:
        limit: judge the labels of so many pictures, spread evenly; 0 of all.

    Raises:
        UserError: none of the pictures can be read, or one of the batch cannot; or it is a variant of ConvMixer.
    """
    check_plain(network)
    spec = recipe.input_spec()
    samples = Samples(train.subset(evenly(len(train), limit or len(train))), eval_transform(spec))
    workers = recipe.data.workers
    seen = evaluate(Dygraph(network), samples, 64, workers, skip_broken=True, keep_logits=True)
    images, labels = _batch(recipe, train, network.num_classes)
    norms = _norms(network, images)
    remembered = _hits(network, images, labels)
    network.train()
    own = _hits(network, images, labels)
    return Examination(
        *(tuple(samples.pictures.names[i] for i in seen.indices), seen.labels, seen.scores(), len(train)),
        *(norms, remembered, own, len(images)),
    )


def _batch(recipe: Recipe, train: Pictures, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first ``BATCH`` pictures of the last epoch as training saw them, and what each was to be told as."""
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, workers=0))

    def samples(phase: Phase) -> Samples:
        spec = dataclasses.replace(recipe.input_spec(), size=phase.size)
        return Samples(train, train_transform(spec, recipe.augment), seed=recipe.train.seed)

    mixing = Mixing(recipe.augment, classes) if recipe.augment.mixes else None
    batches = phases.create(recipe, samples, mixing).batches[-1]
    batches.epoch = recipe.epochs - 1
    images, labels, count = [], [], 0
    for part, targets in batches:
        images.append(part)
        labels.append(targets.argmax(axis=1) if targets.ndim > 1 else targets)
        count += len(part)
        if count >= BATCH:
            break
    return np.concatenate(images)[:BATCH], np.concatenate(labels)[:BATCH]


def _layers(network: ConvMixer) -> Iterator[tuple[str, Any]]:
    yield "stem", network.stem[2]
    for i, block in enumerate(network.blocks):
        yield f"block {i}, depthwise", block[0].fn[2]
        yield f"block {i}, pointwise", block[3]


def _norms(network: ConvMixer, images: np.ndarray) -> tuple[Norm, ...]:
    """Return what every batch norm sees of ``images`` in evaluation."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def see(name: str, x: paddle.Tensor, _: paddle.Tensor) -> None:
        mean = x.mean(axis=[0, 2, 3], keepdim=True)
        variance = (x - mean).square().mean(axis=[0, 2, 3])
        found.setdefault(name, []).append((mean.flatten().numpy().astype(float), variance.numpy().astype(float)))

    layers = dict(_layers(network))
    parts = np.array_split(images, -(-len(images) // _PART))
    with watched(layers, see):
        for part in parts:
            Dygraph(network)(part)
    weights = np.array([len(part) for part in parts]) / len(images)
    norms = []
    for name, layer in layers.items():
        means, variances = (np.array(column) for column in zip(*found[name]))
        mean = weights @ means
        variance = weights @ (variances + (means - mean) ** 2)
        remembered = [value.numpy().astype(np.float64) for value in (layer._mean, layer._variance, layer.weight)]
        scale = remembered[2] / np.sqrt(remembered[1] + layer._epsilon)
        norms.append(Norm(name, remembered[0], remembered[1], mean, variance, scale))
    return tuple(norms)


def _hits(network: ConvMixer, images: np.ndarray, labels: np.ndarray) -> float:
    with paddle.no_grad():
        logits = network(paddle.to_tensor(images)).numpy()
    return float((logits.argmax(axis=1) == labels).mean())
