"""Where in a picture the evidence for a class is: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391).

A channel of a block's map counts as much as the logit of the class would grow with it, on average over the map; what
speaks for the class in the sum of all channels is the heat. For the last block, whose mean goes into the head, that
is the class activation map of Zhou et al. 2016 (arXiv 1512.04150), divided by the number of its pixels.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import numpy as np
import paddle
from PIL import Image

from .. import figures
from ..errors import UserError, brief, shown, unknown
from ..evaluate import softmax
from ..files import PathLike
from ..model import ConvMixer
from ..transforms import Picture, dimensions, eval_box, eval_transform
from ..zoo import InputSpec, variant
from .maps import finite

if TYPE_CHECKING:
    from ..trained import Trained

MOST = 48  # pictures in one figure
LARGEST = 2048  # pixels a side of a picture in a figure; it shows no more
NAMES = 30  # classes that an error may list
COLOURS = "inferno"
GREY = np.array([0.299, 0.587, 0.114])  # of red, green and blue (ITU-R BT.601), as Pillow has it
COVER = 0.75  # of the picture, where the heat is largest


@dataclasses.dataclass(frozen=True)
class Heat:
    """Where one picture speaks for a class.

    Args:
        values: float32 (height, width) of the block's map, from 0 on, in units of the logit.
        label: the class.
        logits: of the picture, float32 (classes,).
    """

    values: np.ndarray
    label: int
    logits: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """Of all classes, (classes,)."""
        return softmax(self.logits[np.newaxis])[0]


def gradcam(model: ConvMixer, images: np.ndarray, block: int = -1, label: Optional[int] = None) -> list[Heat]:
    """Return for every image where it speaks for a class.

    Args:
        model: in evaluation, or it will be; it has a head.
        images: of the network's own type, usually float32, (N, channels, H, W).
        block: whose map to look at, negative numbers from the last.
        label: the class; None takes the most likely one of every image.

    Raises:
        UserError: there is no such block, or the logits are no numbers.
    """
    (block,) = model.block_numbers([block])
    model.eval()
    with paddle.no_grad():
        maps = model.blocks[: block + 1](model.stem(paddle.to_tensor(images)))
    maps = maps.detach()  # what lies below needs no way back
    maps.stop_gradient = False
    logits = model.forward_head(model.blocks[block + 1 :](maps))
    finite("the head", logits.detach().numpy())
    labels = logits.argmax(axis=1) if label is None else paddle.full([len(images)], label, "int64")
    wanted = paddle.nn.functional.one_hot(labels, logits.shape[1]).astype(logits.dtype)
    (gradient,) = paddle.grad((logits * wanted).sum(), maps)
    weights = gradient.mean(axis=[2, 3], keepdim=True)
    heat = paddle.nn.functional.relu((weights * maps).sum(axis=1))
    return [Heat(*found) for found in zip(heat.numpy(), labels.tolist(), logits.detach().numpy())]


def look(network: Trained, pictures: Sequence[Picture], block: int = -1, label: Optional[int] = None) -> list[Heat]:
    """Return where every picture speaks for a class, or for the most likely one; see ``gradcam``."""
    model, transform = network.create(), eval_transform(network.input)
    return [gradcam(model, transform(picture)[np.newaxis], block, label)[0] for picture in pictures]


def class_number(text: str, network: Trained) -> int:
    """Return the class that a user means by a name of the card or by a number.

    Raises:
        UserError: there is no such class, or several of that name.
    """
    names, count = network.classes or (), network.num_classes
    same = [number for number, name in enumerate(names) if name == text]
    if len(same) == 1:
        return same[0]
    if same:
        raise UserError(f"{len(same)} classes are named {shown(text)}; give the number: {', '.join(map(str, same))}")
    if text.isdecimal() and int(text) < count:
        return int(text)
    if len(names) > NAMES or not names:
        raise UserError(f"unknown class {shown(text)}; want a number from 0 to {count - 1}, or a name of the card")
    raise unknown("class", text, names)


def spread(heat: np.ndarray, spec: InputSpec, stride: int, width: int, height: int) -> np.ndarray:
    """Return heat (rows, columns) as the pixels of the picture have it, bilinearly, 0 where the network sees nothing.

    Args:
        spec: which part of the picture the network sees, see ``transforms.eval_box``.
        stride: pixels of the network's input that a pixel of the heat stands for.
        width, height: of the picture.

    Returns:
        float64 (height, width).
    """
    left, top, right, bottom = eval_box(spec, width, height)
    return (
        _stretch(heat.shape[0], height, top, bottom, spec.size, stride)
        @ heat
        @ (_stretch(heat.shape[1], width, left, right, spec.size, stride).T)
    )


def _stretch(cells: int, pixels: int, start: float, end: float, size: int, stride: int) -> np.ndarray:
    """Return the matrix (pixels, cells) that interpolates the cells of one axis at the middles of the pixels.

    The cells cover the pixels from ``start`` on, and end where the last whole patch does. Beyond the middles of the
    first and the last of them, these go on.
    """
    end = start + (end - start) * cells * stride / size
    middles = np.arange(pixels) + 0.5
    at = (middles - start) / (end - start) * cells - 0.5
    matrix = np.stack([np.interp(at, np.arange(cells), row) for row in np.eye(cells)], axis=1)
    return matrix * ((middles > start) & (middles < end))[:, np.newaxis]


def overlay(picture: Picture, heat: np.ndarray) -> np.ndarray:
    """Return a picture in grey with the heat of its pixels on it as colour, the more of it the hotter, uint8 (H, W, 3).

    Args:
        heat: (H, W), from 0 on; the largest gets the brightest colour.
    """
    import matplotlib

    share = heat / (heat.max() or 1)
    colour = matplotlib.colormaps[COLOURS](share)[..., :3] * 255
    cover = COVER * share[..., np.newaxis]
    grey = np.asarray(picture) @ GREY
    return (grey[..., np.newaxis] * (1 - cover) + colour * cover + 0.5).astype(np.uint8)


def describe(network: Trained, names: Sequence[str], block: int, found: Sequence[Heat]) -> dict[str, Any]:
    """Return what ``look`` found, as JSON can write it.

    Of every picture there are the ``class`` looked for and the ``predicted`` one, each with number, name, probability
    and logit; its ``heat``, row by row; the share of the map that is ``hot``, above half of the largest; and where
    in the map, in shares of its width and height, the largest is ``hottest``.
    """
    shape = variant(network.name)
    return {
        "model": network.name,
        "block": block % shape.depth,
        "stride": shape.patch_size,
        "map": list(found[0].values.shape),
        "pictures": [
            {
                "picture": name,
                "class": _class(network, heat, heat.label),
                "predicted": _class(network, heat, int(heat.logits.argmax())),
                "largest": float(heat.values.max()),
                "hot": float((heat.values > heat.values.max() / 2).mean()),
                "hottest": _hottest(heat.values),
                "heat": heat.values.tolist(),
            }
            for name, heat in zip(names, found)
        ],
    }


def _class(network: Trained, heat: Heat, label: int) -> dict[str, Any]:
    name = network.classes[label] if network.classes else f"class {label}"
    facts = {"probability": float(heat.probabilities[label]), "logit": float(heat.logits[label])}
    return {"number": label, "name": name, **facts}


def _hottest(values: np.ndarray) -> Optional[list[float]]:
    """Return where the largest is, from the left and from the top in shares of the map; None where there is none."""
    if not values.max() > 0:
        return None
    row, column = np.unravel_index(values.argmax(), values.shape)
    return [(column + 0.5) / values.shape[1], (row + 0.5) / values.shape[0]]


def table(facts: dict[str, Any]) -> str:
    """Return what ``describe`` found as a text of some lines."""
    rows, columns = facts["map"]
    names = [_short(row["picture"]) for row in facts["pictures"]]
    width = max(map(len, ["picture", *names])) + 2
    lines = [
        f"{facts['model']}, block {facts['block']}, maps of {columns} x {rows}",
        f"{'picture':{width}}{'probability':>11}{'logit':>8}{'hot':>8}{'hottest at':>18}  class",
    ]
    for name, row in zip(names, facts["pictures"]):
        wanted, predicted = row["class"], row["predicted"]
        where = "-"
        if row["hottest"]:
            where = "{:.0f} % x {:.0f} %".format(*(100 * share for share in row["hottest"]))
        also = "" if wanted["number"] == predicted["number"] else f" (predicted: {_said(predicted)})"
        figures = f"{100 * wanted['probability']:9.2f} %{wanted['logit']:8.2f}{100 * row['hot']:6.1f} %"
        lines.append(f"{name:{width}}{figures}{where:>18}  {wanted['name']}{also}")
    return "\n".join(lines)


def _short(path: str) -> str:
    """Return the name of a file with the folder it is in, which may be that of a class."""
    return brief("/".join(Path(path).parts[-2:]))


def _said(judged: dict[str, Any]) -> str:
    return f"{judged['name']} {100 * judged['probability']:.1f} %"


def check(pictures: Sequence[Any]) -> None:
    """Raise a UserError where there are more pictures than a figure can show."""
    if len(pictures) > MOST:
        raise UserError(f"a figure shows up to {MOST} pictures, not {len(pictures)}; draw fewer of them at a time")


def draw(network: Trained, pictures: Sequence[Picture], facts: dict[str, Any], path: PathLike) -> None:
    """Draw every picture, with a frame around what the network sees, beside itself with the heat on it, at its size.

    Raises:
        UserError: the suffix is of no kind that can be drawn, or the file cannot be written.
    """
    from matplotlib.patches import Rectangle

    pairs = min(len(pictures), 1 if len(pictures) == 1 else 2 if len(pictures) < 5 else 3)
    rows = math.ceil(len(pictures) / pairs)
    sizes = np.array([dimensions(picture) for picture in pictures])
    side = min(max(sizes.max() / 120, 2), 8 / pairs)  # inches; up to a limit, a pixel of a picture is about one here
    wide, high = side * (sizes / sizes.max(axis=1, keepdims=True)).max(axis=0)
    figure = figures.create(2 * wide * pairs + 0.5, (high + 0.6) * rows)
    grid = figure.subplots(rows, 2 * pairs, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for i, (picture, row) in enumerate(zip(pictures, facts["pictures"])):
        picture = _reduced(picture)
        width, height = size = dimensions(picture)
        left, top, right, bottom = eval_box(network.input, *size)
        plain, hot = grid.reshape(-1, 2)[i]
        plain.imshow(picture, extent=(0, width, height, 0))
        for colour, line in (("black", 3), ("white", 1)) if (left, top, right, bottom) != (0, 0, *size) else ():
            frame = {"fill": False, "edgecolor": colour, "linewidth": line}
            plain.add_patch(Rectangle((left, top), right - left, bottom - top, **frame))
        heat = spread(np.array(row["heat"]), network.input, facts["stride"], *size)
        hot.imshow(overlay(picture, heat), extent=(0, width, height, 0))
        _title(plain, [_short(row["picture"])])
        lines = [_said(row["class"])]
        if row["class"]["number"] != row["predicted"]["number"]:
            lines.append(f"(predicted: {_said(row['predicted'])})")
        if row["hottest"] is None:
            lines.append("nothing speaks for it")
        _title(hot, lines)
    figures.save(figure, path)


def _title(axes: Any, lines: Sequence[str]) -> None:
    """Write lines above a picture, long ones broken, and a dollar as a dollar."""
    axes.set_title("\n".join(textwrap.fill(line, 34) for line in lines), fontsize="small", parse_math=False)


def _reduced(picture: Picture) -> Picture:
    """Return a picture of no more pixels than a figure shows."""
    if max(dimensions(picture)) <= LARGEST:
        return picture
    small = Image.fromarray(np.asarray(picture))
    small.thumbnail((LARGEST, LARGEST))
    return small
