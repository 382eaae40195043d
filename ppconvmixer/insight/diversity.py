"""How alike positions, channels and layers of a network are on pictures, and what every block adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle

from .. import figures
from ..files import PathLike
from ..loader import evenly
from ..model import ConvMixer
from ..progress import Progress
from . import maps

BATCH = 16  # pictures at a time at most, see ``maps.at_once``
POSITIONS = 4096  # of all pictures together that are compared at least: far more than published networks have channels
ROOM = 1 << 27  # numbers in the features of all layers that are compared: 1 GB in float64
COLUMNS = ("positions", "channels", "rank", "added", "along", "cka below", "cka stem")


def position_similarity(features: np.ndarray) -> float:
    """Return the mean cosine of the features of two positions of a picture, over all pairs and pictures.

    1: every position says the same, as where there is but one. A position whose features are all 0 is like none.

    Args:
        features: (N, C, H, W).
    """
    return float(_alike(features).mean())


def _alike(features: np.ndarray) -> np.ndarray:
    """Return for every picture what ``position_similarity`` returns the mean of, float64 (N,)."""
    rows = features.reshape(*features.shape[:2], -1).astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    units = maps.divide(rows, norms)
    count = rows.shape[2]
    if count == 1:
        return np.ones(len(rows))
    # The cosines of all pairs, a position with itself among them, are the squared length of the sum of the units.
    return ((units.sum(2) ** 2).sum(1) - (units**2).sum((1, 2))) / (count * (count - 1))


def channel_correlation(matrix: np.ndarray) -> float:
    """Return the mean absolute correlation (Pearson) of two channels, over all pairs of those that vary.

    Args:
        matrix: float64 (samples, channels); 0 comes back where fewer than two channels vary.
    """
    centred = matrix - matrix.mean(0)
    norms = np.linalg.norm(centred, axis=0)
    varying = norms > 1e-12 * max(norms.max(), np.finfo(float).tiny)
    units = centred[:, varying] / norms[varying]
    count = units.shape[1]
    if count < 2:
        return 0.0
    return float((np.abs(units.T @ units).sum() - count) / (count * (count - 1)))


def effective_rank(matrix: np.ndarray) -> float:
    """Return the effective rank of Roy & Vetterli (2007): the exponential of the entropy of the singular values.

    The singular values are divided by their sum. It is between 1 and the rank; 0 is returned for a matrix of zeros.

    Args:
        matrix: float64 (samples, channels), taken as it is.
    """
    values = np.linalg.svd(matrix, compute_uv=False)
    if not values.sum():
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def cka(features: Sequence[np.ndarray]) -> np.ndarray:
    """Return the linear centred kernel alignment of every two sets of features (Kornblith et al. 2019).

    1: the same but for rotation and scale; 0: uncorrelated, or one of the two does not vary.

    Args:
        features: (samples, channels) each: the same samples, any number of channels.

    Returns:
        float64 (sets, sets).
    """
    centred = [part.astype(np.float64) - part.mean(0, dtype=np.float64) for part in features]
    shared = np.zeros((len(centred), len(centred)))
    for i, a in enumerate(centred):
        for j, b in enumerate(centred[: i + 1]):
            shared[i, j] = shared[j, i] = np.linalg.norm(a.T @ b) ** 2
    own = np.sqrt(np.diag(shared))
    return maps.divide(shared, np.outer(own, own))


def describe(model: ConvMixer, images: np.ndarray) -> dict[str, Any]:
    """Return figures of every layer's map on pictures, as JSON can write them.

    Args:
        images: float32 (N, in_chans, H, W).

    Returns:
        Of each of ``layers``: ``positions``, see ``position_similarity``; ``channels``, see ``channel_correlation``;
        ``rank``, the effective rank of the features of all positions, less their mean; and of the blocks ``added``,
        the root mean square of what the depthwise half adds by that of what comes in, and ``along``, the cosine of the
        two. ``cka``: of all pairs of layers, over all positions. Where the features of all layers are more than
        ``ROOM`` numbers, ``channels``, ``rank`` and ``cka`` are over as many positions as that holds, ``POSITIONS`` at
        least, evenly spaced over the maps of all pictures; ``compared`` says how many.

    Raises:
        UserError: a map holds what is no number, or the network is a variant of ConvMixer.
    """
    maps.check_plain(model)
    features, alike, added = _look(model, images)
    layers = []
    for name, part in features.items():
        matrix = part.astype(np.float64)
        matrix -= matrix.mean(0)
        layers.append(
            {
                "name": name,
                "positions": alike[name],
                "channels": channel_correlation(matrix),
                "rank": effective_rank(matrix),
                **added.get(name, {"added": None, "along": None}),
            }
        )
    return {
        "pictures": len(images),
        "dim": model.dim,
        "compared": len(features["stem"]),
        "layers": layers,
        "cka": cka(list(features.values())).tolist(),
    }


def _look(
    model: ConvMixer, images: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, dict[str, float]]]:
    """Return what is seen of every layer while the pictures go through, some at a time.

    Returns:
        Of every layer the features that are compared, float32 (positions, dim), and its ``position_similarity``; and of
        every block how its depthwise half adds to what comes in.
    """
    names, (height, width) = list(maps.layers(model)), images.shape[2:]
    count = (height // model.patch_size) * (width // model.patch_size)  # of the positions of a map
    chosen = evenly(len(images) * count, max(POSITIONS, ROOM // (model.dim * len(names))))
    pictures, places = np.divmod(chosen, count)
    features: dict[str, list[np.ndarray]] = {name: [] for name in names}
    alike: dict[str, list[np.ndarray]] = {name: [] for name in names}
    sums = {name: np.zeros(3) for name in names[1:]}  # of the squares of both, and of their product

    def see(name: str, stream: paddle.Tensor, half: paddle.Tensor) -> None:
        x, y = (tensor.numpy().astype(np.float64).ravel() for tensor in (stream, half))
        sums[name] += x @ x, y @ y, x @ y

    halves = {name: block[0].fn for name, block in maps.layers(model).items() if name in sums}
    quiet = np.errstate(all="ignore")  # what is no number is named below
    with paddle.no_grad(), quiet, maps.watched(halves, see), Progress(len(images), "mixing") as progress:
        size = maps.at_once(model, height, width, BATCH)
        for start in range(0, len(images), size):
            here = slice(*np.searchsorted(pictures, [start, start + size]))
            for name, output in maps.outputs(model, paddle.to_tensor(images[start : start + size])).items():
                values = maps.finite(name, output.numpy()).reshape(-1, model.dim, count)
                alike[name].append(_alike(values))
                features[name].append(values[pictures[here] - start, :, places[here]])
            progress.advance(len(images[start : start + size]))
    added = {
        name: {"added": float(np.sqrt(maps.divide(y, x))), "along": float(maps.divide(both, np.sqrt(x * y)))}
        for name, (x, y, both) in sums.items()
    }
    compared = {name: np.concatenate(part) for name, part in features.items()}
    return compared, {name: float(np.concatenate(part).mean()) for name, part in alike.items()}, added


def table(facts: dict[str, Any]) -> str:
    """Return what ``describe`` found as a text of some lines."""
    lines = [
        f"{facts['pictures']} pictures, {facts['compared']:,} positions; effective rank of at most {facts['dim']}",
        f"{'layer':10}" + "".join(f"{word:>11}" for word in COLUMNS),
    ]
    for i, layer in enumerate(facts["layers"]):
        line = f"{layer['name']:10}{layer['positions']:11.3f}{layer['channels']:11.3f}{layer['rank']:11.1f}"
        if i:
            below, stem = facts["cka"][i][i - 1], facts["cka"][i][0]
            line += f"{layer['added']:11.2f}{layer['along']:11.2f}{below:11.3f}{stem:11.3f}"
        lines.append(line)
    return "\n".join(lines)


def draw(facts: dict[str, Any], path: PathLike) -> None:
    """Draw what ``describe`` found.

    Raises:
        UserError: the suffix is of no kind that can be drawn, or the file cannot be written.
    """
    found = facts["layers"]
    figure = figures.create(12, 5.6)
    curves, right = figure.subfigures(1, 2, width_ratios=[1.25, 1])
    panels = curves.subplots(2, 2, sharex=True).ravel()
    ticks = maps.ticks([layer["name"] for layer in found])
    for panel, key, title, top in zip(
        panels,
        ("positions", "channels", "rank", "added"),
        (
            "cosine between positions",
            "|correlation| of channels",
            f"effective rank, of {facts['dim']}",
            "what a block adds",
        ),
        (1, None, facts["dim"], None),
    ):
        panel.plot(*_curve(found, key), "o-", markersize=4, label="size, by the stream's")
        panel.set_title(title, fontsize="medium")
        if key != "added":
            panel.set_ylim(0, top)
        panel.set_xticks(*ticks)
        panel.grid(alpha=0.3)
    panels[3].plot(*_curve(found, "along"), "C1o-", markersize=4, label="cosine with the stream")
    panels[3].axhline(0, color="0.5", linewidth=0.8)
    panels[3].legend(fontsize="small")
    for panel in panels[2:]:
        panel.set_xlabel("block")
    axes = right.add_subplot()
    image = axes.imshow(facts["cka"], vmin=0, vmax=1, cmap="magma", origin="lower")
    axes.set_xticks(*ticks)
    axes.set_yticks(*ticks)
    axes.set_title("linear CKA of two layers", fontsize="medium")
    if len(found) <= 12:
        for (row, column), value in np.ndenumerate(facts["cka"]):
            colour = "white" if value < 0.6 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize="x-small", color=colour)
    right.colorbar(image, ax=axes, shrink=0.8)
    figures.save(figure, path)


def _curve(found: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Return where a figure is known, and what it is there."""
    at = [i for i, layer in enumerate(found) if layer[key] is not None]
    return at, [found[i][key] for i in at]
