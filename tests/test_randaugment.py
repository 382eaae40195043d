import dataclasses

import numpy as np
import pytest
from scipy import stats

from ppconvmixer import UserError, randaugment
from ppconvmixer.draws import Draws

CHANCE = 1e-4  # of a test of chance to fail where nothing is wrong; the draws are fixed, so it does or does not


def applied(text, count=6000):
    """Return what happened to each of ``count`` pictures: a list of (operation's number, share, sign, bicubic)."""
    policy = randaugment.parse(text)
    found = [[] for _ in range(count)]

    def spy(kind):
        def operation(pictures, *levels):
            for index, *level in zip(pictures.ravel().astype(int), *levels):
                found[index].append((kind, *level))
            return pictures

        return operation

    table = {name: spy(kind) for kind, name in enumerate(policy.table)}
    dataclasses.replace(policy, table=table)(
        np.arange(count, dtype=float).reshape(-1, 1, 1, 1), Draws(0, 0, range(count))
    )
    return found


def even(counts):
    return stats.chisquare(counts).pvalue > CHANCE


def independent(a, b):
    return stats.chi2_contingency(stats.contingency.crosstab(a, b).count).pvalue > CHANCE


def test_torchvision_draws_operations_and_signs_evenly_at_one_magnitude():
    found = np.array(applied("n3-m12"))
    assert found.shape == (6000, 3, 4)
    kinds, shares, signs, _ = found.transpose(2, 0, 1)
    assert even(np.bincount(kinds.ravel().astype(int), minlength=14))
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert independent(kinds[:, a], kinds[:, b])
    assert (shares == 0.4).all() and set(signs.ravel()) == {-1.0, 1.0}
    assert stats.binomtest(int((signs > 0).sum()), signs.size).pvalue > CHANCE
    assert independent(kinds.ravel(), signs.ravel())


def test_timm_draws_operations_magnitudes_signs_and_filters_as_defined():
    found = applied("rand-m9-mstd0.5-inc1")
    counts = np.bincount([len(steps) for steps in found], minlength=3)
    assert stats.chisquare(counts, [1500, 3000, 1500]).pvalue > CHANCE  # two operations, each applied or not
    kinds, shares, signs, bicubic = np.array([step for steps in found for step in steps]).T
    assert even(np.bincount(kinds.astype(int), minlength=15))
    for column in (signs > 0, bicubic > 0):
        assert stats.binomtest(int(column.sum()), len(column)).pvalue > CHANCE
        assert independent(kinds, column)
    inner = shares < 1  # two standard deviations above 9, all are cut off at 10
    assert stats.kstest(shares[inner] * 10, stats.truncnorm(-np.inf, 2, 9, 0.5).cdf).pvalue > CHANCE
    assert shares.max() == 1 and stats.binomtest(int((~inner).sum()), len(shares), stats.norm.sf(2)).pvalue > CHANCE
    a, b = np.array([(steps[0][1], steps[1][1]) for steps in found if len(steps) == 2]).T
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(len(a))


def test_what_the_parts_of_timms_text_mean():
    policy = randaugment.parse("rand-m7", (0.485, 0.456, 0.406))
    assert (policy.num_ops, policy.magnitude, policy.spread, policy.chance) == (2, 0.7, 0.0, 0.5)
    policy = randaugment.parse("rand-n3-p1-m0-mstd1.5")
    assert (policy.num_ops, policy.magnitude, policy.spread, policy.chance) == (3, 0.0, 0.15, 1.0)
    black = np.zeros((1, 8, 8, 3), np.uint8)
    for text, bits in (("rand-m9", 3), ("rand-m9-inc1", 1)):
        found = randaugment.parse(text).table["posterize"](black + 255, *np.array([[0.9], [1.0], [0.0]]))
        assert (found == (255 << (8 - bits)) % 256).all()
    shifted = randaugment.parse("rand-m9", (0.485, 0.456, 0.406)).table["translate_x"](
        black, *np.array([[1.0], [1.0], [1]])
    )
    np.testing.assert_array_equal(shifted[0, 0, -1], [124, 116, 104])  # ImageNet's mean colour


def test_operations_follow_one_another():
    batch = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), np.uint8)
    policy, found = randaugment.parse("n2-m12"), batch.copy()
    policy(found, Draws(0, 0, range(200)))
    operations = list(policy.table.values())
    for one, before, steps in zip(found, batch, applied("n2-m12", 200)):
        for kind, *levels in steps:
            before = operations[kind](before.reshape(1, 32, 32, 3), *np.array(levels)[:, None])
        np.testing.assert_array_equal(one, before[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (text, "want nN-mM")
            for text in ("", "n2", "m12", "n0-m3", "n2-m31", "n2-m12 ", "n2-m12-x", "N2-m12", "n²-m3")
        ),
        ("rand", "the magnitude is missing"),
        ("rand-n2", "the magnitude is missing"),
        ("rand-m11", "want as m a whole number from 0 to 10"),
        ("rand-m9.5", "want as m a whole number"),
        ("rand-m9-m8", "gives m twice"),
        ("rand-m9-mstd0", "want as mstd a number above 0"),
        ("rand-m9-mstd101", "want as mstd a number above 0, at most 10"),
        ("rand-m9-n0", "want as n a whole number"),
        ("rand-m9-p0", "want as p a number above 0"),
        ("rand-m9-p1.5", "want as p a number above 0, at most 1"),
        ("rand-m9-inc0", "want as inc 1"),
        ("rand-m9-inc", "want as inc 1"),
        ("rand-m", "want as m a whole number"),
        ("rand-m9-w0", "unknown part of augment.randaugment 'rand-m9-w0': 'w'; known: inc, m, mstd, n, p"),
        ("rand-m9-mmax10", "'mmax'"),
        ("rand-m9-", "unknown part"),
        ("rand-m-9", "want as m a whole number"),
    ],
)
def test_every_mistake_is_named(text, message):
    with pytest.raises(UserError, match="augment.randaugment") as error:
        randaugment.parse(text)
    assert message in str(error.value) and "\n" not in str(error.value)
