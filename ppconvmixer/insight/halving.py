"""Successive halving: train many candidates a little, the better ones longer.

The scheme is Sequential Halving (Karnin, Koren and Somekh, *Almost Optimal Exploration in Multi-Armed Bandits*,
ICML 2013) as Jamieson and Talwalkar use it (*Non-stochastic Best Arm Identification and Hyperparameter Optimization*,
AISTATS 2016): every rung gets an equal share of the budget, in equal parts for its candidates. Nothing here knows
what a candidate is, or what training means.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Callable, Optional, TypeVar

from ..errors import UserError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Rung:
    """A round of the tournament.

    Args:
        candidates: how many are trained.
        epochs: how long each of them is.
    """

    candidates: int
    epochs: int

    @property
    def cost(self) -> int:
        """Epochs of all candidates together."""
        return self.candidates * self.epochs


def plan(count: int, budget: int, eta: int = 2, finalists: int = 4) -> list[Rung]:
    """Return the rungs that ``budget`` epochs of training are spent on.

    From rung to rung the candidates are divided by ``eta``, rounded up, as long as ``finalists`` are left. What the
    shares of the earlier rungs do not use up goes to the last one.

    Args:
        count: candidates of the first rung.
        budget: epochs of all rungs and candidates together; no more are spent.
        eta: 2 or more.

    Raises:
        UserError: the budget does not give every rung more epochs than the one before.
    """
    if rungs := _divided(count, budget, eta, finalists):
        return rungs
    enough = next(more for more in itertools.count(budget) if _divided(count, more, eta, finalists))
    raise UserError(f"a budget of {budget} epochs is too small for {count} candidates; want at least {enough}")


def _divided(count: int, budget: int, eta: int, finalists: int) -> list[Rung]:
    """Return the rungs, or none where they do not grow."""
    sizes = [count]
    while finalists <= (fewer := -(-sizes[-1] // eta)) < sizes[-1]:
        sizes.append(fewer)
    rungs = [Rung(size, budget // (size * len(sizes))) for size in sizes[:-1]]
    left = budget - sum(rung.cost for rung in rungs)
    rungs.append(Rung(sizes[-1], left // sizes[-1]))
    epochs = [0, *(rung.epochs for rung in rungs)]
    return rungs if all(a < b for a, b in zip(epochs, epochs[1:])) else []


def halve(
    candidates: Sequence[T],
    rungs: Sequence[Rung],
    train: Callable[[T, int], Optional[float]],
    rank: Callable[[Mapping[T, float]], Sequence[T]],
) -> list[dict[T, Optional[float]]]:
    """Run the tournament and return the scores of every rung.

    To go on after an interruption, call it again with a ``train`` that knows what was trained before: what it asks
    for, and in which order, depends on the scores alone.

    Args:
        candidates: as many as the first of ``rungs`` has, all different.
        train: ``(candidate, epochs) -> score``, called once for each, in the order of ``candidates``; None says that
            it failed, and so the candidate is out.
        rank: the candidates of a rung that did not fail, those to keep first.
    """
    results: list[dict[T, Optional[float]]] = []
    survivors = list(candidates)
    for rung in rungs:
        if results:
            scores = {candidate: score for candidate, score in results[-1].items() if score is not None}
            kept = set(rank(scores)[: rung.candidates])
            survivors = [candidate for candidate in survivors if candidate in kept]
        results.append({candidate: train(candidate, rung.epochs) for candidate in survivors})
    return results


def announced(rungs: Sequence[Rung], budget: int) -> str:
    """Return a plan as a text of some lines."""
    lines = [f"successive halving in {sum(rung.cost for rung in rungs)} epochs of a budget of {budget}:"]
    for i, rung in enumerate(rungs, 1):
        lines.append(f"  rung {i}: {rung.candidates} candidates x {rung.epochs} epochs = {rung.cost} epochs")
    return "\n".join(lines)
