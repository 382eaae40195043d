"""Make a trained network smaller: without its least weights, or without some of its channels.

Weights that are 0 make a file that compresses well; no engine here is faster for them. A narrower network is a
network like any other, and faster everywhere.

All maps of a ConvMixer are of one width, but the pointwise convolution of a block mixes the channels anew, so that
which of them are kept is chosen map by map: the same for the norm that makes a map, the depthwise half and its
residual, and the columns of the pointwise convolution (or the head) that takes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import card, checkpoint
from .errors import UserError
from .files import sha256
from .progress import Progress

if TYPE_CHECKING:
    import paddle

    from .model import ConvMixer
    from .trained import Trained

PART = 16  # pictures at a time, as columns of double precision
RIDGE = 1e-4  # of the mean variance: what channels are told apart by must not be the rounding of their sums


def is_weight(name: str, value: Any) -> bool:
    """Tell whether a parameter is one that pruning may set to 0: of a convolution or the head, and no bias."""
    return name.endswith(".weight") and len(value.shape) > 1


def sparsify(state: Mapping[str, np.ndarray], share: float) -> dict[str, np.ndarray]:
    """Return a state with the least of its weights set to 0, by their size among all layers together.

    Args:
        state: under our names.
        share: of the weights of convolutions and head, in (0, 1).
    """
    sizes = np.concatenate([np.abs(value).ravel() for name, value in state.items() if is_weight(name, value)])
    count = round(share * sizes.size)
    least = np.partition(sizes, count - 1)[count - 1] if count else -1.0
    return {
        name: np.where(np.abs(value) <= least, np.float32(0), value) if is_weight(name, value) else value
        for name, value in state.items()
    }


def sparsity(state: Mapping[str, np.ndarray]) -> float:
    """Return the share of the weights of convolutions and head that are 0."""
    weights = [value for name, value in state.items() if is_weight(name, value)]
    return 1 - sum(np.count_nonzero(value) for value in weights) / sum(value.size for value in weights)


def write(path: Path, state: Mapping[str, np.ndarray], name: str, origin: Trained) -> None:
    """Write a pruned state as a checkpoint with its card, which says what it was made of.

    Args:
        name: of the network that it is now.
        origin: what was pruned.

    Raises:
        UserError: a file cannot be written.
    """
    checkpoint.write(path, state)
    facts = {"pruned": {"from": sha256(origin.path), "sparsity": sparsity(state)}}
    card.write(path, card.Card(name, dataclasses.asdict(origin.input), origin.classes, facts=facts))


def narrow(model: ConvMixer, dim: int, images: np.ndarray) -> ConvMixer:
    """Return a network of ``dim`` channels that is as near to ``model`` on ``images`` as channels of it can be.

    Every map keeps the channels from which the next product can best be told: one after the other, that which
    explains most of what is left (a Cholesky decomposition with pivots). Then, from the stem up, every pointwise
    convolution and the head are fitted by least squares to what the whole network computes, and the statistics
    of the norms are moved by as much as the maps moved.

    Args:
        model: in evaluation, or it will be.
        images: what it is used for, float32 (N, channels, H, W); some hundred pictures.

    Raises:
        UserError: ``dim`` is not below the network's width, the network is a variant that is no ConvMixer, or there are
            fewer than two pictures.
    """
    import paddle

    if not model.plain:
        raise UserError(
            "only ConvMixer itself is made narrower, not its variants (several kernel sizes, norm_first, residual)"
        )
    if not 0 < dim < model.dim:
        raise UserError(f"the network is {model.dim} channels wide; a narrower one has 1 to {model.dim - 1}")
    if len(images) < 2:
        raise UserError("channels are told apart by how they vary from picture to picture; give some hundred pictures")
    model.eval()
    parts = [images[start : start + PART] for start in range(0, len(images), PART)]
    with paddle.no_grad():
        kept = _choose(model, dim, parts)
        small = _cut(model, kept)
        small.eval()
        _fit(model, small, kept, parts)
    return small


def _choose(model: ConvMixer, dim: int, parts: list[np.ndarray]) -> list[np.ndarray]:
    """Return the channels of every map that are kept, sorted: of the stem's, of block 0's, ..., of the last block's."""
    covariances, maps = [], _maps(model, parts)
    with Progress(len(model.blocks), "look at channels", "block") as progress:
        for block in model.blocks:
            _advance(block[0], maps)
            covariances.append(_covariance(map(_columns, maps)))
            _advance(block[1:], maps)
            progress.advance(1)
    covariances.append(_covariance(map(_means, maps)))
    products = [block[1].weight.numpy()[:, :, 0, 0] for block in model.blocks]
    kept = [_best(covariances[-1], model.head.weight.numpy().T if model.num_classes else np.eye(model.dim), dim)]
    for covariance, weights in zip(covariances[-2::-1], products[::-1]):
        kept.insert(0, _best(covariance, weights[kept[0]], dim))
    return kept


def _best(covariance: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Return the ``count`` channels that leave the least of ``weights`` @ x unexplained, where x has ``covariance``."""
    left = covariance + RIDGE * np.mean(np.diag(covariance)) * np.eye(len(covariance))
    results = weights @ left  # what is left of the covariance of results and channels
    chosen: list[int] = []
    for _ in range(count):
        variance = np.maximum(np.diag(left), np.finfo(np.float64).tiny)
        explained = np.square(results).sum(axis=0) / variance
        explained[chosen] = -1
        best = int(explained.argmax())
        chosen.append(best)
        by = left[best] / variance[best]
        results -= np.outer(results[:, best], by)
        left -= np.outer(left[:, best].copy(), by)
    return np.sort(chosen)


def _cut(model: ConvMixer, kept: list[np.ndarray]) -> ConvMixer:
    """Return the network of the kept channels, its weights as they were."""
    import paddle

    from .model import ConvMixer

    depth = len(model.blocks)
    small = ConvMixer(
        *(len(kept[0]), depth, model.blocks[0][0].fn[0].weight.shape[-1] if depth else 1),
        patch_size=model.patch_size,
        in_chans=model.in_chans,
        num_classes=model.num_classes,
        act="relu" if isinstance(model.stem[1], paddle.nn.ReLU) else "gelu",
    )
    state = {name: value.numpy() for name, value in model.state_dict().items()}

    def part(name: str, value: np.ndarray) -> np.ndarray:
        if name.startswith("head."):
            return value[kept[-1]] if name.endswith(".weight") else value
        if name.startswith("stem."):
            return value[kept[0]]
        _, block, half = name.split(".")[:3]
        if half == "0":  # the depthwise half: a channel of the map in, and the same of the map out
            return value[kept[int(block)]]
        value = value[kept[int(block) + 1]]
        return value[:, kept[int(block)]] if value.ndim == 4 else value

    small.set_state_dict({name: np.ascontiguousarray(part(name, value)) for name, value in state.items()})
    return small


def _fit(model: ConvMixer, small: ConvMixer, kept: list[np.ndarray], parts: list[np.ndarray]) -> None:
    """Fit the products of ``small``, from the stem up, to what ``model`` computes."""
    theirs, ours = _maps(model, parts), _maps(small, parts)
    with Progress(len(small.blocks), "fit the channels kept", "block") as progress:
        for whole, block, channels in zip(model.blocks, small.blocks, kept[1:]):

            def wanted(maps: list[paddle.Tensor], channels: np.ndarray = channels) -> Iterator[np.ndarray]:
                return (_columns(each)[:, channels] for each in maps)

            _advance(whole[:2], theirs)
            _advance(block[0], ours)
            weights, bias = _regress(zip(map(_columns, ours), wanted(theirs)))
            block[1].weight.set_value(weights.T[:, :, None, None].astype(np.float32))
            block[1].bias.set_value(bias.astype(np.float32))
            _advance(whole[2], theirs)
            _advance(block[1:3], ours)
            _follow(block[3], wanted(theirs), map(_columns, ours))
            _advance(whole[3], theirs)
            _advance(block[3], ours)
            progress.advance(1)
    if model.num_classes:
        head = model.head.weight.numpy(), model.head.bias.numpy()
        weights, bias = _regress((_means(y), _means(x) @ head[0] + head[1]) for x, y in zip(theirs, ours))
        small.head.weight.set_value(weights.astype(np.float32))
        small.head.bias.set_value(bias.astype(np.float32))


def _maps(model: ConvMixer, parts: list[np.ndarray]) -> list[paddle.Tensor]:
    import paddle

    return [model.stem(paddle.to_tensor(part)) for part in parts]


def _advance(layer: paddle.nn.Layer, maps: list[paddle.Tensor]) -> None:
    """Put what a layer makes of each in its place, one after the other: the maps of all pictures are there once."""
    for i, each in enumerate(maps):
        maps[i] = layer(each)


def _covariance(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Return the covariance of the columns of all rows."""
    count, total, square = 0, 0.0, 0.0
    for rows in parts:
        count, total, square = count + len(rows), total + rows.sum(axis=0), square + rows.T @ rows
    return (square - np.outer(total, total) / count) / (count - 1)


def _regress(parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrix (in, out) and the bias that make the most of targets of inputs, both by rows."""
    count, total, goal, square, product = 0, 0.0, 0.0, 0.0, 0.0
    for inputs, targets in parts:
        count, total, goal = count + len(inputs), total + inputs.sum(axis=0), goal + targets.sum(axis=0)
        square, product = square + inputs.T @ inputs, product + inputs.T @ targets
    means, goal, energy = total / count, goal / count, np.mean(np.diag(square))
    square, product = square - np.outer(total, means), product - np.outer(total, goal)
    variance = np.mean(np.diag(square))
    ridge = RIDGE * variance if variance > 1e-12 * energy else 1.0  # what is left of equal inputs is rounding
    matrix = np.linalg.solve(square + ridge * np.eye(len(square)), product)
    return matrix, goal - means @ matrix


def _follow(norm: paddle.nn.Layer, before: Iterable[np.ndarray], now: Iterable[np.ndarray]) -> None:
    """Move the running statistics by as much as what they are of has moved."""
    (mean_before, var_before), (mean_now, var_now) = _statistics(before), _statistics(now)
    mean = norm._mean.numpy() + mean_now - mean_before
    variance = norm._variance.numpy() * (var_now + 1e-12) / (var_before + 1e-12)
    norm._mean.set_value(mean.astype(np.float32))
    norm._variance.set_value(variance.astype(np.float32))


def _statistics(parts: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of the columns of all rows."""
    count, total, square = 0, 0.0, 0.0
    for rows in parts:
        count, total, square = count + len(rows), total + rows.sum(axis=0), square + np.square(rows).sum(axis=0)
    mean = total / count
    return mean, np.maximum(square / count - np.square(mean), 0.0)


def _columns(x: paddle.Tensor) -> np.ndarray:
    """Return a map as float64 (pixels of all pictures, channels)."""
    return x.transpose([0, 2, 3, 1]).reshape([-1, x.shape[1]]).numpy().astype(np.float64)


def _means(x: paddle.Tensor) -> np.ndarray:
    return x.mean(axis=[2, 3]).numpy().astype(np.float64)
