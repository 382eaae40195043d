"""What shifted, scaled and turned pictures change: the inductive biases of a network, measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Optional

import numpy as np
import paddle
from paddle import nn

from .. import checkpoint, figures, zoo
from ..errors import UserError, unknown
from ..files import PathLike
from ..loader import evenly
from ..model import ConvMixer
from ..progress import Progress
from . import maps, receptive_field

BATCH = 64  # pictures at a time
EQUIVARIANCE = 16  # pictures for it: their maps are compared position by position
SCALES = tuple(2 ** (i / 4) for i in range(-4, 5))
ANGLES = tuple(range(0, 181, 15))  # degrees, counter-clockwise
SHIFTS = 10  # steps up to a quarter of a picture
MOVES = {"shift": "pixels", "scale": "times", "rotation": "degrees"}
STILL = {"shift": 0, "scale": 1, "rotation": 0}  # leaves a picture as it is
OTHERS = ("resnet", "resnext", "wide_resnet")  # what networks of paddle.vision.models are called that can be compared


@dataclasses.dataclass(frozen=True)
class Network:
    """A network whose last map is averaged over its positions and goes through a linear head.

    Args:
        trained: whether its classes mean anything.
        stride: pixels of the picture from one position of the last map to the next.
        reach: pixels that the field of a position goes beyond its own ``stride`` pixels, at most, to any side.
        features: (N, 3, H, W) to the last map, (N, C, H // stride, W // stride), in evaluation.
        head: (N, C) to logits.
        classes: how many it tells apart.
    """

    name: str
    trained: bool
    stride: int
    reach: int
    features: Callable[[paddle.Tensor], paddle.Tensor]
    head: Callable[[paddle.Tensor], paddle.Tensor]
    classes: Optional[int] = None

    def maps(self, images: np.ndarray) -> np.ndarray:
        """Return the last maps of pictures, float32, or a UserError where they are no numbers."""
        with paddle.no_grad():
            parts = [self.features(paddle.to_tensor(images[i : i + BATCH])) for i in range(0, len(images), BATCH)]
            return maps.finite("the last layer", paddle.concat(parts).numpy())

    def classify(self, features: np.ndarray) -> np.ndarray:
        """Return the class of averaged maps (N, C), int64 (N,)."""
        with paddle.no_grad():
            return self.head(paddle.to_tensor(features)).argmax(-1).numpy()


def of_convmixer(name: str, model: ConvMixer, trained: bool = True) -> Network:
    """Return a ConvMixer as what is measured here; it goes into evaluation.

    Raises:
        UserError: it is a variant of ConvMixer.
    """
    model.eval()
    reach = receptive_field.theoretical(model)[-1][1]
    return Network(name, trained, model.patch_size, reach, model.forward_features, model.head, model.num_classes)


def untrained(name: str, images: np.ndarray) -> Network:
    """Return a ConvMixer of the zoo with random weights, see ``_settle``."""
    model = _drawn(lambda: zoo.create_model(name))
    _settle(model, images)
    return of_convmixer(f"{name}, untrained", model, trained=False)


def of_paddle(name: str, images: np.ndarray, weights: Optional[PathLike] = None) -> Network:
    """Return a ResNet of ``paddle.vision.models``, made for ImageNet as it is there.

    Args:
        weights: its state as ``paddle.save`` writes it, or in safetensors with Paddle's names, which says how many
            classes there are; None draws random weights, see ``_settle``.

    Raises:
        UserError: there is no such network, or the weights cannot be read or are another network's.
    """
    known = [n for n in paddle.vision.models.__all__ if n.startswith(OTHERS)]
    if name not in known:
        raise unknown("network to compare with", name, known)
    make = getattr(paddle.vision.models, name)
    if weights is None:
        model = _drawn(make)
        _settle(model, images)
    else:
        model = _filled(make, name, weights)
    model.eval()
    kept: list[paddle.Tensor] = []
    model.layer4.register_forward_post_hook(lambda layer, inputs, output: kept.append(output))

    def features(x: paddle.Tensor) -> paddle.Tensor:
        model(x)
        return kept.pop()

    name, classes = name if weights else f"{name}, untrained", model.fc.weight.shape[1]
    return Network(name, weights is not None, *_field(model), features, model.fc, classes)


def _field(model: nn.Layer) -> tuple[int, int]:
    """Return stride and reach of the last map of a ResNet, see ``Network``."""
    blocks = [block for part in (model.layer1, model.layer2, model.layer3, model.layer4) for block in part]
    convolutions = [conv for block in blocks for name, conv in block.named_children() if name.startswith("conv")]
    stride, reach = 1, 0
    for kernel, step in [(7, 2), (3, 2), *((conv._kernel_size[0], conv._stride[0]) for conv in convolutions)]:
        reach += kernel // 2 * stride  # the first two are the first convolution and the pooling
        stride *= step
    return stride, reach


def _filled(make: Callable[..., nn.Layer], name: str, weights: PathLike) -> nn.Layer:
    state = checkpoint.read(weights)
    bias = state.get("fc.bias")
    model = make(num_classes=bias.size) if bias is not None else make()
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if {key: tuple(value.shape) for key, value in state.items()} != wanted:
        raise UserError(f"{weights} is not a {name} as Paddle saves it")
    model.set_state_dict({key: np.asarray(value, np.float32) for key, value in state.items()})
    return model


def _drawn(make: Callable[[], nn.Layer]) -> nn.Layer:
    """Make a network whose random weights are the same every time, and leave the process's random state alone."""
    state = paddle.get_rng_state()
    paddle.seed(0)
    try:
        return make()
    finally:
        paddle.set_rng_state(state)


def _settle(model: nn.Layer, images: np.ndarray) -> None:
    """Give the batch norms of an untrained network the statistics of pictures.

    With those they are made with, the maps of a deep random network are all but constant, and any two alike.
    """
    norms = [layer for layer in model.sublayers() if isinstance(layer, nn.BatchNorm2D)]
    momenta = [norm._momentum for norm in norms]
    for norm in norms:
        norm._momentum = 0.0  # of what the statistics were
    model.train()
    with paddle.no_grad():
        model(paddle.to_tensor(images[evenly(len(images), BATCH)]))
    for norm, momentum in zip(norms, momenta):
        norm._momentum = momentum


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean cosine of rows of features (N, C), less the mean row of ``a``, which any two have in common.

    1: the same but for their length; 0: no more alike than the features of two pictures, or positions, on average.
    """
    centre = a.mean(0, dtype=np.float64)
    a, b = a - centre, b - centre
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(maps.divide((a * b).sum(1), norms).mean())


def equivariance(network: Network, images: np.ndarray, shifts: Sequence[int]) -> list[float]:
    """Return how alike the maps of shifted pictures and the shifted maps of the pictures are, see ``similarity``.

    Pictures are extended to strips by mirroring, windows of which lie ever further to the right. A shift that is no
    multiple of the stride moves the map by a fraction of a position: there, it is interpolated linearly.
    As many positions are compared as a picture has, none of which sees the left or right edge of a window. Above and
    below, the edges are the same for all windows, and take no part in a difference.

    Args:
        images: float32 (N, 3, H, W).
        shifts: pixels, 0 or more.
    """
    stride, (height, width) = network.stride, images.shape[2:]
    count, margin, further = (math.ceil(pixels / stride) for pixels in (width, network.reach, max(shifts)))
    window = (margin + count + further + margin) * stride
    strip = maps.mirrored(images, height, window + max(shifts))
    base = network.maps(strip[..., :window])
    found = []
    for shift in shifts:
        moved = network.maps(strip[..., shift : shift + window])[..., margin : margin + count]
        whole, part = divmod(shift, stride)
        start = margin + whole
        wanted = base[..., start : start + count]
        if part:
            after = base[..., start + 1 : start + 1 + count]
            wanted = wanted + part / stride * (after - wanted)
        found.append(similarity(_rows(wanted), _rows(moved)))
    return found


def _rows(features: np.ndarray) -> np.ndarray:
    return np.moveaxis(features, 1, -1).reshape(-1, features.shape[1])


def moved(images: np.ndarray, move: str, amount: float) -> np.ndarray:
    """Return pictures (N, C, H, W) shifted, scaled or turned about their middle; mirrored edges fill what is new.

    Bilinear interpolation; whole shifts, the scale 1 and quarter turns of square pictures need none.

    Args:
        move: ``shift`` moves what is seen to the left by so many pixels, ``scale`` makes it so many times larger,
            ``rotation`` turns it counter-clockwise by so many degrees.
    """
    height, width = images.shape[2:]
    if move == "shift":
        matrix = [[1, 0, 2 * amount / width], [0, 1, 0]]
    elif move == "scale":
        matrix = [[1 / amount, 0, 0], [0, 1 / amount, 0]]
    elif move == "rotation":
        cosine, sine = math.cos(math.radians(amount)), math.sin(math.radians(amount))
        matrix = [[cosine, -sine * height / width, 0], [sine * width / height, cosine, 0]]
    else:
        raise unknown("move", move, MOVES)
    x = paddle.to_tensor(images)
    matrices = paddle.to_tensor([matrix], "float32").tile([len(images), 1, 1])
    grid = nn.functional.affine_grid(matrices, x.shape, align_corners=False)
    return nn.functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False).numpy()


def amounts(size: int) -> dict[str, list[float]]:
    """Return what pictures of ``size`` pixels are moved by: shifts, scales and rotations."""
    shifts = sorted({round(i) for i in np.linspace(0, size / 4, SHIFTS + 1)})
    return {"shift": shifts, "scale": list(SCALES), "rotation": list(ANGLES)}


def describe(networks: Sequence[Network], images: np.ndarray, labels: Optional[np.ndarray] = None) -> dict[str, Any]:
    """Measure networks on moved pictures, as JSON can write it.

    Args:
        images: float32 (N, 3, S, S), two or more, normalised as the first network takes them; all get them so.
        labels: int64 (N,), where they are known: numbers of the first network's classes.

    Returns:
        ``at``: what the pictures are moved by, and the shifts of ``equivariance``, a whole period of the network with
        the longest stride. Of each of ``networks``: ``equivariance``, see the function; for every move a curve of
        ``similarity`` of the averaged last map to that of the picture as it is, and where the network is trained of
        ``agreement``, the share of pictures that keep their class, and of ``accuracy``, where labels are known and the
        network has as many classes as the first: its numbers are taken to mean the same; and ``means``, the means of
        these curves over all that moves a picture.

    Raises:
        UserError: there are fewer than two pictures.
    """
    if len(images) < 2:
        raise UserError(
            "one picture is too few: features are compared less their mean over the pictures; give two or more"
        )
    at = amounts(images.shape[-1])
    shifts = list(range(max(8, *(network.stride for network in networks)) + 1))
    found = []
    with Progress(len(networks) * sum(map(len, at.values())) * len(images), "robustness") as progress:
        for network in networks:
            own = labels if network.classes == networks[0].classes else None
            found.append(
                {
                    "name": network.name,
                    "trained": network.trained,
                    "classes": network.classes,
                    "stride": network.stride,
                    "equivariance": equivariance(network, images[evenly(len(images), EQUIVARIANCE)], shifts),
                }
            )
            for move in at:
                points = []
                for point in _curve(network, images, own, move, at[move]):
                    points.append(point)
                    progress.advance(len(images))
                found[-1][move] = {key: [point[key] for point in points] for key in points[0]}
            found[-1]["means"] = _means(found[-1], at)
    return {"pictures": len(images), "size": images.shape[-1], "at": {"equivariance": shifts, **at}, "networks": found}


def _means(network: dict[str, Any], at: dict[str, list[float]]) -> dict[str, Any]:
    means: dict[str, Any] = {"equivariance": float(np.mean(network["equivariance"][1:]))}
    for move, still in STILL.items():
        moves = np.array(at[move]) != still
        means[move] = {key: float(np.mean(np.array(values)[moves])) for key, values in network[move].items()}
    return means


def _curve(
    network: Network, images: np.ndarray, labels: Optional[np.ndarray], move: str, at: Sequence[float]
) -> Iterator[dict[str, float]]:
    base = network.maps(images).mean((2, 3))
    classes = network.classify(base)
    for amount in at:
        features = network.maps(moved(images, move, amount)).mean((2, 3))
        point = {"similarity": similarity(base, features)}
        if network.trained:
            now = network.classify(features)
            point["agreement"] = float((now == classes).mean())
            if labels is not None:
                point["accuracy"] = float((now == labels).mean())
        yield point


def table(facts: dict[str, Any]) -> str:
    """Return what ``describe`` found as a text of some lines."""
    names = [network["name"] for network in facts["networks"]]
    width = max(map(len, names))
    lines = [f"{facts['pictures']} pictures of {facts['size']} pixels"]
    lines.append(f"all networks get them normalised as {names[0]} takes them")
    first, *others = facts["networks"]
    for network in others:
        if network["trained"] and first["classes"] != network["classes"] and "accuracy" in first["shift"]:
            lines.append(
                f"no accuracy of {network['name']}: it has {network['classes']} classes, and the labels are those of "
                f"the {first['classes']} of {first['name']}"
            )

    def block(title: str, at: Sequence[float], chosen: Sequence[int], rows: dict[str, Sequence[float]]) -> None:
        lines.append("")
        lines.append(f"{title:{width + 15}}" + "".join(f"{at[i]:8.3g}" for i in chosen))
        for name, values in rows.items():
            lines.append(f"{name:{width + 15}}" + "".join(f"{_figure(name, values[i]):>8}" for i in chosen))

    rows = {network["name"]: network["equivariance"] for network in facts["networks"]}
    shifts = facts["at"]["equivariance"]
    block("equivariance, pixels", shifts, sorted({*range(5), *shifts[8::8], shifts[-1]}), rows)
    for move, unit in MOVES.items():
        rows = {
            _row(network["name"], key): values for network in facts["networks"] for key, values in network[move].items()
        }
        at = facts["at"][move]
        block(f"{move}, {unit}", at, range(0, len(at), math.ceil(len(at) / 9)), rows)
    lines += ["", f"{'mean of all moves':{width + 15}}" + "".join(f"{kind:>14}" for kind in ("equivariance", *MOVES))]
    for network in facts["networks"]:
        means = network["means"]
        for key in means["shift"]:
            row = _row(network["name"], key)
            equivariance = f"{means['equivariance']:14.3f}" if key == "similarity" else " " * 14
            values = "".join(f"{_figure(row, means[move][key]):>14}" for move in MOVES)
            lines.append(f"{row:{width + 15}}{equivariance}{values}")
    return "\n".join(lines)


def _row(network: str, key: str) -> str:
    return f"{network}: {key}" + (", %" if key in ("agreement", "accuracy") else "")


def _figure(row: str, value: float) -> str:
    return f"{100 * value:.2f}" if row.endswith(", %") else f"{value:.3f}"


def draw(facts: dict[str, Any], path: PathLike) -> None:
    """Draw what ``describe`` found: a panel for equivariance, and one for every move.

    Raises:
        UserError: the suffix is of no kind that can be drawn, or the file cannot be written.
    """
    figure = figures.create(11, 7)
    panels = figure.subplots(2, 2).ravel()
    for panel in panels:
        panel.set_ylim(min(0.0, _lowest(facts)) - 0.02, 1.03)
        panel.grid(alpha=0.3)
    for i, network in enumerate(facts["networks"]):
        colour, shifts = f"C{i}", facts["at"]["equivariance"]
        panels[0].plot(
            shifts, network["equivariance"], f"{colour}.-", label=f"{network['name']}: stride {network['stride']}"
        )
        for panel, move in zip(panels[1:], MOVES):
            for key, style in (("similarity", "-"), ("agreement", "--"), ("accuracy", ":")):
                if key in network[move]:
                    panel.plot(
                        facts["at"][move], network[move][key], f"{colour}{style}", label=f"{network['name']}: {key}"
                    )
    panels[0].set(title="map of the shifted picture against shifted map", xlabel="shift, pixels", ylabel="similarity")
    panels[0].legend(fontsize="small", loc="lower left")
    for panel, (move, unit) in zip(panels[1:], MOVES.items()):
        panel.set(title=f"{move} of the picture", xlabel=f"{move}, {unit}")
    panels[2].set_xscale("log", base=2)
    panels[2].set_xticks([0.5, 0.7, 1, 1.4, 2], ["0.5", "0.7", "1", "1.4", "2"])
    panels[3].set_xticks(range(0, 181, 45))
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    figures.save(figure, path)


def _lowest(facts: dict[str, Any]) -> float:
    return min(
        min(values)
        for network in facts["networks"]
        for values in (network["equivariance"], *(v for move in MOVES for v in network[move].values()))
    )
