"""Make a trained network smaller: without its least weights, or without some of its channels.

Weights that are 0 make a file that compresses well; no engine here is faster for them. A narrower network is a
network like any other, and faster everywhere.

All maps of a ConvMixer are of one width, but the pointwise convolution of a block mixes the channels anew, so that
which of them are kept is chosen map by map: the same for the norm that makes a map, the depthwise half and its
residual, and the columns of the pointwise convolution (or the head) that takes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle

from . import card, checkpoint
from .errors import UserError
from .files import sha256
from .model import ConvMixer

if TYPE_CHECKING:
    from .trained import Trained

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
        UserError: ``dim`` is not below the network's width, or the network is a variant that is no ConvMixer.
    """
    if not model.plain:
        raise UserError(
            "only ConvMixer itself is made narrower, not its variants (several kernel sizes, norm_first, residual)"
        )
    if not 0 < dim < model.dim:
        raise UserError(f"the network is {model.dim} channels wide; a narrower one has 1 to {model.dim - 1}")
    model.eval()
    with paddle.no_grad():
        kept = _choose(model, dim, paddle.to_tensor(images))
        small = _cut(model, kept)
        small.eval()
        _fit(model, small, kept, paddle.to_tensor(images))
    return small


def _choose(model: ConvMixer, dim: int, images: paddle.Tensor) -> list[np.ndarray]:
    """Return the channels of every map that are kept, sorted: of the stem's, of block 0's, ..., of the last block's."""
    covariances, x = [], model.stem(images)
    for block in model.blocks:
        x = block[0](x)
        covariances.append(np.cov(_columns(x), rowvar=False))
        x = block[1:](x)
    covariances.append(np.cov(_means(x), rowvar=False))
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


def _fit(model: ConvMixer, small: ConvMixer, kept: list[np.ndarray], images: paddle.Tensor) -> None:
    """Fit the products of ``small``, from the stem up, to what ``model`` computes."""
    x, y = model.stem(images), small.stem(images)
    for block, ours, channels in zip(model.blocks, small.blocks, kept[1:]):
        x, y = block[0](x), ours[0](y)
        z = block[1](x)
        weights, bias = _regress(_columns(y), _columns(z)[:, channels])
        ours[1].weight.set_value(weights.T[:, :, None, None].astype(np.float32))
        ours[1].bias.set_value(bias.astype(np.float32))
        x, y = block[2](z), ours[2](ours[1](y))
        _follow(ours[3], _columns(x)[:, channels], _columns(y))
        x, y = block[3](x), ours[3](y)
    if model.num_classes:
        weights, bias = _regress(_means(y), _means(x) @ model.head.weight.numpy() + model.head.bias.numpy())
        small.head.weight.set_value(weights.astype(np.float32))
        small.head.bias.set_value(bias.astype(np.float32))


def _regress(inputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrix (in, out) and the bias that make the most of ``targets`` of ``inputs``, both by rows."""
    means, goal = inputs.mean(axis=0), targets.mean(axis=0)
    inputs, targets = inputs - means, targets - goal
    square = inputs.T @ inputs
    square += RIDGE * np.mean(np.diag(square)) * np.eye(len(square))
    matrix = np.linalg.solve(square, inputs.T @ targets)
    return matrix, goal - means @ matrix


def _follow(norm: paddle.nn.Layer, before: np.ndarray, now: np.ndarray) -> None:
    """Move the running statistics by as much as what they are of has moved."""
    mean = norm._mean.numpy() + now.mean(axis=0) - before.mean(axis=0)
    variance = norm._variance.numpy() * (now.var(axis=0) + 1e-12) / (before.var(axis=0) + 1e-12)
    norm._mean.set_value(mean.astype(np.float32))
    norm._variance.set_value(variance.astype(np.float32))


def _columns(x: paddle.Tensor) -> np.ndarray:
    """Return a map as float64 (pixels of all pictures, channels)."""
    return x.transpose([0, 2, 3, 1]).reshape([-1, x.shape[1]]).numpy().astype(np.float64)


def _means(x: paddle.Tensor) -> np.ndarray:
    return x.mean(axis=[2, 3]).numpy().astype(np.float64)
