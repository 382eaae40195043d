"""Which ConvMixer to take: what each of many costs on this machine, and how accurate it becomes on one's own pictures.

Costs are counted or measured, and accuracies are those of real training runs; none is guessed from the shape.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from .. import __version__, benchmark, figures, peers, processor, zoo
from ..errors import UserError
from ..files import PathLike, write_text
from ..threads import threads
from ..zoo import InputSpec, Variant
from . import halving, pareto
from .halving import Rung
from .trials import Trials, read_figures

logger = logging.getLogger("ppconvmixer")

MOST = 32  # candidates: each is a process with Paddle in it while they are timed, all at once
BATCH = 32  # pictures, for throughput and memory
COSTS = {  # what can be limited: how to call it on an axis, its unit in a table, and that unit by ours
    "latency_ms": ("latency of one picture (ms)", "ms", 1.0),
    "parameters": ("parameters", "parameters", 1.0),
    "macs": ("multiply-accumulates of one picture (millions)", "MMACs", 1e-6),
}


@dataclasses.dataclass(frozen=True)
class Limit:
    """What counts as cost, and the most of it that a network may have.

    Args:
        cost: a key of ``COSTS``.
        most: None for no limit.
    """

    cost: str
    most: Optional[float] = None

    def holds(self, costs: Mapping[str, Any]) -> bool:
        """Tell whether a network of these costs is within the limit."""
        return self.most is None or costs[self.cost] <= self.most


@dataclasses.dataclass(frozen=True)
class Tournament:
    """How the candidates are trained, and who is recommended after it.

    Args:
        trials: who trains them.
        budget, eta, finalists: see ``halving.plan``.
        tolerance: accuracy that the light recommendation may lose, in [0, 1].
    """

    trials: Trials
    budget: int
    eta: int = 2
    finalists: int = 3
    tolerance: float = 0.05

    def plan(self, names: Sequence[str]) -> list[Rung]:
        """Return the rungs, once it is sure that their runs can be made.

        Raises:
            UserError: as ``halving.plan`` and ``Trials.check``.
        """
        rungs = halving.plan(len(names), self.budget, self.eta, self.finalists)
        self.trials.check(names, [rung.epochs for rung in rungs])
        return rungs


# --- candidates and their costs -----------------------------------------------------------------------


def grid(dims: Sequence[int], depths: Sequence[int], kernels: Sequence[int], patches: Sequence[int]) -> list[str]:
    """Return the names of all combinations."""
    return [
        f"convmixer_{dim}_{depth}_ks{kernel}_p{patch}"
        for dim, depth, kernel, patch in itertools.product(dims, depths, kernels, patches)
    ]


def shapes(names: Iterable[str], spec: InputSpec, num_classes: int) -> dict[str, Variant]:
    """Return the candidates, each once, by the one name that it has in the zoo; all with the same input and head.

    Raises:
        UserError: a name is unknown, there are too many, or patches are larger than the picture.
    """
    found = {
        name: dataclasses.replace(zoo.variant(name), input=spec, num_classes=num_classes)
        for name in map(zoo.canonical, names)
    }
    if len(found) > MOST:
        raise UserError(f"there are {len(found)} candidates; want at most {MOST}, because all are timed in turn")
    for name, shape in found.items():
        if shape.patch_size > spec.size:
            raise UserError(f"{name} cuts patches of {shape.patch_size} pixels, and the pictures have {spec.size}")
    return found


def measure(candidates: Mapping[str, Variant], rounds: int) -> dict[str, dict[str, Optional[float]]]:
    """Time candidates in turn, each in a process of its own, with the engine that the project takes by itself.

    Returns:
        Of each, ``latency_ms`` of one picture and ``images_per_second`` in batches of ``BATCH``, medians over the
        rounds; ``fastest_ms`` and ``slowest_ms``, the ends of the former; and ``peak_mb``, the most memory in MiB that
        its process had while it computed such batches, Paddle included, None where the system does not say.
    """
    found: dict[str, dict[str, Optional[float]]] = {name: {} for name in candidates}
    for batch in (1, BATCH):
        logger.info("timing %d networks in turn, %d rounds, batch %d", len(candidates), rounds, batch)
        makes = {
            name: functools.partial(peers.make, peers.Workload("inference", name, shape, batch), peers.OURS)
            for name, shape in candidates.items()
        }
        for timing in benchmark.race(makes, batch, rounds):
            costs = found[timing.contender]
            if batch == 1:
                costs["latency_ms"] = 1000 / timing.images_per_second
                costs["fastest_ms"], costs["slowest_ms"] = 1000 / timing.high, 1000 / timing.low
            else:
                costs["images_per_second"] = timing.images_per_second
                costs["peak_mb"] = None if math.isnan(timing.peak_mb) else timing.peak_mb
    return found


def measure_once(candidates: Mapping[str, Variant], rounds: int, path: Path) -> dict[str, dict[str, Optional[float]]]:
    """Return what ``measure`` finds, from a file if it was measured before, which is written otherwise.

    A halving that goes on needs the costs by which it began: by others, other candidates could go on.

    Raises:
        UserError: the file cannot be read or written.
    """
    circumstances = {
        "candidates": {name: dataclasses.asdict(shape) for name, shape in candidates.items()},
        **{"rounds": rounds, "processor": processor.name(), "threads": threads(), "ppconvmixer": __version__},
    }
    circumstances = json.loads(json.dumps(circumstances))  # as they come out of a file: tuples are lists
    before = read_figures(path) if path.exists() else {}
    if "costs" in before and before.get("circumstances") == circumstances:
        logger.info("speeds are those in %s; remove the file to measure them again", path)
        return before["costs"]
    costs = measure(candidates, rounds)
    write_text(path, json.dumps({"circumstances": circumstances, "costs": costs}, indent=2) + "\n")
    return costs


# --- what comes of it --------------------------------------------------------------------------------


def describe(
    candidates: Mapping[str, Variant], limit: Limit, rounds: int = 5, tournament: Optional[Tournament] = None
) -> dict[str, Any]:
    """Count, measure and, with a tournament, train; return all that is known then, as JSON can write it.

    Args:
        candidates: what ``shapes`` returns.
        rounds: samples of every speed; 0 measures none.

    Raises:
        UserError: no candidate is within the limit, or something cannot be run, read or written.
        Stopped: after Ctrl-C or SIGTERM while a candidate is trained; the same call goes on.
    """
    costs = {name: {"parameters": shape.parameters(), "macs": shape.macs()} for name, shape in candidates.items()}
    rungs: list[Rung] = []
    if limit.cost != "latency_ms":  # what can be wrong is said before the measurement
        rungs = _plan(costs, limit, tournament)
    if rounds:
        file = tournament and tournament.trials.folder / "costs.json"
        measured = measure_once(candidates, rounds, file) if file else measure(candidates, rounds)
        costs = {name: {**counted, **measured[name]} for name, counted in costs.items()}
    if limit.cost == "latency_ms":
        rungs = _plan(costs, limit, tournament)
    results: list[dict[str, Optional[float]]] = []
    if tournament:
        logger.info("%s", _announced(rungs, tournament.budget))
        results = _compete(tournament.trials, {n: c[limit.cost] for n, c in costs.items() if limit.holds(c)}, rungs)
    found = [
        {
            "name": name,
            **{key: getattr(shape, key) for key in ("dim", "depth", "kernel_size", "patch_size", "act")},
            **costs[name],
            "within_limit": limit.holds(costs[name]),
            "runs": [{"epochs": r.epochs, "top1": top1[name]} for r, top1 in zip(rungs, results) if name in top1],
        }
        for name, shape in candidates.items()
    ]
    shape = next(iter(candidates.values()))
    return {
        **{"size": shape.input.size, "classes": shape.num_classes},
        "machine": {"processor": processor.name(), "threads": threads()} if rounds else None,
        **{"rounds": rounds, "cost": limit.cost, "limit": limit.most, "candidates": found},
        "training": _training(tournament, rungs, results) if tournament else None,
        **_conclusions(found, rungs, limit.cost, tournament),
    }


def _plan(costs: Mapping[str, Mapping[str, Any]], limit: Limit, tournament: Optional[Tournament]) -> list[Rung]:
    """Plan the training of the candidates within the limit."""
    inside = [name for name in costs if limit.holds(costs[name])]
    if not inside:
        least = min(costs, key=lambda name: costs[name][limit.cost])
        raise UserError(
            f"no candidate is within the limit of {_amount(limit.most, limit.cost)}; "
            f"the least, {least}, has {_amount(costs[least][limit.cost], limit.cost)}"
        )
    return tournament.plan(inside) if tournament else []


def _compete(trials: Trials, costs: Mapping[str, float], rungs: Sequence[Rung]) -> list[dict[str, Optional[float]]]:
    """Return the accuracies of every rung; those go on that ``pareto.order`` puts first.

    By accuracy alone, nothing but the largest networks would go on, and there would be nothing to choose from.
    """

    def rank(scores: Mapping[str, float]) -> list[str]:
        names = list(scores)
        return [names[i] for i in pareto.order([(costs[name], scores[name]) for name in names])]

    return halving.halve(list(costs), rungs, trials.train, rank)


def _training(
    tournament: Tournament, rungs: Sequence[Rung], results: Sequence[Mapping[str, Optional[float]]]
) -> dict[str, Any]:
    recipe, (train, val) = tournament.trials.recipe, tournament.trials.data
    return {
        **{"dataset": recipe.data.dataset, "pictures": len(train), "judged_by": len(val), "seed": recipe.train.seed},
        **{"budget": tournament.budget, "eta": tournament.eta, "tolerance": tournament.tolerance},
        "epochs": sum(rung.epochs * len(top1) for rung, top1 in zip(rungs, results)),
        "rungs": [dataclasses.asdict(rung) for rung in rungs],
        "folder": str(tournament.trials.folder),
    }


def _conclusions(
    candidates: Sequence[Mapping[str, Any]], rungs: Sequence[Rung], cost: str, tournament: Optional[Tournament]
) -> dict[str, Any]:
    """Return front and recommendations: names, of those that were trained longest, since others had fewer epochs."""
    if tournament is None:
        return {"front": None, "recommendations": None}
    ranked = [
        (candidate[cost], run["top1"], candidate["name"])
        for candidate in candidates
        for run in candidate["runs"]
        if run["epochs"] == rungs[-1].epochs and run["top1"] is not None
    ]
    front = [ranked[i] for i in pareto.front([(spent, top1) for spent, top1, _ in ranked])]
    if not front:
        return {"front": [], "recommendations": None}
    chosen = recommend([(spent, top1) for spent, top1, _ in front], tournament.tolerance)
    return {
        "front": [name for *_, name in front],
        "recommendations": {role: None if i is None else front[i][2] for role, i in chosen.items()},
    }


def recommend(front: Sequence[pareto.Point], tolerance: float) -> dict[str, Optional[int]]:
    """Choose three points of a front, which is ordered by cost.

    Returns:
        ``light``, the cheapest within ``tolerance`` of the best score; ``accurate``, the one of the best score; and
        ``balanced``, the knee (``pareto.knee``) of the front from the one to the other, None where it has none.
    """
    accurate = max(range(len(front)), key=lambda i: front[i][1])
    enough = front[accurate][1] - tolerance - 1e-9  # a loss of exactly the tolerance is none too many
    light = next(i for i, (_, score) in enumerate(front) if score >= enough)
    bend = pareto.knee(front[light : accurate + 1])
    return {"light": light, "balanced": None if bend is None else light + bend, "accurate": accurate}


# --- for people --------------------------------------------------------------------------------------


def _announced(rungs: Sequence[Rung], budget: int) -> str:
    """Return a plan as a text of some lines."""
    lines = [f"successive halving in {sum(rung.cost for rung in rungs)} epochs of the budget's {budget}:"]
    for i, rung in enumerate(rungs, 1):
        lines.append(f"  rung {i}: {rung.candidates} candidates x {rung.epochs} epochs = {rung.cost} epochs")
    return "\n".join(lines)


def _amount(value: float, cost: str) -> str:
    _, unit, scale = COSTS[cost]
    return f"{value * scale:,.0f} {unit}" if cost == "parameters" else f"{value * scale:,.3g} {unit}"


def table(facts: dict[str, Any]) -> str:
    """Return what ``describe`` found as a text of some lines."""
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
        head += f"{'ms':>9}{'':>16}{'img/s':>9}{'MiB':>7}"
    head += "".join(f"{f'{epochs} ep.':>9}" for epochs in lengths)
    lines.append(head.rstrip())
    for candidate in sorted(candidates, key=lambda candidate: candidate[facts["cost"]]):
        line = f"{candidate['name']:{width}}{candidate['parameters']:12,}{candidate['macs'] / 1e6:9.2f}"
        if machine:
            spread = f"({candidate['fastest_ms']:.2f} to {candidate['slowest_ms']:.2f})"
            peak = "-" if candidate["peak_mb"] is None else f"{candidate['peak_mb']:.0f}"
            line += f"{candidate['latency_ms']:9.2f}{spread:>16}{candidate['images_per_second']:9.0f}{peak:>7}"
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
    if training is None:
        return [
            "Nothing was trained: this says what networks cost, and nothing of how accurate they become, so none is "
            "recommended. A recipe (-c) and --budget train them."
        ]
    last = training["rungs"][-1]["epochs"]
    lines = [
        f"Every accuracy is of one run (seed {training['seed']}), at its best of the epochs, on the "
        f"{training['judged_by']:,} pictures that chose it; one picture is {100 / training['judged_by']:.2g} points. "
        "Another seed gives others."
    ]
    if not facts["recommendations"]:
        return [*lines, "No run came to an end with a loss that is a number, so nothing is recommended."]
    lines.append(f"Front and recommendations are of the networks trained for {last} epochs:")
    by_name = {candidate["name"]: candidate for candidate in facts["candidates"]}
    reasons = {
        "light": f"the cheapest with at most {100 * training['tolerance']:g} points less than the best",
        "balanced": "the bend of the front between the other two",
        "accurate": "the best",
    }
    for role, name in facts["recommendations"].items():
        if name is None:
            lines.append(f"  {role:9} none: the front between the other two has no bend")
            continue
        amount, reached = _amount(by_name[name][facts["cost"]], facts["cost"]), by_name[name]["runs"][-1]["top1"]
        lines.append(f"  {role:9} {name}, {amount}, {_percent(reached)}: {reasons[role]}")
    return lines


# --- the picture -------------------------------------------------------------------------------------


def draw(facts: dict[str, Any], path: PathLike) -> None:
    """Draw what ``describe`` found to a file: accuracy over cost, or, where nothing was trained, cost over cost.

    Raises:
        UserError: the suffix is of no kind that can be drawn, or the file cannot be written.
    """
    figure = figures.create(9, 5.5)
    axes = figure.add_subplot()
    if facts["training"]:
        _draw_accuracies(axes, facts)
    else:
        _draw_costs(axes, facts)
    axes.grid(alpha=0.25, which="both", linewidth=0.5)
    axes.legend(fontsize="small", loc="best")
    figures.save(figure, path)


def _short(name: str) -> str:
    return name.removeprefix("convmixer_")


def _draw_accuracies(axes: Any, facts: dict[str, Any]) -> None:
    """Draw every run, those of a network above each other, and the front of those that were trained longest."""
    import matplotlib

    cost, lengths = facts["cost"], [rung["epochs"] for rung in facts["training"]["rungs"]]
    label, _, scale = COSTS[cost]
    colours = [
        matplotlib.colormaps["viridis_r"](0.15 + 0.75 * i / max(len(lengths) - 1, 1)) for i in range(len(lengths))
    ]
    runs = {
        candidate["name"]: [
            (scale * candidate[cost], 100 * run["top1"], run["epochs"])
            for run in candidate["runs"]
            if run["top1"] is not None
        ]
        for candidate in facts["candidates"]
    }
    for points in runs.values():
        axes.plot([x for x, *_ in points], [y for _, y, _ in points], color="0.75", linewidth=1, zorder=1)
    for epochs, colour in zip(lengths, colours):
        xs, ys = zip(*[(x, y) for points in runs.values() for x, y, n in points if n == epochs] or [((), ())])
        axes.scatter(xs, ys, color=colour, s=36, zorder=3, label=f"after {epochs} epochs ({len(xs)} networks)")
    front = [runs[name][-1] for name in facts["front"]]
    axes.plot([x for x, *_ in front], [y for _, y, _ in front], color="tab:red", zorder=2, label="front")
    roles = _roles(facts)
    for name, points in runs.items():
        if points:
            role = roles.get(name, "").removeprefix("front").removeprefix(", ")
            text = f"{_short(name)}\n{role}" if role else _short(name)
            axes.annotate(
                text, points[-1][:2], xytext=(0, 7), textcoords="offset points", ha="center", va="bottom",
                fontsize="small", fontweight="bold" if role else None,
            )  # fmt: skip
    if facts["limit"] is not None:
        axes.axvline(scale * facts["limit"], color="0.4", linestyle="--", linewidth=1, label="limit")
    axes.set_xscale("log")
    axes.margins(x=0.1, y=0.14)
    axes.set(xlabel=label, ylabel="top-1 (%), one run each")
    axes.set_title(f"{len(runs)} networks, {facts['training']['epochs']} epochs of training")


def _draw_costs(axes: Any, facts: dict[str, Any]) -> None:
    """Draw one cost over another, to show how far the one says the other."""
    import matplotlib

    x_key, y_key = ("macs", "latency_ms") if facts["machine"] else ("parameters", "macs")
    (x_label, _, x_scale), (y_label, _, y_scale) = COSTS[x_key], COSTS[y_key]
    patches = sorted({candidate["patch_size"] for candidate in facts["candidates"]})
    for i, patch in enumerate(patches):
        members = [candidate for candidate in facts["candidates"] if candidate["patch_size"] == patch]
        xs, ys = ([scale * c[key] for c in members] for key, scale in ((x_key, x_scale), (y_key, y_scale)))
        colour = matplotlib.colormaps["viridis"](0.9 * i / max(len(patches) - 1, 1))
        ends = (
            [
                [c["latency_ms"] - c["fastest_ms"] for c in members],
                [c["slowest_ms"] - c["latency_ms"] for c in members],
            ]
            if facts["machine"]
            else None
        )
        axes.errorbar(xs, ys, ends, fmt="o", color=colour, elinewidth=1, label=f"patches of {patch} pixels")
        for candidate, x, y in zip(members, xs, ys):
            axes.annotate(
                _short(candidate["name"]), (x, y), xytext=(6, -3), textcoords="offset points", fontsize="x-small"
            )
    if facts["limit"] is not None and facts["cost"] in (x_key, y_key):
        line = axes.axvline if facts["cost"] == x_key else axes.axhline
        line(COSTS[facts["cost"]][2] * facts["limit"], color="0.4", linestyle="--", linewidth=1, label="limit")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.12)
    axes.set(xlabel=x_label, ylabel=y_label + (", fastest to slowest round" if facts["machine"] else ""))
    axes.set_title(f"What {len(facts['candidates'])} networks cost; nothing was trained")
