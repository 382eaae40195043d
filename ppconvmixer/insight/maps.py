"""The maps that the layers of a network give for pictures, taken by hooks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Callable

import numpy as np
import paddle
from paddle import nn

from ..errors import UserError
from ..model import ConvMixer

ROOM = 1 << 29  # numbers in the results of all layers for the pictures that are taken at a time: 2 GB


def at_once(model: ConvMixer, height: int, width: int, most: int) -> int:
    """Return how many pictures to take at a time: ``most``, or fewer, down to one, where their maps are large.

    Every layer of the stem and the blocks is a convolution, an activation and a norm, each with a map of its own.

    Args:
        height, width: of the pictures.
    """
    positions = (height // model.patch_size) * (width // model.patch_size)
    results = 3 * (2 * len(model.blocks) + 1) * model.dim * max(positions, 1)
    return max(1, min(most, ROOM // results))


def check_plain(model: ConvMixer) -> None:
    """Refuse a variant of ConvMixer where its convolutions and norms are found by their places in the blocks.

    Raises:
        UserError: it is one, see ``ConvMixer.plain``.
    """
    if not model.plain:
        raise UserError(
            "kernels, receptive fields, mixing, robustness and batch norms are looked at in ConvMixer itself, not in "
            "its variants; insight.features, insight.gradcam and insight.complexity.count take these too"
        )


def layers(model: ConvMixer) -> dict[str, nn.Layer]:
    """Return the stem and the blocks by name, in the order of the way of the data."""
    return {"stem": model.stem, **{f"block {i}": block for i, block in enumerate(model.blocks)}}


@contextlib.contextmanager
def watched(parts: Mapping[str, nn.Layer], see: Callable[[str, paddle.Tensor, paddle.Tensor], None]) -> Iterator[None]:
    """Call ``see(name, input, output)`` whenever one of ``parts`` has computed.

    A network with hooks is computed by its layers, not by the CPU operator, which has none to look into.
    """

    def hook(name: str) -> Callable[..., None]:
        def look(layer: nn.Layer, inputs: tuple[paddle.Tensor, ...], output: paddle.Tensor) -> None:
            see(name, inputs[0], output)

        return look

    handles = [part.register_forward_post_hook(hook(name)) for name, part in parts.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def evaluating(model: nn.Layer) -> Iterator[None]:
    """Put a network into evaluation, and back into training afterwards if it came from there."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


def outputs(model: ConvMixer, images: paddle.Tensor) -> dict[str, paddle.Tensor]:
    """Return what every one of ``layers`` gives in evaluation, (N, dim, H // patch_size, W // patch_size) each.

    Args:
        images: (N, in_chans, H, W); with ``stop_gradient`` False, gradients of the maps lead back to them.
    """
    found: dict[str, paddle.Tensor] = {}
    with evaluating(model), watched(layers(model), lambda name, _, output: found.update({name: output})):
        model.forward_features(images)
    return found


def check_weights(model: ConvMixer) -> None:
    """Refuse a network that has weights that are no numbers: whatever is made of them says nothing."""
    for name, value in model.state_dict().items():
        if not np.isfinite(value.numpy()).all():
            raise UserError(f"{name} holds what is no number; take another checkpoint")


def finite(name: str, values: np.ndarray) -> np.ndarray:
    """Return the map of a layer as it is.

    Raises:
        UserError: it holds what is no number, of which there are neither components nor ranks.
    """
    if not np.isfinite(values).all():
        raise UserError(
            f"the map of {name} holds what is no number; the network has weights that are none, or beyond float32; "
            "take another checkpoint"
        )
    return values


def mirrored(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return pictures (N, C, H, W) extended to ``height`` x ``width`` by what a mirror at their edges shows.

    What is added is the same on both sides; an odd pixel goes below and right.

    Raises:
        UserError: the pictures are larger.
    """
    added = height - images.shape[2], width - images.shape[3]
    if min(added) < 0:
        wanted = f"{images.shape[2]} x {images.shape[3]}"
        raise UserError(f"{height} x {width} pixels are less than the pictures have; want {wanted} or more")
    return np.pad(images, [(0, 0), (0, 0), *[(n // 2, n - n // 2) for n in added]], mode="symmetric")


def divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return ``part / whole`` in float64, and 0 where ``whole`` is: what has nothing has a share of nothing."""
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)


def ticks(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return places and labels for an axis of layers, at most twelve: the stem by name, the blocks by number."""
    places = list(range(0, len(names), math.ceil(len(names) / 12)))
    return places, [names[i].removeprefix("block ") for i in places]
