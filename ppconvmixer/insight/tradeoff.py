"""What accuracy costs: networks side by side, each with its published accuracy and where that is published."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .. import figures
from ..errors import UserError
from ..files import PathLike
from .complexity import describe as cost
from .networks import Network

_FAMILIES = {
    **{"convmixer": "#d62728", "resnet": "#1f77b4", "resnext": "#17becf", "mobilenet": "#2ca02c"},
    **{"shufflenet": "#bcbd22", "deit": "#9467bd", "vit": "#e377c2", "convnext": "#ff7f0e"},
}
_OTHER = "#7f7f7f"


def describe(networks: Iterable[Network], batch_size: int = 1) -> list[dict[str, Any]]:
    """Return what ``complexity.describe`` says of every network, without its layers, in the order given.

    Where its accuracy is published, ``per_million_parameters`` and ``per_gmac`` are top-1 in points (hundredths) by
    those.

    Raises:
        UserError: as ``complexity.describe``.
    """
    found = []
    for network in networks:
        facts = cost(network, batch_size)
        del facts["layers"]
        if "top1" in network.figures:
            points = 100 * network.figures["top1"]
            facts["per_million_parameters"] = points / (facts["parameters"] / 1e6)
            facts["per_gmac"] = points / (facts["macs"] / 1e9)
        found.append(facts)
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Return what ``describe`` found as a text, a line a network, and where the accuracies are from."""
    width = max(len(facts["model"]) for facts in found) + 2
    heads = ("size", "params", "GMACs", "top-1", "points/M", "points/GMAC", "source")

    def of(published: dict[str, Any]) -> str:
        return f"{published['data']}: {published['source']}"

    sources = dict.fromkeys(of(facts["published"]) for facts in found if "top1" in facts["published"])
    number = {source: i for i, source in enumerate(sources, 1)}
    lines = [f"{'network':{width}}" + "".join(f"{head:>12}" for head in heads)]
    for facts in found:
        published = facts["published"]
        cells = [f"{facts['size']}", f"{facts['parameters'] / 1e6:.2f}M", f"{facts['macs'] / 1e9:.3f}"]
        if "top1" in published:
            cells += [f"{100 * published['top1']:.2f} %"]
            cells += [
                f"{facts['per_million_parameters']:.2f}",
                f"{facts['per_gmac']:.2f}",
                f"[{number[of(published)]}]",
            ]
        else:
            cells += ["-"] * 3
        line = f"{facts['model']:{width}}" + "".join(f"{cell:>12}" for cell in cells)
        lines.append(line + ("" if facts["counted"] else ", of the size too"))
    return "\n".join([*lines, *(f"[{i}] {source}" for source, i in number.items())])


def draw(found: list[dict[str, Any]], path: PathLike) -> None:
    """Draw the accuracy on ImageNet over MACs and over parameters; what is not published is left out.

    Raises:
        UserError: of fewer than two networks it is published; or the file cannot be written.
    """
    import matplotlib

    known = [facts for facts in found if facts["published"].get("data") == "ImageNet"]
    if len(known) < 2:
        raise UserError("two networks or more whose accuracy on ImageNet is published are needed for a picture")
    families: dict[str, list[dict[str, Any]]] = {}
    for facts in known:
        families.setdefault(_family(facts["model"]), []).append(facts)
    figure = figures.create(13, 6)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, label in zip(panels, ("macs", "parameters"), ("GMACs", "million parameters")):
        unit = 1e9 if key == "macs" else 1e6
        for family, members in families.items():
            colour = _FAMILIES.get(family, _OTHER)
            ours = family == "convmixer"
            points = [(facts[key] / unit, 100 * facts["published"]["top1"]) for facts in members]
            axes.plot(
                *zip(*points), "o", color=colour, label=family, markersize=10 if ours else 6, zorder=3 if ours else 2
            )
            for point, facts in zip(points, members):
                axes.annotate(
                    _short(facts["model"], family), point, xytext=(-8, -4) if ours else (0, -11),
                    textcoords="offset points", ha="right" if ours else "center", color=colour,
                    fontsize="small" if ours else "x-small", fontweight="bold" if ours else "normal",
                )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axes.set_xlabel(label)
        axes.margins(x=0.09)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("top-1 on ImageNet, %")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(families), frameon=False
    )
    figure.suptitle("Published accuracy on ImageNet, and what it costs")
    figures.save(figure, path)


def _family(name: str) -> str:
    return next((family for family in _FAMILIES if name.startswith(family)), name)


def _short(name: str, family: str) -> str:
    """Return what tells a network from others of its family: of a ConvMixer its width and depth."""
    rest = name.removeprefix(family).strip("_") or family
    return rest.split("_ks")[0]
