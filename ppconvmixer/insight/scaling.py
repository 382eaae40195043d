"""How the cost of a ConvMixer grows around its shape, and what its separable convolutions save."""

from __future__ import annotations

import dataclasses
from typing import Any

from paddle import nn

from .. import figures
from ..errors import UserError
from ..files import PathLike
from ..zoo import Variant
from .complexity import COLOURS, count, weights
from .networks import Network

SCALED = ("dim", "depth", "patch_size", "kernel_size")
_FACTORS = [quarters / 4 for quarters in range(1, 11)]  # of width and depth
_QUANTITIES = {
    "parameters": ("parameters", "M", 1e6),
    "macs": ("MACs", "G", 1e9),
    "activations": ("activations", "M", 1e6),
}
_COLOURS = {**COLOURS, "stem": COLOURS["convolution"], "head": COLOURS["linear"]}
_WORDS = {"dim": "width", "depth": "depth", "patch_size": "patch size", "kernel_size": "kernel size"}


def steps(shape: Variant, along: str) -> list[int]:
    """Return the values of ``along`` to look at around a shape, the shape's own among them, in rising order.

    Width and depth go from a quarter to two and a half times theirs, patches through the sizes from half to four times
    theirs that leave no pixels of the input over, kernels from 1 or 2 to twice theirs, even or odd as it is.
    """
    here = getattr(shape, along)
    if along == "kernel_size":
        return list(range(2 - here % 2, 2 * here + 2, 2))
    if along == "patch_size":
        side = shape.input.size
        return sorted({here, *(p for p in range(1, side + 1) if side % p == 0 and here / 2 <= p <= 4 * here)})
    return sorted({max(1, round(here * factor)) for factor in _FACTORS})


def describe(network: Network, along: str) -> dict[str, Any]:
    """Return the cost of the networks that differ from this one in ``along`` alone, as JSON can write it.

    All figures are of one picture and by the closed formulas of ``zoo.Variant.parts``.

    Args:
        along: one of ``SCALED``.

    Returns:
        ``points`` with a ``value``, the totals, and the same by ``parts``; ``here`` is the network's own value.

    Raises:
        UserError: it is no ConvMixer.
    """
    shape = _shape(network)
    points = []
    for value in steps(shape, along):
        other = dataclasses.replace(shape, **{along: value})
        points.append({"value": value, **other.costs(), "parts": other.parts()})
    return {
        **{"model": network.name, "size": network.size, "along": along},
        **{"here": getattr(shape, along), "points": points},
    }


def table(facts: dict[str, Any]) -> str:
    """Return what ``describe`` found as a text of some lines; x is the factor to the network itself."""
    word = _WORDS[facts["along"]]
    here = next(point for point in facts["points"] if point["value"] == facts["here"])
    lines = [
        f"{facts['model']} at {facts['size']} x {facts['size']} in other {word}s",
        f"{word:>12}" + "".join(f"{name:>24}" for name, *_ in _QUANTITIES.values()) + f"{'depthwise':>12}",
    ]
    for point in facts["points"]:
        cells = (f"{point[key]:,} x {point[key] / here[key]:5.2f}" for key in _QUANTITIES)
        share = 100 * point["parts"]["depthwise"]["macs"] / point["macs"]
        mark = "  <" if point is here else ""
        lines.append(f"{point['value']:12}" + "".join(f"{cell:>24}" for cell in cells) + f"{share:10.2f} %{mark}")
    return "\n".join([*lines, "depthwise: its share of the MACs; < the network itself"])


def draw(facts: dict[str, Any], path: PathLike) -> None:
    """Draw how parameters, MACs and activations grow, the parts of the network on top of each other.

    Raises:
        UserError: the file cannot be written.
    """
    values = [point["value"] for point in facts["points"]]
    here = next(point for point in facts["points"] if point["value"] == facts["here"])
    shown = list(here["parts"])
    figure = figures.create(12, 4)
    for axes, (key, (title, name, unit)) in zip(figure.subplots(1, 3), _QUANTITIES.items()):
        heights = [[point["parts"][part][key] / unit for point in facts["points"]] for part in shown]
        axes.stackplot(values, heights, labels=shown, colors=[_COLOURS[part] for part in shown], alpha=0.85)
        axes.plot(values, [point[key] / unit for point in facts["points"]], ".", color="black", markersize=4)
        falls = facts["points"][0][key] > facts["points"][-1][key]
        right = falls or facts["here"] - values[0] < 0.2 * (values[-1] - values[0])  # where there is room for the label
        axes.axvline(facts["here"], color="black", linestyle=":", linewidth=1)
        axes.plot(facts["here"], here[key] / unit, "o", color="black", markersize=6)
        axes.annotate(
            f"{here[key] / unit:.3g} {name}", (facts["here"], here[key] / unit),
            xytext=(6 if right else -6, 6), textcoords="offset points", ha="left" if right else "right",
            fontweight="bold",
        )  # fmt: skip
        axes.set(xlabel=_WORDS[facts["along"]], title=f"{title}, {name}")
        axes.set(xlim=(values[0], values[-1]), ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", frameon=False)
    figure.suptitle(f"{facts['model']} at {facts['size']} x {facts['size']} pixels in other {_WORDS[facts['along']]}s")
    figures.save(figure, path)


def separate(network: Network) -> dict[str, Any]:
    """Compare a depthwise and pointwise convolution with the standard one in their place, as JSON can write it.

    For width d and kernel k the pair takes k^2 d + d^2 products for every patch, a standard convolution k^2 d^2: their
    ratio is k^2 d / (k^2 + d) (Howard et al. 2017, "MobileNets", section 3.1). Both are also made and counted.

    Raises:
        UserError: it is no ConvMixer, or the standard convolution is too large to be made.
    """
    shape = _shape(network)
    d, k = shape.dim, shape.kernel_size
    if k * k * d * d > 4e8:
        raise UserError(
            f"a standard {k} x {k} convolution of {d} channels has {k * k * d * d:,} weights; too many here"
        )
    pair = nn.Sequential(nn.Conv2D(d, d, k, groups=d, padding="SAME"), nn.Conv2D(d, d, 1))
    standard = nn.Sequential(nn.Conv2D(d, d, k, padding="SAME"))
    patches = (network.size // shape.patch_size) ** 2
    found = {}
    for name, layers in (("separable", pair), ("standard", standard)):
        macs = sum(layer.macs for layer in count(layers, 1))  # one pixel of a map costs as much as any other
        found[name] = {"parameters": weights(layers)[0], "macs": patches * macs}
    blocks, rest = shape.depth, sum(shape.parts()[part]["macs"] for part in ("stem", "head"))
    return {
        **{"model": network.name, "size": network.size, "dim": d, "kernel_size": k, "depth": blocks, **found},
        "ratio": {
            "counted": found["standard"]["macs"] / found["separable"]["macs"],
            "formula": k * k * d / (k * k + d),
        },
        "network": {name: blocks * counts["macs"] + rest for name, counts in found.items()},
    }


def separable_table(facts: dict[str, Any]) -> str:
    """Return what ``separate`` found as a text of some lines."""
    d, k = facts["dim"], facts["kernel_size"]
    lines = [
        f"{facts['model']} at {facts['size']} x {facts['size']}: its {k} x {k} depthwise and pointwise convolution",
        f"{'':12}{'parameters':>16}{'MACs':>20}{'MACs of the network':>24}",
    ]
    for name in ("separable", "standard"):
        counts = facts[name]
        lines.append(f"{name:12}{counts['parameters']:16,}{counts['macs']:20,}{facts['network'][name]:24,}")
    ratio = facts["ratio"]
    lines.append(f"ratio of the MACs: {ratio['counted']:.4f} counted; k^2 d / (k^2 + d) = {ratio['formula']:.4f}")
    return "\n".join([*lines, f"k = {k}, d = {d}; at most k^2 = {k * k}, for many channels"])


def draw_separable(facts: dict[str, Any], path: PathLike) -> None:
    """Draw k^2 d / (k^2 + d) over the width for some kernels, and where the network is.

    Raises:
        UserError: the file cannot be written.
    """
    import matplotlib
    import numpy as np

    d, k = facts["dim"], facts["kernel_size"]
    kernels = sorted({3, 5, 7, 9, k})
    widths = np.geomspace(8, max(4096, 2 * d), 200)
    figure = figures.create(8, 5)
    axes = figure.add_subplot()
    for i, kernel in enumerate(kernels):
        colour = matplotlib.colormaps["viridis"](0.85 * i / max(len(kernels) - 1, 1))
        axes.plot(widths, kernel**2 * widths / (kernel**2 + widths), color=colour, linewidth=3 if kernel == k else 1.5)
        axes.axhline(kernel**2, color=colour, linestyle=":", linewidth=1)
        axes.text(widths[-1], kernel**2, f" {kernel} x {kernel}", color=colour, va="center")
    axes.plot(d, facts["ratio"]["counted"], "o", color="black", zorder=3)
    axes.annotate(
        f"{facts['model']}\ncounted: {facts['ratio']['counted']:.1f}", (d, facts["ratio"]["counted"]),
        xytext=(0, -10), textcoords="offset points", ha="center", va="top",
    )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
    axes.set(xlabel="width d", ylabel="times the MACs", xlim=(widths[0], widths[-1]), ylim=(0, None))
    axes.set_title("A standard convolution in the place of depthwise and pointwise: k²d / (k² + d), and k² (dotted)")
    axes.spines[["top", "right"]].set_visible(False)
    figures.save(figure, path)


def _shape(network: Network) -> Variant:
    if network.shape is None:
        raise UserError(f"{network.name} is no ConvMixer; name one of ppconvmixer models, or spell one out")
    return network.shape
