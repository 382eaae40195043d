"""What is known of many networks, for people: a table, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from .. import figures
from ..files import PathLike
from .design_space import BATCH, BUSY, COSTS, amount


def table(facts: dict[str, Any]) -> str:
    """Return what ``design_space.describe`` found as a text of some lines."""
    candidates, training, machine = facts["candidates"], facts["training"], facts["machine"]
    lines = [
        f"{len(candidates)} networks for pictures of {facts['size']} x {facts['size']}, {facts['classes']} classes"
    ]
    if machine:
        lines.append(
            f"{machine['processor']}, {machine['threads']} threads, medians of {facts['rounds']} rounds: ms for one "
            f"picture (fastest to slowest), img/s and MiB of the process in batches of {BATCH}"
        )
    lengths = [rung["epochs"] for rung in training["rungs"]] if training else []
    roles = _roles(facts)
    width = max(len(candidate["name"]) for candidate in candidates)
    head = f"{'network':{width}}{'parameters':>12}{'MMACs':>9}"
    if machine:
        head += f"{'ms':>9}{'':>20}{'img/s':>9}{'MiB':>7}"
    head += "".join(f"{f'{epochs} ep.':>9}" for epochs in lengths)
    lines.append(head.rstrip())
    for candidate in sorted(candidates, key=lambda candidate: candidate[facts["cost"]]):
        line = f"{candidate['name']:{width}}{candidate['parameters']:12,}{candidate['macs'] / 1e6:9.2f}"
        if machine:
            spread = f"({candidate['fastest_ms']:.2f} to {candidate['slowest_ms']:.2f})"
            peak = "-" if candidate["peak_mb"] is None else f"{candidate['peak_mb']:.0f}"
            line += f"{candidate['latency_ms']:9.2f}{spread:>20}{candidate['images_per_second']:9.0f}{peak:>7}"
        reached = {run["epochs"]: run["top1"] for run in candidate["runs"]}
        line += "".join(f"{_percent(reached[n]) if n in reached else '':>9}" for n in lengths)
        remark = roles.get(candidate["name"], "") if candidate["within_limit"] else "beyond the limit"
        lines.append(f"{line}  {remark}".rstrip())
    return "\n".join([*lines, *_verdict(facts)])


def _percent(top1: Optional[float]) -> str:
    return "diverged" if top1 is None else f"{100 * top1:.2f} %"


def _roles(facts: dict[str, Any]) -> dict[str, str]:
    """Return what is said of a network, by its name: that it is on the front, and what it is recommended as."""
    said = {name: ["front"] for name in facts["front"] or ()}
    for role, name in (facts["recommendations"] or {}).items():
        if name:
            said[name].append(role)
    return {name: ", ".join(words) for name, words in said.items()}


def _verdict(facts: dict[str, Any]) -> list[str]:
    training = facts["training"]
    busy = [c["name"] for c in facts["candidates"] if facts["machine"] and c["slowest_ms"] > BUSY * c["fastest_ms"]]
    doubt = (
        [f"The slowest round took over {BUSY} times the fastest for {len(busy)} networks: the machine was busy."]
        if busy
        else []
    )
    if training is None:
        return [
            *doubt,
            "Nothing was trained: this says what networks cost, and nothing of how accurate they become, so none is "
            "recommended. A recipe (-c) and --budget train them.",
        ]
    last = training["rungs"][-1]["epochs"]
    lines = [
        *doubt,
        f"Every accuracy is of one run (seed {training['seed']}), at its best of the epochs, on the "
        f"{training['judged_by']:,} pictures that chose it; one picture is {100 / training['judged_by']:.2g} points. "
        "Another seed gives others.",
    ]
    if not facts["recommendations"]:
        return [*lines, "No run came to an end with a loss that is a number, so nothing is recommended."]
    lines.append(f"Front and recommendations are of the networks trained for {last} epochs:")
    by_name = {candidate["name"]: candidate for candidate in facts["candidates"]}
    reasons = {
        "light": f"the cheapest with at most {100 * training['tolerance']:g} points less than the best",
        "balanced": "where the front between the other two bends most",
        "accurate": "the best",
    }
    for role, name in facts["recommendations"].items():
        if name is None:
            lines.append(f"  {role:9} none: nothing of the front is between the other two")
            continue
        spent, reached = amount(by_name[name][facts["cost"]], facts["cost"]), by_name[name]["runs"][-1]["top1"]
        lines.append(f"  {role:9} {name}, {spent}, {_percent(reached)}: {reasons[role]}")
    return lines


# --- the picture -------------------------------------------------------------------------------------


def draw(facts: dict[str, Any], path: PathLike) -> None:
    """Draw what ``design_space.describe`` found: accuracy over cost, or, without accuracies, cost over cost.

    Raises:
        UserError: the suffix is of no kind that can be drawn, or the file cannot be written.
    """
    figure = figures.create(10, 5.5)
    axes = figure.add_subplot()
    (_draw_accuracies if facts["front"] else _draw_costs)(axes, facts)
    axes.grid(alpha=0.3, linewidth=0.5)
    figure.legend(loc="outside right upper", fontsize="small")
    figures.save(figure, path)


def _draw_accuracies(axes: Any, facts: dict[str, Any]) -> None:
    """Draw every run, those of a network above each other, and the front of those that were trained longest."""
    cost, training, roles = facts["cost"], facts["training"], _roles(facts)
    reached = {}  # by network: what it costs, and (epochs, accuracy) of its runs
    for candidate in facts["candidates"]:
        runs = [(run["epochs"], 100 * run["top1"]) for run in candidate["runs"] if run["top1"] is not None]
        if runs:
            reached[candidate["name"]] = COSTS[cost].scale * candidate[cost], runs
    for name, (x, runs) in reached.items():
        axes.plot([x] * len(runs), [y for _, y in runs], color="0.75", linewidth=1, zorder=1)
        role = roles.get(name, "").replace("front, ", "").replace("front", "")
        _name(axes, f"{_short(name)}\n{role}".strip(), (x, runs[-1][1]), bool(role))
    colours = _colours(len(training["rungs"]))
    for rung, colour in zip(training["rungs"], colours):
        epochs = rung["epochs"]
        points = [(x, y) for x, runs in reached.values() for n, y in runs if n == epochs]
        label = f"after {epochs} epochs: {len(points)} networks"
        axes.scatter(*_columns(points), color=[colour], zorder=3, label=label)
    front = [(reached[name][0], reached[name][1][-1][1]) for name in facts["front"]]
    look = {"color": "tab:red", "markersize": 10, "markerfacecolor": "none"}
    axes.plot(*_columns(front), "o-", zorder=2, label=f"front after {training['rungs'][-1]['epochs']} epochs", **look)
    _draw_limit(facts, **{cost: axes.axvline})
    axes.semilogx()
    _plain(axes.xaxis)
    axes.margins(x=0.1, y=0.14)
    axes.set(xlabel=COSTS[cost].label, ylabel=f"top-1 of one run (%), {training['judged_by']:,} pictures")
    axes.set_title(f"{len(facts['candidates'])} networks, {training['epochs']} epochs of training in all")


def _draw_costs(axes: Any, facts: dict[str, Any]) -> None:
    """Draw one cost over another, to show how far the one tells the other."""
    x_key, y_key = ("macs", "latency_ms") if facts["machine"] else ("parameters", "macs")
    patches = sorted({candidate["patch_size"] for candidate in facts["candidates"]})
    for patch, colour in zip(patches, _colours(len(patches))):
        members = [candidate for candidate in facts["candidates"] if candidate["patch_size"] == patch]
        points = [tuple(COSTS[key].scale * candidate[key] for key in (x_key, y_key)) for candidate in members]
        axes.scatter(*_columns(points), color=[colour], label=f"patches of {patch} pixels")
        for candidate, (x, y) in zip(members, points):
            _name(axes, _short(candidate["name"]), (x, y))
            if facts["machine"]:
                axes.vlines(x, candidate["fastest_ms"], candidate["slowest_ms"], color=[colour], linewidth=1)
    _draw_limit(facts, **{x_key: axes.axvline, y_key: axes.axhline})
    axes.loglog()
    _plain(axes.xaxis)
    _plain(axes.yaxis)
    axes.margins(x=0.12, y=0.12)
    spread = "\nmedian, and fastest to slowest round" if facts["machine"] else ""
    axes.set(xlabel=COSTS[x_key].label, ylabel=COSTS[y_key].label + spread)
    why = "no run ended well" if facts["training"] else "nothing was trained"
    axes.set_title(f"What {len(facts['candidates'])} networks cost; {why}")


def _draw_limit(facts: Mapping[str, Any], **lines: Any) -> None:
    """Draw the limit, if there is one, and an axis has what it limits."""
    cost = facts["cost"]
    if facts["limit"] is not None and cost in lines:
        lines[cost](COSTS[cost].scale * facts["limit"], color="0.4", linestyle="--", linewidth=1, label="limit")


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _colours(count: int) -> list[Any]:
    import matplotlib

    return [matplotlib.colormaps["viridis_r"](0.15 + 0.75 * i / max(count - 1, 1)) for i in range(count)]


def _name(axes: Any, text: str, place: tuple[float, float], bold: bool = False) -> None:
    weight = "bold" if bold else "normal"
    look = {"ha": "center", "va": "bottom", "fontsize": "small", "fontweight": weight}
    axes.annotate(text, place, xytext=(0, 7), textcoords="offset points", **look)


def _short(name: str) -> str:
    return name.removeprefix("convmixer_")


def _plain(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers, also where it spans less than a power of ten."""
    from matplotlib import ticker

    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(ticker.NullFormatter())
