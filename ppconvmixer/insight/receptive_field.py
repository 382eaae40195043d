"""How far the layers of a network can see, and how far they do."""

from __future__ import annotations

import math
import statistics
from typing import Any, Optional

import numpy as np
import paddle

from .. import figures
from ..errors import UserError
from ..files import PathLike
from ..loader import evenly
from ..model import ConvMixer
from ..progress import Progress
from . import maps

SHARE = 0.95  # of the gradient that the effective field holds
LARGEST = 3  # times the side of the pictures that they are extended to; fields of deep networks go beyond any picture
BATCH = 4  # pictures at a time at most: the maps of all layers are kept for the way back, see ``maps.at_once``
SHOWN = 9  # heat maps in a picture


def theoretical(model: ConvMixer) -> list[tuple[int, int]]:
    """Return for the stem and every block how far the field of an output reaches beyond its own patch.

    The patch embedding has patches that do not overlap, so the field begins as one of them. A kernel of k taps on a map
    adds k - 1 patches: (k - 1) // 2 above and left, the others below and right, as the network pads. A pointwise
    convolution adds none. The side of the field is before + patch_size + after.

    Returns:
        (before, after) in pixels, of both axes.

    Raises:
        UserError: it is a variant of ConvMixer.
    """
    maps.check_plain(model)
    fields = [(0, 0)]
    for block in model.blocks:
        taps = block[0].fn[0].weight.shape[-1] - 1
        before, after = fields[-1]
        fields.append((before + taps // 2 * model.patch_size, after + (taps - taps // 2) * model.patch_size))
    return fields


def room(model: ConvMixer, size: int) -> int:
    """Return the side to extend pictures of ``size`` pixels to, so that no edge cuts the field of the middle.

    It is at most ``LARGEST`` times their own.
    """
    return min(max(size, 2 * theoretical(model)[-1][1] + model.patch_size), LARGEST * size)


def gradients(model: ConvMixer, images: np.ndarray, size: Optional[int] = None) -> np.ndarray:
    """Return how much the middle of every layer's map depends on every pixel (Luo et al. 2016, arXiv 1701.04128).

    The channels of the middle position are added up under random signs, so that they do not cancel out the same way
    in every picture; the gradient of that sum by the pixels is taken without its sign, added over the colours, and
    averaged over the pictures.

    Args:
        images: float32 (N, in_chans, H, W), square.
        size: side to extend the pictures to, see ``maps.mirrored``; None takes ``room``.

    Returns:
        float64 (depth + 1, size, size), each of sum 1.

    Raises:
        UserError: the pictures are larger than ``size``, or a layer's map does not depend on them; or as
            ``theoretical``.
    """
    size = room(model, images.shape[-1]) if size is None else size
    images = maps.mirrored(images, size, size)
    total = np.zeros((len(model.blocks) + 1, size, size))
    signs = np.random.default_rng(0).choice(np.float32([-1, 1]), (len(images), model.dim))
    middle = _middle(model, size)
    count = maps.at_once(model, size, size, BATCH)
    with Progress(len(images), "receptive field") as progress:
        for start in range(0, len(images), count):
            batch = paddle.to_tensor(images[start : start + count], stop_gradient=False)
            found = maps.outputs(model, batch).values()
            for layer, output in enumerate(found):
                summed = (output[:, :, middle, middle] * paddle.to_tensor(signs[start : start + count])).sum()
                (gradient,) = paddle.grad(summed, batch, retain_graph=True)
                total[layer] += np.abs(gradient.numpy().astype(np.float64)).sum((0, 1))
            progress.advance(len(batch))
    sums = total.sum((1, 2), keepdims=True)
    if not (np.isfinite(sums) & (sums > 0)).all():
        raise UserError(
            "the network's maps do not depend on the pictures; it has dead layers, or weights beyond float32"
        )
    return total / sums


def _middle(model: ConvMixer, size: int) -> int:
    """Return the row, and column, of the middle of the map of a picture."""
    return size // model.patch_size // 2


def square(mass: np.ndarray, middle: tuple[float, float], share: float) -> int:
    """Return the side, in pixels, of the smallest square around ``middle`` that holds ``share`` of ``mass``.

    Args:
        mass: (H, W), of sum 1.
        middle: row and column, where pixel i reaches from i to i + 1.
    """
    far = [2 * np.abs(np.arange(n) + 0.5 - at) + 1 for n, at in zip(mass.shape, middle)]
    sides = np.maximum(far[0][:, None], far[1]).round().astype(int)  # of the square that reaches to each pixel
    held = np.bincount(sides.ravel(), mass.ravel()).cumsum()
    return int(np.searchsorted(held, share * held[-1] - 1e-12))  # sums of a share exactly may fall short of it


def deviation(mass: np.ndarray) -> float:
    """Return the standard deviation of a mass (H, W) of sum 1 about its centre, in pixels, averaged over the axes."""
    variances = []
    for axis in (0, 1):
        profile, at = mass.sum(1 - axis), np.arange(mass.shape[axis])
        variances.append((profile * (at - (profile * at).sum()) ** 2).sum())
    return math.sqrt(np.mean(variances))


def describe(model: ConvMixer, mass: np.ndarray, share: float = SHARE) -> dict[str, Any]:
    """Return the fields of all layers, in pixels of the input, as JSON can write them.

    Args:
        mass: as ``gradients`` returns it.

    Returns:
        Of each of ``layers``: ``theoretical``, the side of the field, of which ``before`` above and left and ``after``
        below and right of the output's own patch; ``effective``, the side of the smallest square about its middle
        that holds ``share`` of the gradient; ``gaussian``, the side that would hold as much of a normal distribution of
        the same standard deviation, ``deviation``; ``own``, the share of the gradient in the output's own patch.
    """
    size, patch = mass.shape[-1], model.patch_size
    start = _middle(model, size) * patch
    reach = statistics.NormalDist().inv_cdf((1 + math.sqrt(share)) / 2)  # of one axis, both of which must hold
    found = []
    for name, (before, after), part in zip(maps.layers(model), theoretical(model), mass):
        middle = start + (patch + after - before) / 2
        found.append(
            {
                "name": name,
                "theoretical": before + patch + after,
                "before": before,
                "after": after,
                "effective": square(part, (middle, middle), share),
                "gaussian": 2 * reach * deviation(part),
                "deviation": deviation(part),
                "own": float(part[start : start + patch, start : start + patch].sum()),
            }
        )
    return {"share": share, "size": size, "patch_size": patch, "middle": start, "layers": found}


def table(facts: dict[str, Any]) -> str:
    """Return what ``describe`` found as a text of some lines."""
    lines = [
        f"fields in pixels; effective: the square that holds {facts['share']:.0%} of the gradient",
        f"{'layer':10}{'theoretical':>12}{'effective':>12}{'of it':>8}{'gaussian':>12}{'own patch':>12}",
    ]
    for layer in facts["layers"]:
        part = layer["effective"] / layer["theoretical"]
        lines.append(
            f"{layer['name']:10}{layer['theoretical']:12}{layer['effective']:12}{part:8.0%}"
            f"{layer['gaussian']:12.1f}{layer['own']:12.1%}"
        )
    return "\n".join(lines)


def draw(facts: dict[str, Any], mass: np.ndarray, path: PathLike) -> None:
    """Draw the growth of both fields, and the effective ones as heat maps.

    Raises:
        UserError: the suffix is of no kind that can be drawn, or the file cannot be written.
    """
    from matplotlib.colors import LogNorm

    found = facts["layers"]
    shown = evenly(len(found), SHOWN).tolist()
    columns = math.ceil(len(shown) / 3) if len(shown) > 3 else 1
    figure = figures.create(5 + 2.1 * columns, 6)
    curves, heat = figure.subfigures(1, 2, width_ratios=[4.6, 2.1 * columns + 0.8])
    axes = curves.add_subplot()
    at = range(len(found))
    for key, label, style in (
        ("theoretical", "theoretical", "C7--"),
        ("effective", f"effective: {facts['share']:.0%} of the gradient", "C0o-"),
        ("gaussian", "normal distribution as wide", "C1-"),
    ):
        axes.plot(at, [layer[key] for layer in found], style, label=label, markersize=4)
    if found[-1]["theoretical"] > facts["size"]:
        axes.axhline(facts["size"], color="C3", linewidth=0.8, linestyle=":", label="pictures, mirrored at their edges")
    axes.set(xlabel="block", ylabel="side of the field, pixels", ylim=(0, None))
    axes.set_xticks(*maps.ticks([layer["name"] for layer in found]))
    axes.legend(fontsize="small", loc="upper left")
    axes.grid(alpha=0.3)
    panels = heat.subplots(math.ceil(len(shown) / columns), columns, squeeze=False).ravel()
    for panel in panels:
        panel.axis("off")
    side = max(2 * max(layer["effective"] for layer in found), 2 * facts["patch_size"])
    for panel, i in zip(panels, shown):
        image = panel.imshow(mass[i] / mass[i].max(), norm=LogNorm(1e-4, 1, clip=True), cmap="magma")
        _frame(panel, facts, found[i], side)
        panel.set_title(
            f"{found[i]['name']}: {found[i]['effective']} of {found[i]['theoretical']} px", fontsize="small"
        )
    bar = heat.colorbar(image, ax=panels.tolist(), shrink=0.6, pad=0.02)
    bar.set_label("gradient by its largest", fontsize="small")
    figures.save(figure, path)


def _frame(panel: Any, facts: dict[str, Any], layer: dict[str, Any], side: float) -> None:
    """Show the middle ``side`` pixels, and frame the effective and the theoretical field."""
    from matplotlib.patches import Rectangle

    start = facts["middle"] - layer["before"] - 0.5  # pixel 0 is drawn from -0.5 to 0.5
    middle = start + layer["theoretical"] / 2
    for width, colour in ((layer["theoretical"], "0.6"), (layer["effective"], "C0")):
        panel.add_patch(Rectangle((middle - width / 2,) * 2, width, width, fill=False, edgecolor=colour))
    centre = facts["middle"] + facts["patch_size"] / 2 - 0.5
    panel.set(xlim=(centre - side / 2, centre + side / 2), ylim=(centre + side / 2, centre - side / 2))
