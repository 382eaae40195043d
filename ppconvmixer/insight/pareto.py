"""What is best where two things count: a cost, which should be low, and a score, which should be high."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

Point = tuple[float, float]
"""Cost, above 0, and score."""


def front(points: Sequence[Point]) -> list[int]:
    """Return which points no other one dominates, the cheapest first.

    A point dominates another one if it costs no more and scores no less, and is better in one of the two.
    """
    found: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not found or points[i][1] > points[found[-1]][1] or points[i] == points[found[-1]]:
            found.append(i)
    return found


def order(points: Sequence[Point]) -> list[int]:
    """Return all points, those first that one should keep where not all can be kept.

    The front comes first, then the front of what is left, and so on (non-dominated sorting). Within a front the
    highest score comes first, and then always the point that is farthest from those before, in the plane of ``scaled``,
    so that the first few are spread over all costs. This is how Schmucker and others (*Multi-objective Asynchronous
    Successive Halving*, arXiv:2106.12639) choose who goes on. Those that tie are ordered by score, cost and number.
    """
    found: list[int] = []
    left = list(range(len(points)))
    while left:
        layer = [left[i] for i in front([points[i] for i in left])]
        found += [layer[i] for i in _spread([points[i] for i in layer])]
        left = [i for i in left if i not in layer]
    return found


def _spread(points: Sequence[Point]) -> list[int]:
    places = scaled(points)
    left = sorted(range(len(points)), key=lambda i: (-points[i][1], points[i][0], i))
    found = [left.pop(0)]
    while left:
        farthest = max(left, key=lambda i: min(math.dist(places[i], places[j]) for j in found))  # the first that ties
        left.remove(farthest)
        found.append(farthest)
    return found


def scaled(points: Sequence[Point]) -> list[Point]:
    """Return the logarithm of the cost, and the score, each stretched to [0, 1]; all 0 where they are all alike."""
    columns = zip(*((math.log(cost), score) for cost, score in points))
    return list(zip(*map(_stretched, columns)))


def _stretched(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]


def knee(points: Sequence[Point]) -> Optional[int]:
    """Return the point of a front, between its ends, that lies farthest above the line from the one to the other.

    Above is meant in the plane of ``scaled``; where all lie below the line, it is the one nearest to it.

    There the ends are (0, 0) and (1, 1), so it is the point of the largest score less cost. Up to it, a share of the
    range of costs buys more than that share of the range of scores, and beyond it less. The idea is that of Satopaa
    and others (*Finding a "Kneedle" in a Haystack*, ICDCS-W 2011).

    Returns:
        Its number; None where there are no others than the ends. Those that tie go to the cheapest.
    """
    heights = [score - cost for cost, score in scaled(points)]
    return max(range(1, len(points) - 1), key=lambda i: (heights[i], -points[i][0]), default=None)
