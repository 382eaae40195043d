"""The filters of the patch embedding and the depthwise kernels: figures and pictures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import figures
from ..files import PathLike
from ..loader import evenly
from ..model import ConvMixer
from . import maps

SHOWN = 64  # filters or kernels of a layer in a picture, as in the paper's
PANELS = 9  # in a picture: the patch embedding and depthwise layers
DELTA = 0.5  # of a kernel's energy; with more of it in the middle tap, it is nearly a delta
FIGURES = ("centre", "delta", "radius", "symmetric", "blur")


def embedding(model: ConvMixer) -> np.ndarray:
    """Return the filters of the patch embedding, float64 (dim, in_chans, patch_size, patch_size)."""
    return model.stem[0].weight.numpy().astype(np.float64)


def depthwise(model: ConvMixer) -> list[np.ndarray]:
    """Return the depthwise kernels of every block, float64 (dim, kernel_size, kernel_size).

    Raises:
        UserError: it is a variant of ConvMixer.
    """
    maps.check_plain(model)
    return [block[0].fn[0].weight.numpy()[:, 0].astype(np.float64) for block in model.blocks]


def distances(side: int) -> np.ndarray:
    """Return how many rows or columns each tap of a kernel is from the one on its output, int (side, side).

    In an even kernel that is the tap above and left of the middle.
    """
    away = np.abs(np.arange(side) - (side - 1) // 2)
    return np.maximum(away[:, None], away)


def energy_by_distance(kernels: np.ndarray) -> np.ndarray:
    """Return the share of the energy (the sum of squares) at each of ``distances``, (kernels, side // 2 + 1)."""
    away = distances(kernels.shape[-1])
    energy = _shares(kernels)
    return np.stack([energy[:, away == ring].sum(1) for ring in range(away.max() + 1)], 1)


def symmetric(kernels: np.ndarray) -> np.ndarray:
    """Return the share of the energy that stays when a kernel is averaged over its 4 rotations and their mirror images.

    The average is the projection on what none of them changes: 1 is a kernel that looks the same from all sides.
    """
    images = [np.rot90(k, turns, (1, 2)) for k in (kernels, kernels.transpose(0, 2, 1)) for turns in range(4)]
    return maps.divide((np.mean(images, 0) ** 2).sum((1, 2)), (kernels**2).sum((1, 2)))


def blur(kernels: np.ndarray) -> np.ndarray:
    """Return the share of the energy that is the mean of the taps: 1 is a box blur, 0 an edge detector of any kind."""
    return maps.divide(kernels.sum((1, 2)) ** 2 / kernels[0].size, (kernels**2).sum((1, 2)))


def _shares(kernels: np.ndarray) -> np.ndarray:
    return maps.divide(kernels**2, (kernels**2).sum((1, 2), keepdims=True))


def noise(side: int) -> dict[str, Any]:
    """Return what the figures come to for kernels of independent taps of one variance: no structure at all.

    A projection on m of side**2 dimensions keeps m / side**2 of such a kernel's energy on average; m is 1 for the
    middle tap and for the mean, and for the symmetric part the number of taps that symmetry leaves apart.
    """
    half = (side + 1) // 2
    taps = side**2
    away = distances(side)
    return {
        "centre": 1 / taps,
        "radius": math.sqrt(_squares(side).mean()),
        "symmetric": half * (half + 1) / 2 / taps,
        "blur": 1 / taps,
        "energy": [float((away == ring).mean()) for ring in range(away.max() + 1)],
    }


def _squares(side: int) -> np.ndarray:
    """Return the square of the Euclidean distance of each tap from the one on its output, (side, side)."""
    away = (np.arange(side) - (side - 1) // 2) ** 2
    return away[:, None] + away


def describe(model: ConvMixer) -> dict[str, Any]:
    """Return figures of the kernels of every block, of which there is one at least, as JSON can write them.

    Returns:
        Of each of ``layers``, over its kernels: ``norm``, the median of their Euclidean norms; ``norms``, their deciles
        0 to 10; and as means, each kernel counting alike whatever its norm, ``centre``, the share of energy of the tap
        on the output; ``energy``, the shares by distance from it; ``radius``, the root of the mean square distance of
        the energy from it, in patches; ``symmetric`` and ``blur``, see the functions; ``delta``, the share of kernels
        with more than half of their energy in the middle tap. ``noise``: what these come to without structure.
        ``stem``: the norms of the filters of the patch embedding, and ``grey``, the share of their energy that all
        colours have in common.

    Raises:
        UserError: as ``depthwise``, or a weight is no number.
    """
    maps.check_weights(model)
    filters, layers, found = embedding(model), depthwise(model), []
    side = layers[0].shape[-1]
    for i, kernels in enumerate(layers):
        energy = energy_by_distance(kernels)
        norms = np.sqrt((kernels**2).sum((1, 2)))
        found.append(
            {
                "name": f"block {i}",
                "norm": float(np.median(norms)),
                "norms": np.quantile(norms, np.linspace(0, 1, 11)).tolist(),
                "centre": float(energy[:, 0].mean()),
                "delta": float((energy[:, 0] > DELTA).mean()),
                "radius": math.sqrt((_shares(kernels) * _squares(side)).sum((1, 2)).mean()),
                "symmetric": float(symmetric(kernels).mean()),
                "blur": float(blur(kernels).mean()),
                "energy": energy.mean(0).tolist(),
            }
        )
    norms = np.sqrt((filters**2).sum((1, 2, 3)))
    grey = maps.divide((filters.mean(1) ** 2).sum((1, 2)) * filters.shape[1], norms**2)
    return {
        "kernel_size": side,
        "stem": {
            "norm": float(np.median(norms)),
            "norms": np.quantile(norms, np.linspace(0, 1, 11)).tolist(),
            "grey": float(grey.mean()),
        },
        "noise": noise(side),
        "layers": found,
    }


def table(facts: dict[str, Any]) -> str:
    """Return what ``describe`` found as a text of some lines."""
    rings = range(len(facts["layers"][0]["energy"]))
    shares = [f"at {ring}" for ring in rings]
    lines = [
        f"patch embedding: median norm {facts['stem']['norm']:.3g}, {facts['stem']['grey']:.0%} of the energy grey",
        f"depthwise kernels, {facts['kernel_size']} x {facts['kernel_size']}; energy by taps from the middle one",
        f"{'layer':10}{'norm':>8}"
        + "".join(f"{word:>11}" for word in FIGURES)
        + "".join(f"{word:>8}" for word in shares),
    ]
    for layer in [*facts["layers"], {"name": "noise", **facts["noise"]}]:
        norm = "" if layer["name"] == "noise" else f"{layer['norm']:.3g}"
        line = f"{layer['name']:10}{norm:>8}"
        for word in FIGURES:
            value = layer.get(word)
            line += f"{'':11}" if value is None else f"{value:11.2f}" if word == "radius" else f"{value:11.1%}"
        lines.append(line + "".join(f"{share:8.1%}" for share in layer["energy"]))
    return "\n".join(lines)


def draw(facts: dict[str, Any], model: ConvMixer, path: PathLike) -> None:
    """Draw the filters of the patch embedding, depthwise kernels of layers from all depths, and figures of all layers.

    Of every layer, up to ``SHOWN`` are drawn, taken evenly from its channels. Each is divided by its own largest value.

    Raises:
        UserError: the suffix is of no kind that can be drawn, or the file cannot be written.
    """
    import matplotlib

    layers = depthwise(model)
    shown = evenly(len(layers), PANELS - 1).tolist()
    colours = matplotlib.colormaps["RdBu_r"]
    sheets = {"patch embedding": mosaic(0.5 + 0.5 * _own_scale(_rgb(embedding(model))))}
    for i in shown:
        sheets[f"block {i}"] = mosaic(colours(0.5 + 0.5 * _own_scale(_some(layers[i])))[..., :3])
    columns = 3
    rows = math.ceil(len(sheets) / columns)
    figure = figures.create(2.5 * columns + 4, 2.6 * rows)
    left, right = figure.subfigures(1, 2, width_ratios=[2.5 * columns, 4])
    panels = left.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels:
        panel.axis("off")
    for panel, (name, sheet) in zip(panels, sheets.items()):
        panel.imshow(sheet, interpolation="nearest")
        panel.set_title(name, fontsize="medium")
    left.supxlabel("each by its own largest value; kernels: red +, white 0, blue -; filters: grey 0", fontsize="small")
    _draw_figures(facts, right)
    figures.save(figure, path)


def _draw_figures(facts: dict[str, Any], figure: Any) -> None:
    import matplotlib

    found = facts["layers"]
    at, ticks = range(len(found)), maps.ticks([layer["name"] for layer in found])
    above, below = figure.subplots(2, 1, sharex=True)
    rings = np.array([layer["energy"] for layer in found]).T
    colours = matplotlib.colormaps["viridis"](np.linspace(0.1, 0.9, len(rings)))
    above.stackplot(at, rings, colors=colours, labels=[f"{ring}" for ring in range(len(rings))])
    above.set(ylabel="share of the energy", ylim=(0, 1), xlim=(0, max(len(found) - 1, 1)))
    above.legend(title="taps from\nthe middle", fontsize="small", title_fontsize="small", loc="upper right")
    for colour, word, label in (
        ("C0", "symmetric", "the same from all sides"),
        ("C1", "blur", "mean of the taps"),
        ("C2", "delta", "kernels nearly a delta (share)"),
    ):
        below.plot(at, [layer[word] for layer in found], f"{colour}o-", label=label, markersize=4)
        if word in facts["noise"]:
            below.axhline(facts["noise"][word], color=colour, linestyle=":", linewidth=1)
    below.set(xlabel="block", ylabel="share of the energy", ylim=(0, None))
    below.set_xticks(*ticks)
    below.grid(alpha=0.3)
    below.legend(fontsize="small", title="dotted: noise", title_fontsize="small")


def mosaic(tiles: np.ndarray) -> np.ndarray:
    """Return tiles (N, H, W, 3) side by side, in about as many rows as columns, with white lines between them."""
    count, height, width, colours = tiles.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.ones((rows * columns, height + 1, width + 1, colours))
    sheet[:count, :-1, :-1] = tiles
    sheet = sheet.reshape(rows, columns, height + 1, width + 1, colours).transpose(0, 2, 1, 3, 4)
    return sheet.reshape(rows * (height + 1), columns * (width + 1), colours)[:-1, :-1]


def _some(kernels: np.ndarray) -> np.ndarray:
    """Return up to ``SHOWN`` of them, evenly from all."""
    return kernels[evenly(len(kernels), SHOWN)]


def _own_scale(kernels: np.ndarray) -> np.ndarray:
    """Divide every kernel by its largest absolute value; one of zeros stays."""
    largest = np.abs(kernels).max(axis=tuple(range(1, kernels.ndim)), keepdims=True)
    return maps.divide(kernels, largest)


def _rgb(filters: np.ndarray) -> np.ndarray:
    """Return some filters (N, C, H, W) as colours, (N, H, W, 3); those of other than three channels are grey."""
    filters = _some(filters).transpose(0, 2, 3, 1)
    return filters if filters.shape[-1] == 3 else np.repeat(filters.mean(-1, keepdims=True), 3, -1)
