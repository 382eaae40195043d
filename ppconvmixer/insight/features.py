"""What every block makes of a picture: its maps as figures, as a table and as a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import paddle

from .. import figures
from ..files import PathLike
from ..loader import evenly
from ..model import ConvMixer, FeatureInfo
from ..transforms import Picture
from .maps import finite

COLUMNS = 8  # blocks in a picture, if nobody says which; more are hard to see
RARE = 1.0  # per cent of the pixels that may be too dark or too bright for the colours of the components


@dataclasses.dataclass(frozen=True)
class Map:
    """What a block makes of one picture.

    Args:
        info: which block, and what was known beforehand.
        values: float32 (channels, height, width).
    """

    info: FeatureInfo
    values: np.ndarray


def look(model: ConvMixer, image: np.ndarray, blocks: Optional[Sequence[int]] = None) -> list[Map]:
    """Return the maps of some blocks for one input, float32 (channels, size, size).

    Args:
        model: in evaluation, or it will be.
        blocks: as ``ConvMixer.forward_intermediates`` has them; None takes ``COLUMNS`` or fewer, the first to the last.

    Raises:
        UserError: there are no such blocks, or a map holds what is no number.
    """
    depth = len(model.blocks)
    if blocks is None:
        blocks = evenly(depth, COLUMNS).tolist()
    chosen = model.block_numbers(blocks)
    model.eval()
    with paddle.no_grad():
        _, found = model.forward_intermediates(paddle.to_tensor(image[np.newaxis]), chosen)
    infos = [model.feature_info[i] for i in chosen]
    return [Map(info, finite(info.name, values.numpy()[0])) for info, values in zip(infos, found)]


def spectrum(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the principal components of a map, its pixels being the samples and its channels what they are made of.

    Returns:
        The variance that every component has over the pixels, largest first, and the components, float64 (n, height,
        width), their signs such that the largest weight of a channel is positive.
    """
    rows = values.reshape(len(values), -1).T.astype(np.float64)
    left, sizes, right = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    signs = np.sign(np.take_along_axis(right, np.abs(right).argmax(axis=1)[:, np.newaxis], axis=1)[:, 0])
    maps = (left * sizes * signs).T.reshape(-1, *values.shape[1:])
    return sizes**2 / len(rows), maps


def strongest(values: np.ndarray) -> list[int]:
    """Return the channels of a map, those that differ most over its pixels first."""
    return np.argsort(-values.astype(np.float64).var(axis=(1, 2)), kind="stable").tolist()


def describe(maps: Sequence[Map]) -> list[dict[str, Any]]:
    """Return of every map, as JSON can write it, what is known of it and how its values are spread.

    ``explained`` is the share of the variance over the pixels that its three main components have, the ``rank`` how
    many components of equal variance would be spread as its own are, (sum v)^2 / sum v^2; both are None for a map
    that is the same everywhere. ``channels_by_variance`` names the channels, those that differ most first.
    """
    found = []
    for shown in maps:
        values, variances = shown.values.astype(np.float64), spectrum(shown.values)[0]
        total, varies = variances.sum(), bool((shown.values != shown.values[:, :1, :1]).any())
        found.append(
            {
                **dataclasses.asdict(shown.info),
                "height": values.shape[1],
                "width": values.shape[2],
                "mean": values.mean(),
                "deviation": values.std(),
                "lowest": values.min(),
                "highest": values.max(),
                "explained": variances[:3].sum() / total if varies else None,
                "rank": total**2 / np.square(variances).sum() if varies else None,
                "channels_by_variance": strongest(shown.values),
            }
        )
    return found


def table(facts: Sequence[dict[str, Any]]) -> str:
    """Return what ``describe`` found as a text of some lines."""
    lines = [
        f"{'block':12}{'map':>14}{'stride':>8}{'mean':>9}{'std':>8}{'lowest':>9}{'highest':>9}"
        f"{'3 components':>14}{'rank':>7}  channels that differ most"
    ]
    for row in facts:
        size = f"{row['channels']}x{row['height']}x{row['width']}"
        spread = "".join(f"{row[key]:{width}.2f}" for key, width in (("mean", 9), ("deviation", 8)))
        ends = "".join(f"{row[key]:9.2f}" for key in ("lowest", "highest"))
        flat = row["rank"] is None
        share = f"{'-':>14}{'-':>7}" if flat else f"{100 * row['explained']:12.1f} %{row['rank']:7.1f}"
        best = ", ".join(map(str, row["channels_by_variance"][:4]))
        lines.append(f"{row['name']:12}{size:>14}{row['stride']:8}{spread}{ends}{share}  {best}")
    return "\n".join(lines)


def colours(values: np.ndarray) -> np.ndarray:
    """Return the three main components of a map as red, green and blue, float64 (height, width, 3) in [0, 1].

    Each is stretched over the whole range by itself, but for its ``RARE`` darkest and brightest pixels.
    """
    maps = spectrum(values)[1][:3]
    low, high = (np.percentile(maps, share, axis=(1, 2), keepdims=True) for share in (RARE, 100 - RARE))
    spread = np.where(high > low, high - low, 1)
    red_green_blue = np.zeros((3, *values.shape[1:]))  # a map of fewer pixels or channels has fewer components
    red_green_blue[: len(maps)] = np.clip((maps - low) / spread, 0, 1)
    return red_green_blue.transpose(1, 2, 0)


def strength(values: np.ndarray) -> np.ndarray:
    """Return how much there is at every pixel, (height, width): the root of the mean square of the channels."""
    return np.sqrt(np.square(values.astype(np.float64)).mean(axis=0))


def draw(crop: Picture, maps: Sequence[Map], path: PathLike, channels: int = 4) -> None:
    """Draw maps to a file, a column for each: its main components as colours, its strength, and single channels.

    Args:
        crop: the part of the picture that the network sees.
        channels: so many, those that differ most over the picture.

    Raises:
        UserError: the suffix is of no kind that can be drawn, or the file cannot be written.
    """
    rows = 2 + min(channels, len(maps[0].values))
    figure = figures.create(1.45 * (len(maps) + 1) + 0.3, 1.45 * rows + 0.7)
    grid = figure.subplots(rows, len(maps) + 1, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.axis("off")
    grid[0, 0].imshow(crop)
    grid[0, 0].set_title("what it sees, and\nmain components", fontsize="small")
    for row, name in enumerate(["strength", "channels that\ndiffer most"][: rows - 1], start=1):
        grid[row, 0].text(1, 0.5, name, ha="right", va="center", fontsize="small", transform=grid[row, 0].transAxes)
    for column, shown in enumerate(maps, start=1):
        _, height, width = shown.values.shape
        grid[0, column].imshow(colours(shown.values))
        grid[0, column].set_title(f"{shown.info.name}\n{width} x {height}", fontsize="small")
        grid[1, column].imshow(strength(shown.values), cmap="magma", vmin=0)
        for axes, channel in zip(grid[2:, column], strongest(shown.values)):
            largest = np.abs(shown.values[channel]).max()
            axes.imshow(shown.values[channel], cmap="RdBu_r", vmin=-largest, vmax=largest)
            axes.set_title(f"{channel}", fontsize="x-small", pad=2)
    figures.save(figure, path)
