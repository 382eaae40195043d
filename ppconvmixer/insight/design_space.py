"""Which ConvMixer to take: what each of many costs on this machine, and how accurate it becomes on one's own pictures.

Costs are counted or measured, and accuracies are those of real training runs; none is guessed from the shape.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from .. import __version__, benchmark, peers, processor, zoo
from ..errors import UserError
from ..files import write_text
from ..threads import threads
from ..zoo import InputSpec, Variant
from . import halving, pareto
from .halving import Rung
from .trials import Trials, read_figures

logger = logging.getLogger("ppconvmixer")

MOST = 32  # candidates: each is a process with Paddle in it while they are timed, all at once
BATCH = 32  # pictures, for throughput and memory
BUSY = 2  # times the fastest round that the slowest may take, before its figures are doubted


class Cost(NamedTuple):
    """How a cost is shown: what it is called, its unit, and how many of these one of ours is."""

    label: str
    unit: str
    scale: float


COSTS = {  # what can be limited
    "latency_ms": Cost("latency of one picture (ms)", "ms", 1.0),
    "parameters": Cost("parameters", "parameters", 1.0),
    "macs": Cost("multiply-accumulates of one picture (millions)", "MMACs", 1e-6),
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
    finalists: int = 4
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
    """Return the candidates, each shape once, by the first name it is given; all with the same input and head.

    Raises:
        UserError: a name is unknown, there are too many, or patches are larger than the picture.
    """
    found: dict[str, Variant] = {}
    for name in names:
        shape = dataclasses.replace(zoo.variant(name), input=spec, num_classes=num_classes)
        if shape not in found.values():
            found[name] = shape
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
                costs["peak_mb"] = timing.peak_mb
    if any(costs["slowest_ms"] > BUSY * costs["fastest_ms"] for costs in found.values()):
        logger.warning("the times differ much between rounds: the machine is busy; measure again when it is not")
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
    before = read_figures(path) if path.exists() else {"circumstances": None, "costs": {}}
    if before.keys() != {"circumstances", "costs"}:
        raise UserError(f"{path} is none of this command's files; move it away, or take another folder with --runs")
    if before["circumstances"] == circumstances:
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
        logger.info("%s", halving.announced(rungs, tournament.budget))
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
            f"no candidate is within the limit of {amount(limit.most, limit.cost)}; "
            f"the least, {least}, has {amount(costs[least][limit.cost], limit.cost)}"
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
        ``balanced``, the knee (``pareto.knee``) of the front from the one to the other, None where nothing is between.
    """
    accurate = max(range(len(front)), key=lambda i: front[i][1])
    enough = front[accurate][1] - tolerance - 1e-9  # a loss of exactly the tolerance is none too many
    light = next(i for i, (_, score) in enumerate(front) if score >= enough)
    bend = pareto.knee(front[light : accurate + 1])
    return {"light": light, "balanced": None if bend is None else light + bend, "accurate": accurate}


def amount(value: float, cost: str) -> str:
    """Return a cost with its unit."""
    _, unit, scale = COSTS[cost]
    return f"{value * scale:,.0f} {unit}" if cost == "parameters" else f"{value * scale:,.3g} {unit}"
