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


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lamb"])
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


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lamb"])
def test_every_layer_takes_its_share_of_the_learning_rate(name):
    """A tenth of the rate in a layer makes a tenth of the first step, decay and all."""
    moved = []
    for decay in (1.0, 0.5):
        paddle.seed(0)
        network = create_model("convmixer_tiny")
        tree = make(name, lr=0.1, weight_decay=0.1)
        tree = recipes.Recipe(**{**vars(tree), "finetune": recipes.Finetune(layer_decay=decay)})
        optimizer = create_optimizer(tree, network, [10])
        parameters = {n: p for n, p in network.named_parameters() if not p.stop_gradient}
        before = {n: p.numpy().astype(float) for n, p in parameters.items()}
        rng = np.random.default_rng(0)
        for p in parameters.values():
            p.grad = paddle.to_tensor(rng.standard_normal(tuple(p.shape)).astype(np.float32))
        optimizer.step()
        moved.append({n: p.numpy() - before[n] for n, p in parameters.items()})
    share = {"stem": 0.5**5, **{f"blocks.{i}": 0.5 ** (4 - i) for i in range(4)}, "head": 1.0}
    for n, whole in moved[0].items():
        (rate,) = (value for layer, value in share.items() if n.startswith(f"{layer}."))
        assert np.abs(whole).max() > 1e-4
        np.testing.assert_allclose(moved[1][n], rate * whole, rtol=1e-4, atol=2e-7, err_msg=n)  # of weights up to 2


def test_lamb_is_the_papers():
    """Two steps in float64 (You et al. 2020, algorithm 2); what is not decayed is not scaled by its norm either."""
    network = create_model("convmixer_tiny")
    optimizer = create_optimizer(make("lamb", lr=0.1, weight_decay=0.3, epsilon=1e-6), network, [10])
    parameters = {n: p for n, p in network.named_parameters() if not p.stop_gradient}
    expected = {n: p.numpy().astype(float) for n, p in parameters.items()}
    moments = {n: [np.zeros(v.shape), np.zeros(v.shape)] for n, v in expected.items()}
    rng = np.random.default_rng(0)
    for step in (1, 2):
        for n, p in parameters.items():
            gradient = rng.standard_normal(tuple(p.shape))
            p.grad = paddle.to_tensor(gradient.astype(np.float32))
            m, v = moments[n]
            m += 0.1 * (gradient - m)
            v += 0.001 * (gradient**2 - v)
            update = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-6)
            if p.ndim > 1:
                update += 0.3 * expected[n]
                update *= np.linalg.norm(expected[n]) / np.linalg.norm(update)
            expected[n] = expected[n] - 0.1 * update
        optimizer.step()
    for n, p in parameters.items():
        np.testing.assert_allclose(p.numpy(), expected[n], rtol=0, atol=2e-5 * np.abs(expected[n]).max(), err_msg=n)


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
