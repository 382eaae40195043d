"""What a network costs, layer by layer: parameters, multiply-accumulates, activations, bytes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import paddle
from paddle import nn

from .. import figures
from ..errors import UserError, said
from ..files import PathLike
from .maps import evaluating
from .networks import Network

BYTES = 4  # of a number in float32
COLOURS = {  # of the kinds, in the order of the legend
    **{"convolution": "#7f7f7f", "grouped": "#17becf", "depthwise": "#d62728", "pointwise": "#1f77b4"},
    **{"linear": "#9467bd", "norm": "#2ca02c", "activation": "#ff7f0e", "pooling": "#bcbd22"},
}
_QUANTITIES = {"parameters": "parameters", "macs": "MACs", "activations": "activations"}


@dataclasses.dataclass
class Layer:
    """A layer and what one picture costs in it.

    Args:
        kind: one of ``COLOURS``.
        shape: of its result, without the batch.
        parameters: trainable ones.
        statistics: running means and variances of a norm, which are no parameters but take memory.
        macs: multiply-accumulates of a convolution or a linear layer; a bias, a norm and an activation have none.
            Products with padding count, as everywhere in the field.
        activations: numbers in its results.
        held: numbers in its input and result together, the most of any of its calls.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    statistics: int
    macs: int = 0
    activations: int = 0
    held: int = 0

    def bytes(self, batch_size: int = 1) -> int:
        """Return the memory of its weights and, for a batch, its results, in float32."""
        return BYTES * (self.parameters + self.statistics + batch_size * self.activations)


def count(network: nn.Layer, size: int) -> list[Layer]:
    """Send one picture through a network and count in every layer that it passes, in the order of the passing.

    Seen are convolutions, linear layers, norms, activations and poolings. What a network computes by functions in
    between (sums, concatenations, some activations of ``paddle.vision.models``) has no layer and is not counted; none
    of it multiplies by weights. A layer that is called twice counts twice, but its parameters once.

    Raises:
        UserError: it does not take pictures of this size, or has weights in a layer of another kind.
    """
    found: dict[str, Layer] = {}
    hooks = []
    for name, layer in network.named_sublayers():
        if not layer.sublayers():
            kind = _kind(layer)
            if kind in COLOURS:
                hooks.append(layer.register_forward_post_hook(_counter(found, name, kind)))
            elif layer.parameters():
                raise UserError(f"cannot count what the layer {name} does; it is a {type(layer).__name__}")
    try:
        with evaluating(network), paddle.no_grad():
            network(paddle.zeros([1, _channels(network), size, size]))
    except UserError:
        raise
    except Exception as error:  # Paddle's operators have exceptions of several kinds
        raise UserError(f"{type(network).__name__} does not take {size} x {size} pixels ({said(error)})") from error
    finally:
        for hook in hooks:
            hook.remove()
    return list(found.values())


def _counter(found: dict[str, Layer], name: str, kind: str) -> Any:
    def hook(layer: nn.Layer, inputs: tuple[paddle.Tensor, ...], result: paddle.Tensor) -> None:
        size, shape = math.prod(result.shape), tuple(result.shape[1:])
        if name not in found:
            found[name] = Layer(name, kind, shape, *weights(layer))
        counted = found[name]
        counted.macs += size * _products(layer)
        counted.activations += size
        counted.held = max(counted.held, size + sum(math.prod(x.shape) for x in inputs))

    return hook


def weights(layer: nn.Layer) -> tuple[int, int]:
    """Return the numbers of trainable parameters and of running statistics, which Paddle counts among those."""
    sizes = {name: math.prod(value.shape) for name, value in layer.named_parameters()}
    statistics = sum(size for name, size in sizes.items() if name.endswith(("_mean", "_variance")))
    return sum(sizes.values()) - statistics, statistics


def _products(layer: nn.Layer) -> int:
    """Return the products that one number of a layer's result takes."""
    if isinstance(layer, nn.Conv2D):
        return math.prod(layer.weight.shape[1:])  # (out, in / groups, height, width)
    return layer.weight.shape[0] if isinstance(layer, nn.Linear) else 0


def _kind(layer: nn.Layer) -> str:
    if isinstance(layer, nn.Conv2D):
        outputs, inputs, height, width = layer.weight.shape
        if height == width == 1 and layer._groups == 1:
            return "pointwise"
        if layer._groups == 1:
            return "convolution"
        return "depthwise" if inputs == 1 else "grouped"
    if isinstance(layer, nn.Linear):
        return "linear"
    return type(layer).__module__.rsplit(".", 1)[-1]  # paddle.nn.layer.norm, .activation, .pooling, .common, ...


def _channels(network: nn.Layer) -> int:
    """Return the channels of a network's input, which are those of its first convolution."""
    first = next(layer for layer in network.sublayers() if isinstance(layer, nn.Conv2D))
    return first.weight.shape[1] * first._groups


def describe(network: Network, batch_size: int = 1) -> dict[str, Any]:
    """Return what a network costs as JSON can write it.

    Args:
        batch_size: pictures at once, for the memory; all other figures are of one picture.

    Returns:
        ``parameters``, ``macs``, ``activations``; ``memory`` in bytes of float32: of the ``weights``, of
        ``all`` results of layers (which training keeps) and of the ``largest`` input and result of a layer (which
        inference layer by layer holds, and beside them what a residual keeps to add); ``layers``; of a ConvMixer the
        totals by ``formula``; and what is ``published``. Of a network that Paddle does not have, the published figures
        alone, and no memory and layers.

    Raises:
        UserError: as ``count``.
    """
    facts = {"model": network.name, "size": network.size, "batch_size": batch_size, "published": network.figures}
    if network.create is None:
        known = {key: round(network.figures[key]) for key in ("parameters", "macs")}
        return {**facts, "counted": False, **known, "layers": []}
    made = network.create()
    layers, (parameters, statistics) = count(made, network.size), weights(made)
    facts |= {"counted": True, "parameters": parameters, **_totals(layers, ("macs", "activations"))}
    facts["memory"] = {
        "weights": BYTES * (parameters + statistics),
        "all": BYTES * batch_size * facts["activations"],
        "largest": BYTES * batch_size * max(layer.held for layer in layers),
    }
    if network.shape:
        facts["formula"] = network.shape.costs()
    facts["layers"] = [{**dataclasses.asdict(layer), "bytes": layer.bytes(batch_size)} for layer in layers]
    return facts


def _totals(layers: Iterable[Layer], keys: Iterable[str]) -> dict[str, int]:
    return {key: sum(getattr(layer, key) for layer in layers) for key in keys}


def by_kind(layers: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Return the sums over the layers of every kind that is there, in the order of ``COLOURS``."""
    sums: dict[str, dict[str, int]] = {}
    for layer in layers:
        kind = sums.setdefault(layer["kind"], dict.fromkeys(("layers", *_QUANTITIES), 0))
        kind["layers"] += 1
        for key in _QUANTITIES:
            kind[key] += layer[key]
    return {kind: sums[kind] for kind in COLOURS if kind in sums}


def table(facts: dict[str, Any], by_layer: bool = False) -> str:
    """Return what ``describe`` found as a text: a line a kind of layers, or a line a layer."""
    side, published = facts["size"], facts["published"]
    lines = [f"{facts['model']} at {side} x {side}: {facts['parameters']:,} parameters, {facts['macs']:,} MACs"]
    if not facts["counted"]:
        return "\n".join([*lines, "Paddle does not have it; these are published figures", *_source(published)])
    lines[0] += f", {facts['activations']:,} activations a picture"
    lines += _by_layer(facts) if by_layer else _by_kind(facts)
    memory = {name: f"{size / 2**20:,.1f} MiB" for name, size in facts["memory"].items()}
    lines.append(
        f"memory in float32, batch {facts['batch_size']}: weights {memory['weights']}; results of all layers "
        f"{memory['all']} (training), largest input and result of a layer {memory['largest']} (inference, which holds "
        "beside them what a residual keeps)"
    )
    if "formula" in facts:
        off = {name: facts[key] - facts["formula"][key] for key, name in _QUANTITIES.items()}
        wrong = ", ".join(f"{name} off by {value:,}" for name, value in off.items() if value)
        lines.append(f"the closed formulas: {wrong or 'the same parameters, MACs and activations'}")
    return "\n".join([*lines, *_source(published)])


def _by_kind(facts: dict[str, Any]) -> list[str]:
    lines = [f"{'kind':14}{'layers':>7}" + "".join(f"{name:>26}" for name in _QUANTITIES.values())]
    for kind, sums in by_kind(facts["layers"]).items():
        cells = (f"{sums[key]:,} {100 * sums[key] / max(facts[key], 1):6.2f} %" for key in _QUANTITIES)
        lines.append(f"{kind:14}{sums['layers']:7}" + "".join(f"{cell:>26}" for cell in cells))
    return lines


def _by_layer(facts: dict[str, Any]) -> list[str]:
    width = max(len(layer["name"]) for layer in facts["layers"]) + 2
    heads = "".join(f"{name:>16}" for name in ("result", *_QUANTITIES.values(), "bytes"))
    lines = [f"{'layer':{width}}{'kind':12}" + heads]
    for layer in facts["layers"]:
        shape = " x ".join(map(str, layer["shape"]))
        cells = "".join(f"{layer[key]:16,}" for key in (*_QUANTITIES, "bytes"))
        lines.append(f"{layer['name']:{width}}{layer['kind']:12}{shape:>16}" + cells)
    return lines


def _source(published: dict[str, Any]) -> list[str]:
    if "top1" not in published:
        return []
    return [f"published: {100 * published['top1']:.2f} % top-1 on {published['data']} ({published['source']})"]


def draw(facts: dict[str, Any], path: PathLike) -> None:
    """Draw where in the network its parameters, MACs and activations are, layer by layer and by kind.

    Raises:
        UserError: of this network only totals are known; or the file cannot be written.
    """
    layers = facts["layers"]
    if not layers:
        raise UserError(f"there are no layers of {facts['model']} to draw; Paddle does not have it")
    kinds = by_kind(layers)
    figure = figures.create(11, 6.5)
    grid = figure.subplots(3, 2, gridspec_kw={"width_ratios": [5, 1]}, sharex="col")
    for (bars, shares), (key, name) in zip(grid, _QUANTITIES.items()):
        values, scale, unit = [layer[key] for layer in layers], *_scale(max(layer[key] for layer in layers))
        heights = [value / scale for value in values]
        colours = [COLOURS[layer["kind"]] for layer in layers]
        bars.bar(range(1, len(layers) + 1), heights, width=1, color=colours, edgecolor="white", linewidth=0.3)
        bars.set_ylabel(f"{name}{f', {unit}' if unit else ''}")
        bars.margins(x=0.01)
        bars.spines[["top", "right"]].set_visible(False)
        bottom = 0.0
        for kind, sums in kinds.items():
            share = 100 * sums[key] / max(facts[key], 1)
            shares.bar(0, share, bottom=bottom, color=COLOURS[kind], width=0.5)
            if share > 7:
                shares.text(0, bottom + share / 2, f"{share:.0f} %", ha="center", va="center", color="white")
            bottom += share
        total, unit = facts[key] / (scale := _scale(facts[key]))[0], scale[1]
        shares.set_title(f"{total:.2f} {unit}".strip(), fontsize="medium")
        shares.set(xlim=(-0.5, 0.5), ylim=(0, 100), xticks=[], yticks=[])
        shares.spines[:].set_visible(False)
    grid[-1][0].set_xlabel("layer, in the order of the way of a picture")
    from matplotlib.patches import Patch

    handles = [Patch(color=COLOURS[kind], label=f"{kind} ({sums['layers']})") for kind, sums in kinds.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(f"{facts['model']} at {facts['size']} x {facts['size']} pixels, one picture")
    figures.save(figure, path)


def _scale(value: float) -> tuple[float, str]:
    """Return a unit in which a number is short, and its name."""
    return next(((10.0**power, name) for power, name in ((9, "G"), (6, "M"), (3, "k")) if value >= 10**power), (1, ""))
