"""Successive halving, and what is best where two things count: arithmetic, without networks."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ppconvmixer import UserError
from ppconvmixer.insight import pareto
from ppconvmixer.insight.design_space import recommend
from ppconvmixer.insight.halving import Rung, announced, halve, plan

points = st.lists(st.tuples(st.integers(1, 9).map(float), st.integers(0, 9).map(float)), min_size=1, max_size=12)


# --- the plan ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "budget", "eta", "finalists", "rungs"),
    [
        (12, 60, 2, 3, [(12, 1), (6, 3), (3, 10)]),  # a third of the budget for each: 12 + 18 + 30
        (6, 48, 2, 3, [(6, 4), (3, 8)]),
        (9, 54, 3, 1, [(9, 2), (3, 6), (1, 18)]),
        (4, 10, 2, 3, [(4, 2)]),  # 2 would be fewer than 3, so all are finalists
        (1, 7, 2, 1, [(1, 7)]),
    ],
)
def test_every_rung_has_its_share(count, budget, eta, finalists, rungs):
    found = plan(count, budget, eta, finalists)
    assert [(rung.candidates, rung.epochs) for rung in found] == rungs
    assert announced(found, budget).endswith(f"{rungs[-1][0] * rungs[-1][1]} epochs")


def test_a_rung_without_an_epoch_is_refused():
    with pytest.raises(UserError, match="budget of 81 epochs is too small for 27 candidates; want at least 108"):
        plan(27, 81, 3, 1)  # 81 / (27 * 4) is no epoch


@given(st.integers(1, 40), st.integers(1, 300), st.integers(2, 4), st.integers(1, 6))
def test_the_budget_is_kept_and_used(count, budget, eta, finalists):
    try:
        rungs = plan(count, budget, eta, finalists)
    except UserError as error:
        enough = int(str(error).rsplit(maxsplit=1)[1])
        assert enough > budget and plan(count, enough, eta, finalists)
        with pytest.raises(UserError):
            plan(count, enough - 1, eta, finalists)
        return
    assert rungs[0].candidates == count
    assert 0 <= budget - sum(rung.cost for rung in rungs) < rungs[-1].candidates  # not an epoch more for each
    for rung, following in zip(rungs, rungs[1:]):
        assert rung.cost <= budget / len(rungs)
        assert following.epochs > rung.epochs and following.candidates == math.ceil(rung.candidates / eta) >= finalists
    assert rungs[-1].candidates == 1 or math.ceil(rungs[-1].candidates / eta) < finalists


# --- the tournament ----------------------------------------------------------------------------------


RUNGS = [Rung(6, 1), Rung(3, 2), Rung(2, 5)]


class Trainer:
    """Remembers what it has trained, as run folders do; what it returns depends on candidate and epochs."""

    def __init__(self, stop_after=None):
        self.known, self.asked, self.stop_after = {}, [], stop_after

    def __call__(self, candidate, epochs):
        self.asked.append((candidate, epochs))
        if (candidate, epochs) not in self.known:
            if self.stop_after is not None and len(self.known) == self.stop_after:
                raise KeyboardInterrupt
            self.known[candidate, epochs] = {"a": 0.1, "b": 0.5, "c": 0.3, "d": 0.5, "e": 0.7, "f": 0.2}[candidate] - (
                0.6 if (candidate, epochs) == ("e", 2) else 0.0  # the favourite falls behind in the second rung
            )
        return self.known[candidate, epochs]


def best_first(scores):
    return sorted(scores, key=lambda candidate: -scores[candidate])


def test_the_best_go_on_and_those_that_tie_by_their_order():
    trainer = Trainer()
    results = halve("abcdef", RUNGS, trainer, best_first)
    assert [list(result) for result in results] == [[*"abcdef"], [*"bde"], [*"bd"]]
    assert trainer.asked == [*((c, 1) for c in "abcdef"), *((c, 2) for c in "bde"), ("b", 5), ("d", 5)]
    assert results[1]["e"] == pytest.approx(0.1)


@pytest.mark.parametrize("stop_after", range(11))
def test_going_on_repeats_nothing_and_ends_alike(stop_after):
    trainer = Trainer(stop_after)
    with pytest.raises(KeyboardInterrupt):
        halve("abcdef", RUNGS, trainer, best_first)
    assert len(trainer.known) == stop_after
    trainer.stop_after = None
    whole = Trainer()
    assert halve("abcdef", RUNGS, trainer, best_first) == halve("abcdef", RUNGS, whole, best_first)
    assert trainer.known == whole.known and len(trainer.known) == sum(rung.candidates for rung in RUNGS)


def test_who_failed_is_out():
    results = halve("abcd", [Rung(4, 1), Rung(3, 2)], lambda name, epochs: None if name in "ab" else 0.5, best_first)
    assert results == [{"a": None, "b": None, "c": 0.5, "d": 0.5}, {"c": 0.5, "d": 0.5}]


def test_the_order_decides():
    found = halve([1, 2, 3], [Rung(3, 1), Rung(1, 2)], lambda name, epochs: name / 10, lambda s: sorted(s))
    assert list(found[1]) == [1]


# --- the front ---------------------------------------------------------------------------------------


def dominated(point, others):
    """By the definition, one by one."""
    return any(c <= point[0] and s >= point[1] and (c < point[0] or s > point[1]) for c, s in others)


@given(points)
def test_the_front_is_what_nothing_dominates(cloud):
    found = pareto.front(cloud)
    assert set(found) == {i for i, point in enumerate(cloud) if not dominated(point, cloud)}
    assert [cloud[i] for i in found] == sorted(cloud[i] for i in found)


@given(points)
def test_the_order_is_front_after_front_from_the_best_score_on(cloud):
    found, left = pareto.order(cloud), list(range(len(cloud)))
    assert sorted(found) == left
    while left:
        layer = [i for i in left if not dominated(cloud[i], [cloud[j] for j in left])]
        head, found = found[: len(layer)], found[len(layer) :]
        assert set(head) == set(layer)
        assert cloud[head[0]] == max((cloud[i] for i in layer), key=lambda point: (point[1], -point[0]))
        left = [i for i in left if i not in layer]


def test_the_first_few_are_spread_over_the_costs():
    line = [(float(2**i), float(i)) for i in range(9)]  # straight in the logarithm: all are on the front
    assert pareto.order(line)[:3] == [8, 0, 4] and set(pareto.order(line)[3:5]) == {2, 6}
    assert pareto.order([*line, (256.0, 7.5)])[-1] == 9


@given(points)
def test_the_knee_is_farthest_from_the_line(cloud):
    front = [cloud[i] for i in pareto.front(cloud)]
    assume(len(set(front)) > 1)
    place = np.array([(np.log(cost), score) for cost, score in front])
    place = (place - place.min(0)) / np.ptp(place, 0)
    first, last = place[0], place[-1]
    along = (last - first) / np.linalg.norm(last - first)
    above = np.array([(p - first) @ [-along[1], along[0]] for p in place])  # signed distance, left of the line
    found = pareto.knee(front)
    if len(front) == 2:
        assert found is None
    else:
        assert 0 < found < len(front) - 1 and above[found] == pytest.approx(above[1:-1].max(), abs=1e-12)


def test_the_ends_of_a_front_are_no_knee():
    assert pareto.knee([(1.0, 0.5)]) is None and pareto.knee([(1.0, 0.5)] * 2) is None
    assert pareto.knee([(1.0, 0.5), (5.0, 0.52), (9.0, 0.9)]) == 1  # below the line


FRONT = [(1.0, 0.50), (2.0, 0.85), (3.0, 0.93), (4.0, 0.94), (9.0, 0.95)]


@pytest.mark.parametrize(
    ("tolerance", "light", "balanced"),
    [
        (0.0, 4, None),  # nobody but the best itself
        (0.01, 3, None),  # two points: the line between them is the front
        (0.02, 2, 3),  # heights above the line from 3 ms to 9 ms: 0, 0.5 - ln(4/3)/ln 3 = 0.24, 0
        (0.10, 1, 2),  # (0.93 - 0.85)/0.1 - ln(3/2)/ln(9/2) = 0.53
        (1.0, 0, 1),  # (0.85 - 0.5)/0.45 - ln 2/ln 9 = 0.462, a little more than 0.956 - 0.5 of the next
    ],
)
def test_three_are_recommended(tolerance, light, balanced):
    assert recommend(FRONT, tolerance) == {"light": light, "balanced": balanced, "accurate": 4}


def test_the_first_of_equal_points_is_taken():
    assert recommend([(1.0, 0.9), (1.0, 0.9)], 0.0) == {"light": 0, "balanced": None, "accurate": 0}
