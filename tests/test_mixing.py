import numpy as np
import paddle
import pytest
from scipy import stats

from ppconvmixer import datasets, distributed, losses, mixing, zoo
from ppconvmixer.augment import Augment
from ppconvmixer.draws import Draws
from ppconvmixer.loader import Samples, TrainBatches
from ppconvmixer.mixing import Mixing
from ppconvmixer.transforms import train_transform

CHANCE = 1e-4  # of a test of chance to fail where nothing is wrong; the draws are fixed, so it does or does not
BATCHES = 3000
SPEC = zoo.InputSpec(8, 1.0, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def draws(number):
    return Draws(0, 0, [number])


def marked(count, size):
    """Pictures of one level each, 1, 2, 3, ..., which tell in a mixture where a pixel is from."""
    return np.broadcast_to(
        np.arange(1, count + 1, dtype=np.float32)[:, None, None, None], (count, 3, size, size)
    ).copy()


def kept(settings, size=64):
    """Return for many batches the share of their own that targets keep, and the pictures of the first pair."""
    labels, shares, pictures = np.arange(2), [], []
    for number in range(BATCHES):
        images = marked(2, size)
        targets = Mixing(settings, 2)(images, labels, draws(number))
        np.testing.assert_allclose(
            targets, [[targets[0, 0], 1 - targets[0, 0]], [1 - targets[0, 0], targets[0, 0]]], atol=1e-6
        )
        shares.append(targets[0, 0])
        pictures.append(images[:, 0])
    return np.array(shares), np.array(pictures)


# --- mixup --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0])
def test_mixup_keeps_a_share_that_is_distributed_by_beta(alpha):
    shares, pictures = kept(Augment(mixup=alpha), 1)
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > CHANCE
    np.testing.assert_allclose(pictures[:, 0, 0, 0], shares * 1 + (1 - shares) * 2, atol=1e-6)
    np.testing.assert_allclose(pictures[:, 1, 0, 0], shares * 2 + (1 - shares) * 1, atol=1e-6)


def test_neighbours_are_partners_and_an_odd_one_out_stays():
    images, labels = marked(5, 4), np.array([0, 1, 2, 3, 4])
    targets = Mixing(Augment(mixup=1.0), 5)(images, labels, draws(0))
    share = targets[0, 0]
    assert 0.01 < share < 0.99
    own, others = np.arange(1, 6), np.array([2, 1, 4, 3, 5])
    np.testing.assert_allclose(images[:, 0, 0, 0], share * own + (1 - share) * others, rtol=1e-6)
    expected = share * np.eye(5) + (1 - share) * np.eye(5)[others - 1]
    np.testing.assert_allclose(targets, expected, atol=1e-6)
    assert targets.dtype == images.dtype == np.float32


# --- cutmix -------------------------------------------------------------------------------------------


def test_cutmix_pastes_a_rectangle_and_targets_have_its_true_area():
    shares, pictures = kept(Augment(cutmix=1.0))
    pasted = pictures[:, 0] == 2
    np.testing.assert_array_equal(pictures[:, 1] == 1, pasted)  # the same place in both
    np.testing.assert_allclose(1 - pasted.mean(axis=(1, 2)), shares, atol=1e-6)
    heights, widths = pasted.any(axis=2).sum(axis=1), pasted.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(heights * widths, pasted.sum(axis=(1, 2)))
    # A rectangle that no border cuts has the picture's shape; the others are cut, so that more is kept than drawn.
    inner = ~(
        pasted[:, 0].any(axis=1)
        | pasted[:, -1].any(axis=1)
        | pasted[:, :, 0].any(axis=1)
        | pasted[:, :, -1].any(axis=1)
    )
    assert inner.sum() > 300 and (heights[inner] == widths[inner]).all()
    assert shares.mean() > 0.55 and pasted.any(axis=0).all()


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_side_of_the_rectangle_and_its_place_are_those_defined(alpha):
    """The side is the root of 1 - Beta, the middle anywhere: far from its borders, a picture shows both uncut."""
    rng = np.random.default_rng(0)
    side = 10_001
    shares = rng.beta(alpha, alpha, 4000) * 0.2 + 0.8
    boxes = np.array([mixing.cut_box(side, 2 * side, share, rng) for share in shares])
    top, bottom, left, right = boxes.T
    whole = (top > 0) & (bottom < side) & (left > 0) & (right < 2 * side)
    assert whole.sum() > 800
    np.testing.assert_allclose((bottom - top)[whole], np.sqrt(1 - shares[whole]) * side, atol=2)
    np.testing.assert_allclose((right - left)[whole], np.sqrt(1 - shares[whole]) * 2 * side, atol=2)
    half = np.sqrt(1 - shares) * side / 2
    middle = np.where(top > 0, top + half, bottom - half)
    assert stats.kstest(middle / side, "uniform").pvalue > CHANCE
    assert boxes.min() == 0 and bottom.max() == side and right.max() == 2 * side


# --- which, and how often -----------------------------------------------------------------------------


def test_batches_are_mixed_and_switched_as_often_as_asked():
    shares, pictures = kept(Augment(mixup=1.0, cutmix=1.0, mix_prob=0.7, mix_switch_prob=0.3), 8)
    still = (pictures[:, 0] == 1).all(axis=(1, 2)) & (shares == 1)
    blended = (pictures[:, 0] != pictures[:, 0].round()).all(axis=(1, 2))
    cut = ~still & ~blended
    # Of the rectangles, those of a side below 2 of 8 pixels cut nothing: 1 - share < 1/16.
    expected = BATCHES * np.array([0.3 + 0.7 * 0.3 / 16, 0.7 * 0.7, 0.7 * 0.3 * 15 / 16])
    assert stats.chisquare([still.sum(), blended.sum(), cut.sum()], expected).pvalue > CHANCE


def test_each_alone_is_the_only_one():
    _, pictures = kept(Augment(mixup=1.0), 8)
    assert (pictures == pictures[:, :, :1, :1]).all()
    _, pictures = kept(Augment(cutmix=1.0), 8)
    assert set(np.unique(pictures)) == {1.0, 2.0}


# --- targets ------------------------------------------------------------------------------------------


def test_smoothing_is_that_of_whole_labels():
    """Soft targets without mixing give the loss that Paddle's label smoothing gives."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((6, 5)).astype(np.float32)
    labels = rng.integers(0, 5, 6)
    for smoothing in (0.0, 0.1):
        targets = losses.soft_targets(labels, 5, smoothing)
        np.testing.assert_allclose(targets, (1 - smoothing) * np.eye(5)[labels] + smoothing / 5, atol=1e-7)
        whole = losses.create_loss(smoothing)(paddle.to_tensor(logits), paddle.to_tensor(labels))
        soft = losses.create_loss(smoothing, soft=True)(paddle.to_tensor(logits), paddle.to_tensor(targets))
        wide = logits.astype(np.float64)
        expected = -(targets * (wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))).sum(axis=1).mean()
        np.testing.assert_allclose([float(whole), float(soft)], expected, rtol=1e-5)
        rough = paddle.to_tensor(logits.astype(np.float16))  # as mixed precision gives them
        for loss, wanted in ((losses.create_loss(smoothing), labels), (losses.create_loss(soft=True), targets)):
            found = loss(rough, paddle.to_tensor(wanted))
            assert found.dtype == paddle.float32 and abs(float(found) - expected) < 1e-2


def test_mixed_targets_are_smoothed_too():
    targets = Mixing(Augment(mixup=1.0), 4, 0.2)(marked(2, 2), np.array([0, 3]), draws(0))
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(targets[:, 1:3], 0.05, rtol=1e-6)
    assert targets[0, 0] == pytest.approx(targets[1, 3]) and (targets >= 0.05 - 1e-6).all()


def test_accuracy_counts_the_class_with_the_larger_share():
    accuracy = paddle.metric.Accuracy()
    targets = np.array([[0.7, 0.3, 0], [0.2, 0.8, 0]], np.float32)
    logits = np.array([[1, 0, 0], [1, 0, 0]], np.float32)
    accuracy.update(accuracy.compute(paddle.to_tensor(logits), paddle.to_tensor(targets)))
    assert accuracy.accumulate() == 0.5


# --- in the loader ------------------------------------------------------------------------------------


def batches(monkeypatch, rank, world, batch_size, skip=0):
    monkeypatch.setattr(distributed, "RANK", rank)
    monkeypatch.setattr(distributed, "WORLD", world)
    settings = Augment((0.5, 1.0), hflip=0.5, randaugment="n2-m12", mixup=0.5, cutmix=0.5)
    pictures = datasets.digits().subset(range(50))
    samples = Samples(pictures, train_transform(SPEC, settings), seed=3)
    return list(TrainBatches(samples, batch_size, 0, epoch=2, skip=skip, mixing=Mixing(settings, 10, 0.1)))


def test_several_processes_mix_what_one_does(monkeypatch):
    one = batches(monkeypatch, 0, 1, 16)
    assert len(one) == 3 and one[0][1].shape == (16, 10) and one[0][1].dtype == np.float32
    assert any(0.2 < targets.max(axis=1).min() < 0.85 for _, targets in one)
    for world, size in ((2, 8), (4, 4), (8, 2)):
        ranks = [batches(monkeypatch, rank, world, size) for rank in range(world)]
        for number, (images, targets) in enumerate(one):
            for part, whole in ((0, images), (1, targets)):
                pairs = [rank[number][part].reshape(size // 2, 2, *whole.shape[1:]) for rank in ranks]
                np.testing.assert_array_equal(np.stack(pairs, axis=1).reshape(whole.shape), whole)


def test_a_resumed_epoch_mixes_as_an_unbroken_one(monkeypatch):
    whole, rest = batches(monkeypatch, 0, 1, 16), batches(monkeypatch, 0, 1, 16, skip=1)
    assert len(rest) == 2
    for (images, targets), (same, equal) in zip(whole[1:], rest):
        np.testing.assert_array_equal(images, same)
        np.testing.assert_array_equal(targets, equal)


def test_what_is_erased_is_erased_of_the_mixture():
    """As in timm: a rectangle of noise or of the mean colour is nobody's share."""
    from ppconvmixer import augment

    def made(**more):
        settings = Augment(mixup=0.5, **more)
        samples = Samples(datasets.digits().subset(range(32)), train_transform(SPEC, settings), seed=3)
        return next(iter(TrainBatches(samples, 16, 0, epoch=2, mixing=Mixing(settings, 10))))

    erasing = {"erasing": 0.5, "erasing_mode": "const"}
    (mixed, targets), (found, same) = made(), made(**erasing)
    order = np.random.default_rng((3, 2)).permutation(32)[:16]
    augment.erase(mixed, Draws(3, 2, order), Augment(**erasing))
    np.testing.assert_array_equal(found, mixed)
    np.testing.assert_array_equal(targets, same)
    assert 0 < (found == 0).any(axis=(1, 2, 3)).sum() < 16
