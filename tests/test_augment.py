"""What is drawn: as often, as far and as independently as the definitions say."""

import numpy as np
import pytest
from scipy import stats

from ppconvmixer import augment, operations, randaugment, transforms, zoo
from ppconvmixer.augment import Augment
from ppconvmixer.draws import Draws

SPEC = zoo.InputSpec(32, 1.0, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
CHANCE = 1e-4  # of a test of chance to fail where nothing is wrong; the draws are fixed, so it does or does not


def pictures(count, size=32):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


# --- draws --------------------------------------------------------------------------------------------


def test_draws_depend_on_seed_epoch_and_index_alone():
    indices = [7, 3, 40_000, 0]
    whole = Draws(1, 2, indices)
    for name, shape in (("a", ()), ("a", (5,)), ("b", (2, 3))):
        one_by_one = np.concatenate([Draws(1, 2, [i]).uniform(name, *shape) for i in indices])
        np.testing.assert_array_equal(whole.uniform(name, *shape), one_by_one)
    np.testing.assert_array_equal(whole.uniform("a"), whole.uniform("a", 3)[:, 0])  # more numbers, the same first one
    assert whole.generator("a", 2).random() == Draws(1, 2, [40_000]).generator("a", 0).random()
    seen = {Draws(s, e, [i]).uniform(name)[0] for s in range(5) for e in range(5) for i in range(5) for name in "ab"}
    seen.add(whole.generator("a", 0).random())
    assert len(seen) == 251


def test_draws_are_even_and_independent():
    first = Draws(0, 0, range(20_000)).uniform("a", 4)
    for other in (
        Draws(0, 1, range(20_000)).uniform("a", 4),
        Draws(1, 0, range(20_000)).uniform("a", 4),
        Draws(0, 0, range(20_000)).uniform("b", 4),
        np.roll(first, 1, axis=0),
        np.roll(first, 1, axis=1),
    ):
        for column in (first, other):
            assert stats.kstest(column.ravel(), "uniform").pvalue > CHANCE
        table = np.histogram2d(first.ravel(), other.ravel(), bins=16, range=((0, 1), (0, 1)))[0]
        assert stats.chisquare(table.ravel()).pvalue > CHANCE
    assert first.min() >= 0 and first.max() < 1


def test_normal_draws_are_normal():
    drawn = Draws(0, 0, range(20_000)).normal("a", 2)
    assert drawn.shape == (20_000, 2) and stats.kstest(drawn.ravel(), "norm").pvalue > CHANCE
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 4 / np.sqrt(20_000)


# --- erasing ------------------------------------------------------------------------------------------


def erased(settings, count=4000, size=48):
    images = np.full((count, 3, size, size), 9.0, np.float32)
    augment.erase(images, Draws(0, 0, range(count)), settings)
    return images


def test_erasing_takes_rectangles_of_the_area_and_ratio_defined():
    images = erased(Augment(erasing=0.25, erasing_mode="const"))
    gone = images[:, 0] == 0
    assert (images[:, 1:] == images[:, :1]).all() and set(np.unique(images)) == {0.0, 9.0}
    hit = gone.any(axis=(1, 2))
    assert stats.binomtest(int(hit.sum()), 4000, 0.25).pvalue > CHANCE
    heights, widths = gone[hit].any(axis=2).sum(axis=1), gone[hit].any(axis=1).sum(axis=1)
    areas, ratios = heights * widths / 48**2, widths / heights
    np.testing.assert_array_equal(gone[hit].sum(axis=(1, 2)), heights * widths)
    # Whole pixels: a side of 4 to 50 pixels is off by half a pixel at most. Of the limits, see the next test.
    assert areas.min() > 0.015 and areas.max() < 0.345 and abs(areas.mean() - (0.02 + 1 / 3) / 2) < 0.01
    assert 0.25 < ratios.min() < 0.4 and 2.7 < ratios.max() < 3.8 and abs(np.log(ratios).mean()) < 0.06
    corners = gone[hit][:, [0, 0, -1, -1], [0, -1, 0, -1]].mean(axis=0)
    assert corners.max() < 0.05 and gone[hit].any(axis=0).all()


@pytest.mark.parametrize(("mode", "largest", "tallest"), [("pixel", 1 / 3, 1 / 0.3), ("const", 0.33, 3.3)])
def test_rectangles_have_the_limits_of_timm_and_torchvision(monkeypatch, mode, largest, tallest):
    """Drawn for a picture so large that whole pixels do not matter: the area uniform, the log of the ratio uniform."""
    sides = []
    original = augment._rectangles
    monkeypatch.setattr(augment, "_rectangles", lambda *given: iter(sides.append(list(original(*given))) or ()))
    images = np.broadcast_to(np.float32(0), (400, 3, 10_000, 10_000))  # takes no memory; nothing is erased
    augment.erase(images, Draws(0, 0, range(400)), Augment(erasing=1.0, erasing_mode=mode))
    widths, heights = np.array([side[:2] for tries in sides for side in tries]).T
    areas, ratios = widths * heights / 1e8, np.log(heights / widths)
    assert stats.kstest(areas, stats.uniform(0.02, largest - 0.02).cdf).pvalue > CHANCE
    assert stats.kstest(ratios, stats.uniform(np.log(0.3), np.log(tallest / 0.3)).cdf).pvalue > CHANCE
    assert abs(areas.max() - largest) < 5e-4 and abs(np.exp(ratios.max()) - tallest) < 0.01


def test_jitter_draws_three_factors_and_an_order(monkeypatch):
    """torchvision's ``ColorJitter``: each factor uniform in [1 - c, 1 + c], all orders alike, all independent."""
    count, calls = 6000, []

    def note(operation, pictures, chosen, factors):
        calls.append((operation, chosen.copy(), factors.copy()))

    monkeypatch.setattr(augment.operations, "apply", note)
    augment.jitter(np.zeros((count, 1, 1, 3), np.uint8), Draws(0, 0, range(count)), 0.4)
    kinds = (operations.brightness, operations.contrast, operations.color)
    turns = np.full((3, count), -1)
    for place, (operation, chosen, _) in enumerate(calls):
        turns[kinds.index(operation), chosen] = place // 3
    assert (np.sort(turns, axis=0) == np.arange(3)[:, None]).all()  # each of the three once
    factors = [next(f for operation, _, f in calls if operation is kind) for kind in kinds]
    for kind, drawn in zip(kinds, factors):
        assert stats.kstest(drawn, stats.uniform(0.6, 0.8).cdf).pvalue > CHANCE
        assert all((f == drawn).all() for operation, _, f in calls if operation is kind)
    _, orders = np.unique(turns, axis=1, return_counts=True)
    assert len(orders) == 6 and stats.chisquare(orders).pvalue > CHANCE
    assert np.abs(np.corrcoef([*factors, *turns[:2]])[np.triu_indices(4, 1)]).max() < 4 / np.sqrt(count)


def test_erased_pixels_are_normal_noise():
    images = erased(Augment(erasing=1.0), 300)
    noise = images[images != 9]
    assert stats.kstest(noise[::37], "norm").pvalue > CHANCE
    assert len(np.unique(noise)) > 0.9 * len(noise) and abs(noise.std() - 1) < 0.01


# --- all together -------------------------------------------------------------------------------------


def test_a_sample_does_not_depend_on_its_batch():
    settings = Augment((0.5, 1.0), (0.8, 1.2), 0.5, "n2-m12", 0.4, 0.5)
    transform = transforms.train_transform(SPEC, settings)
    batch = pictures(40, 36)
    draws = Draws(5, 3, range(40))
    cut = np.stack([transform.crop(p, n) for p, n in zip(batch, transform.crop_numbers(draws, 40))])
    whole = transform.finish(cut, draws)
    for i in range(40):
        np.testing.assert_array_equal(transform(batch[i], Draws(5, 3, [i])), whole[i])


def test_the_order_is_that_of_the_official_script(monkeypatch):
    order = []
    for name in ("flip", "jitter", "erase"):
        monkeypatch.setattr(transforms, name, lambda images, *_, name=name: order.append((name, images.dtype.name)))
    monkeypatch.setattr(randaugment.RandAugment, "__call__", lambda *_: order.append(("randaugment", "uint8")))
    settings = Augment(hflip=0.5, randaugment="n2-m12", color_jitter=0.4, erasing=0.5)
    transforms.train_transform(SPEC, settings).finish(pictures(2), Draws(0, 0, [0, 1]))
    assert order == [("flip", "uint8"), ("randaugment", "uint8"), ("jitter", "uint8"), ("erase", "float32")]
