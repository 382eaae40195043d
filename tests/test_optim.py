import numpy as np
import paddle
import pytest

from ppconvmixer import recipe as recipes
from ppconvmixer.optim import create_optimizer, lr_factor
from ppconvmixer.zoo import create_model


def factors(steps, counts, name, **settings):
    """The shares of the learning rate of the first ``steps`` steps of a run."""
    schedule = recipes.Schedule(name, **settings)
    return [lr_factor(schedule, step, counts) for step in range(steps)]


def test_onecycle_is_the_official_curve():
    """np.interp over epochs, as the official script computes it at the end of every step."""
    epochs, steps = 25, 98
    for step in (0, 1, 500, 979, 980, 1500, 1960, 2449):
        t = (step + 1) / steps
        official = np.interp([t], [0, epochs * 2 // 5, epochs * 4 // 5, epochs], [0, 0.05, 0.05 / 20.0, 0])[0]
        ours = lr_factor(recipes.Schedule("onecycle"), step, [steps] * epochs)
        assert 0.05 * ours == pytest.approx(official, abs=1e-12)


def test_cosine_and_constant_with_warmup():
    cosine = factors(111, [10] * 11, "cosine", warmup_epochs=1)
    assert cosine[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert cosine[10] == 1 and cosine[60] == pytest.approx(0.5) and cosine[110] == pytest.approx(0)
    assert all(a >= b for a, b in zip(cosine[10:], cosine[11:]))
    assert factors(4, [4, 4], "constant", warmup_epochs=0.5) == [0.5, 1, 1, 1]


def test_the_steps_of_step():
    assert factors(12, [2] * 6, "step", milestones=(1, 4), gamma=0.5) == [1, 1] + [0.5] * 6 + [0.25] * 4
    assert factors(12, [2] * 6, "step", every=2, gamma=0.5) == [1] * 4 + [0.5] * 4 + [0.25] * 4
    warm = factors(12, [2] * 6, "step", warmup_epochs=1.5, milestones=(3,), gamma=0.1)
    assert warm == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1] + [0.1] * 6)


def test_epochs_of_different_length():
    """Warm-up and milestones end with the epochs they name; cosine goes by steps."""
    counts = [2, 2, 6, 6]
    assert factors(16, counts, "step", warmup_epochs=1, milestones=(2, 3), gamma=0.5)[:5] == [0.5, 1, 1, 1, 0.5]
    assert factors(16, counts, "step", milestones=(2, 3), gamma=0.5)[9:11] == [0.5, 0.25]
    assert factors(5, counts, "constant", warmup_epochs=2.5) == pytest.approx([(i + 1) / 7 for i in range(5)])
    cosine = factors(17, counts, "cosine")
    assert cosine == pytest.approx([0.5 * (1 + np.cos(np.pi * step / 16)) for step in range(17)])


def make(name, **settings):
    tree = {
        "model": recipes.Model("convmixer_tiny"),
        "data": recipes.Data("digits", val_fraction=0.25),
        "optimizer": recipes.Optimizer(name, **settings),
        "schedule": recipes.Schedule("constant"),
        "train": recipes.Train(epochs=2, batch_size=4),
    }
    return recipes.Recipe(**tree)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_only_matrices_and_kernels_are_decayed(name):
    """With a zero gradient, only the decay can move a weight."""
    network = create_model("convmixer_tiny")
    optimizer = create_optimizer(make(name, lr=0.1, weight_decay=0.5), network, [10])
    before = {n: p.numpy().copy() for n, p in network.named_parameters()}
    (sum(p.sum() for p in network.parameters() if not p.stop_gradient) * 0.0).backward()
    optimizer.step()
    for n, p in network.named_parameters():
        if not p.stop_gradient:
            assert np.array_equal(p.numpy(), before[n]) == (p.ndim == 1), n


def test_the_gradient_is_clipped():
    network = create_model("convmixer_tiny")
    optimizer = create_optimizer(make("sgd", lr=1.0, clip_norm=0.5), network, [10])
    before = [p.numpy().copy() for p in network.parameters() if not p.stop_gradient]
    (network(paddle.randn([4, 3, 32, 32])).sum() * 100).backward()
    optimizer.step()
    after = [p.numpy() for p in network.parameters() if not p.stop_gradient]
    moved = np.sqrt(sum(((a - b).astype(np.float64) ** 2).sum() for a, b in zip(after, before)))
    assert moved == pytest.approx(0.5, rel=1e-3)


def test_the_schedule_moves_by_the_step():
    network = create_model("convmixer_tiny")
    tree = make("sgd", lr=0.2)
    tree = recipes.Recipe(**{**vars(tree), "schedule": recipes.Schedule("onecycle")})
    optimizer = create_optimizer(tree, network, [10, 10])
    rates = []
    for _ in range(20):
        rates.append(optimizer.get_lr())
        optimizer._learning_rate.step()
    assert rates == pytest.approx([0.2 * f for f in factors(20, [10, 10], "onecycle")])
