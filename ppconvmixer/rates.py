"""The learning rate of every layer over a run: as figures, as a table and as a picture."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Optional

from . import figures
from .files import PathLike
from .optim import layer_rate, lr_factor
from .recipe import Recipe
from .zoo import variant

POINTS = 1000  # of a curve; a picture shows no more


@dataclasses.dataclass(frozen=True)
class Group:
    """Neighbouring layers that are trained alike.

    Args:
        layers: the lowest and the highest, as ``model.layer_id`` counts them.
        rate: their learning rate by that of the schedule.
        epoch: after so many epochs they are trained; None where they never are.
    """

    name: str
    layers: tuple[int, int]
    rate: float
    epoch: Optional[int]


def groups(recipe: Recipe) -> list[Group]:
    """Return the groups of a recipe's network, the lowest layers first."""
    depth = variant(recipe.model.name).depth
    frozen = [recipe.frozen_layers(epoch) for epoch in range(recipe.epochs)]

    def kind(layer: int) -> tuple[float, Optional[int]]:
        epoch = next((i for i, count in enumerate(frozen) if count <= layer), None)
        return layer_rate(recipe, layer, depth), epoch

    names = ["stem", *(f"block {i}" for i in range(depth)), "head"]
    found = []
    for (rate, epoch), members in itertools.groupby(range(depth + 2), kind):
        first, last = (layers := list(members))[0], layers[-1]
        name = names[first] if first == last else f"{names[first]} to {names[last]}"
        name = "all layers" if len(layers) == depth + 2 else name
        found.append(Group(name, (first, last), rate, epoch))
    return found


def describe(recipe: Recipe, counts: Sequence[int]) -> dict[str, Any]:
    """Return the schedule of a run as JSON can write it.

    Args:
        counts: steps of every epoch.

    Returns:
        ``steps`` of every epoch, the ``phases``, and of every group its ``learning_rate`` at the steps
        ``at`` (from 0): the first of every epoch, the last, and others, evenly spaced.
    """
    total, starts = sum(counts), [0, *itertools.accumulate(counts)]
    at = sorted({*range(0, total, max(1, total // POINTS)), *starts[:-1], total - 1})
    curve = [recipe.optimizer.lr * lr_factor(recipe.schedule, step, counts) for step in at]
    found = []
    for group in groups(recipe):
        start = total if group.epoch is None else starts[group.epoch]
        rates = [group.rate * value if step >= start else 0.0 for step, value in zip(at, curve)]
        found.append({**dataclasses.asdict(group), "learning_rate": rates})
    return {
        "model": recipe.model.name,
        "optimizer": recipe.optimizer.name,
        "schedule": recipe.schedule.name,
        "steps": list(counts),
        "phases": [dataclasses.asdict(phase) for phase in recipe.phases()],
        "at": at,
        "groups": found,
    }


def table(facts: dict[str, Any]) -> str:
    """Return what ``describe`` found as a text of some lines."""
    counts = facts["steps"]
    lines = [
        f"{facts['model']}: {len(counts)} epochs, {sum(counts)} steps, {facts['optimizer']}, {facts['schedule']}",
        f"{'epochs':>14}{'size':>8}{'batch':>8}{'steps':>10}",
    ]
    done = 0
    for phase in facts["phases"]:
        first, done = done, done + phase["epochs"]
        steps = sum(counts[first:done])
        lines.append(f"{f'{first + 1}-{done}':>14}{phase['size']:8}{phase['batch_size']:8}{steps:10}")
    width = max(len(group["name"]) for group in facts["groups"])
    lines.append(f"{'layers':{width}}{'trained from':>14}{'first lr':>12}{'largest':>12}{'last':>12}")
    for group in facts["groups"]:
        trained = "never" if group["epoch"] is None else f"epoch {group['epoch'] + 1}"
        rates = group["learning_rate"]
        own = [rate for rate in rates if rate] or [0.0]
        figures = (own[0], max(rates), rates[-1])
        lines.append(f"{group['name']:{width}}{trained:>14}" + "".join(f"{rate:12.3g}" for rate in figures))
    return "\n".join(lines)


def draw(facts: dict[str, Any], path: PathLike) -> None:
    """Draw what ``describe`` found to a file.

    Raises:
        UserError: the suffix is of no kind that can be drawn, or the file cannot be written.
    """
    import matplotlib

    counts, found = facts["steps"], facts["groups"]
    starts = [0, *itertools.accumulate(counts)]
    epochs = [_epoch(step, starts) for step in facts["at"]]
    figure = figures.create(9, 5)
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["viridis"]
    labelled = {round(i * (len(found) - 1) / 9) for i in range(10)}  # ten lines in the legend are enough
    for i, group in enumerate(found):
        rates = [rate or float("nan") for rate in group["learning_rate"]]
        colour = colours(0.9 * i / max(len(found) - 1, 1))
        label = group["name"] + (" (never trained)" if group["epoch"] is None else "")
        axes.plot(epochs, rates, color=colour, label=label if i in labelled else None, drawstyle="steps-post")
    spread = [group["rate"] for group in found]
    if min(spread) < 0.1 * max(spread):
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.01 * min(spread) * max(found[-1]["learning_rate"]))  # the ends of the curves go to 0
    for epoch in sorted({group["epoch"] for group in found} - {None, 0}):
        axes.axvline(epoch, color="grey", linestyle=":", linewidth=1)
    phases, first = facts["phases"], 0
    for phase in phases if len(phases) > 1 else ():
        axes.axvline(first, color="grey", linewidth=1)
        text = f" {phase['size']} px\n batch {phase['batch_size']}"
        axes.annotate(text, (first, 0.01), xycoords=("data", "axes fraction"), va="bottom", fontsize="small")
        first += phase["epochs"]
    axes.set(xlabel="epoch", ylabel="learning rate", xlim=(0, len(counts)))
    axes.set_title(f"{facts['model']}, {facts['optimizer']}, {facts['schedule']}: {sum(counts)} steps")
    figure.legend(loc="outside right upper", fontsize="small")
    figures.save(figure, path)


def _epoch(step: int, starts: Sequence[int]) -> float:
    """Return where in the run a step begins, in epochs."""
    epoch = min(bisect.bisect_right(starts, step), len(starts) - 1) - 1
    return epoch + (step - starts[epoch]) / (starts[epoch + 1] - starts[epoch])
