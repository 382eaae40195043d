"""The network out of Paddle's own operators, against its layers."""

import subprocess
import sys
import textwrap

import numpy as np
import paddle
import pytest
from conftest import (
    ROOT,
    SHAPES,
    altered_networks,
    check_evaluation_and_frozen_norms,
    check_made_static,
    check_second_way_back,
    check_step,
    check_the_same_bits,
    network,
    step,
    used,
)

from ppconvmixer.ops import build, mixer, rewrite

if paddle.get_device() != "cpu":
    paddle.set_device("cpu")

SHAPE = {"dim": 16, "depth": 2, "kernel_size": 5, "patch_size": 2}


@pytest.fixture
def without_operator(monkeypatch):
    monkeypatch.setenv("PPCONVMIXER_OPS", "0")
    build.library.cache_clear()
    yield
    build.library.cache_clear()


@pytest.mark.parametrize("act", ["gelu", "relu"])
@pytest.mark.parametrize("run", [rewrite.RUN, 2000])
@pytest.mark.parametrize("case", SHAPES)
def test_a_step_is_as_near_to_float64_as_the_layers(monkeypatch, case, run, act):
    """With all channels at once, and in runs of a few, the last of them shorter."""
    monkeypatch.setattr(rewrite, "RUN", run)
    check_step(case, act, rewrite.mix, pooled=run == 2000)


@pytest.mark.parametrize("pooled", [False, True])
def test_evaluation_and_frozen_norms(pooled):
    check_evaluation_and_frozen_norms(rewrite.mix, pooled)


def test_the_whole_line_of_gelu():
    """Values and slopes from -20 to 20, as near as Paddle's error function is."""
    from math import erf, erfc, exp, pi, sqrt

    z = np.linspace(-20, 20, 20_001).astype(np.float32)
    value, slope = (t.numpy() for t in rewrite._activate(paddle.to_tensor(z), relu=False, keep=True))
    exact = np.array([x * 0.5 * erfc(-x / sqrt(2)) for x in z.astype(float)])
    slopes = np.array([0.5 * (1 + erf(x / sqrt(2))) + x * exp(-x * x / 2) / sqrt(2 * pi) for x in z.astype(float)])
    assert (np.abs(value - exact) / np.maximum(np.abs(z), 0.1)).max() < 3e-7
    assert np.abs(slope - slopes).max() < 3e-7
    alone, nothing = rewrite._activate(paddle.to_tensor(z), relu=False, keep=False)
    assert nothing is None and (alone.numpy() == value).all()


def test_what_is_frozen_costs_nothing_on_the_way_back(monkeypatch, without_operator):
    """Neither slopes are kept below the lowest trained layer, nor is a gradient computed; the rest is as the layers'."""
    kept, gone = [], []
    activate = rewrite._activate
    monkeypatch.setattr(rewrite, "_activate", lambda z, relu, keep: (kept.append(keep), activate(z, relu, keep))[1])
    for half in (rewrite._Pointwise, rewrite._Depthwise):
        original = half.backward
        back = staticmethod(lambda *a, original=original: (gone.append(1), original(*a))[1])
        monkeypatch.setattr(half, "backward", back)
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32))
    for layers in range(5):
        found = []
        for by_layers in (True, False):
            model = network(**SHAPE, num_classes=7)
            model.freeze(layers)
            if by_layers:
                model.stem.register_forward_pre_hook(lambda *_: None)
            kept.clear(), gone.clear()
            (model(images) ** 2).sum().backward()
            found.append({name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None})
            found[-1] |= {n: v.numpy() for n, v in model.state_dict().items() if n.endswith(("_mean", "_variance"))}
        trained = 5 - min(2 * layers - 1 if layers else 0, 5)  # of the stem and two halves of two blocks
        assert kept == [False] * (5 - trained) + [True] * trained and len(gone) == trained
        theirs, ours = found
        assert set(ours) == set(theirs)
        for name, value in theirs.items():
            # A bias before a norm has no gradient but roundings of those around it.
            size = max(np.abs(v).max() for n, v in theirs.items() if n.split(".")[0] == name.split(".")[0])
            np.testing.assert_allclose(ours[name], value, rtol=0, atol=2e-5 * size, err_msg=name)


def test_one_parameter_may_be_frozen(without_operator):
    model = network(**SHAPE)
    for parameter in [*model.stem.parameters(), *model.blocks[0].parameters(), model.blocks[1][0].fn[0].weight]:
        parameter.stop_gradient = True
    model(paddle.randn([2, 3, 16, 16])).sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    trained = {name for name, p in model.named_parameters() if not p.stop_gradient}
    assert with_gradient == trained and "blocks.1.0.fn.0.bias" in trained


def test_drop_path_drops_what_the_layers_would(monkeypatch):
    """Also where the operator, which has none, is there."""
    images = np.random.default_rng(0).standard_normal((8, 3, 16, 16)).astype(np.float32)
    assert used(monkeypatch, rewrite, network(drop_path=0.6, **SHAPE), paddle.to_tensor(images))
    found = []
    for way, seed in ((None, 3), (rewrite.mix, 3), (rewrite.mix, 4)):
        paddle.seed(seed)
        found.append(step(network(drop_path=0.6, **SHAPE), images, way))
    theirs, ours, others = found
    for name, value in theirs.items():
        room = 2e-5 * max(1, np.abs(value).max())
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=room, err_msg=name)
    assert np.abs(others["out"] - ours["out"]).max() > 0.01


def test_the_gradient_of_pictures_is_that_of_the_layers(monkeypatch, without_operator):
    """`paddle.grad` asks for it alone, and may do so again; neither works where a PyLayer has other inputs."""
    x = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 3, 17, 20)).astype(np.float32))
    x.stop_gradient = False
    model = network(**SHAPE)
    assert not used(monkeypatch, rewrite, model, x)
    out = model(x)
    first, second = (paddle.grad(out[:, 0].sum(), x, retain_graph=True)[0].numpy() for _ in range(2))
    assert (first == second).all() and first.any()
    with paddle.no_grad():
        assert used(monkeypatch, rewrite, model, x)


def test_a_second_way_back_is_an_error(without_operator):
    check_second_way_back(network(**SHAPE))


def test_mixed_precision_is_the_layers_own():
    """Paddle has none on a CPU so far, so that its state is set by hand."""
    model, x = network(**SHAPE), paddle.randn([2, 3, 16, 16])
    assert mixer.replaceable(model, x)
    tracer = paddle.base.framework._dygraph_tracer()
    tracer._amp_level = paddle.base.core.AmpLevel.O1
    try:
        assert not mixer.replaceable(model, x)
    finally:
        tracer._amp_level = paddle.base.core.AmpLevel.O0


@pytest.mark.parametrize("full_graph", [False, True])
def test_a_network_made_static_has_the_layers(monkeypatch, without_operator, full_graph):
    check_made_static(monkeypatch, rewrite, network(**SHAPE), full_graph)


def test_the_same_bits_every_time():
    check_the_same_bits(rewrite.mix)


def test_the_network_uses_it_only_where_it_computes_the_same(monkeypatch, without_operator):
    x = paddle.randn([2, 3, 16, 16])
    assert used(monkeypatch, rewrite, network(**SHAPE), x)
    assert used(monkeypatch, rewrite, network(act="relu", **SHAPE), x)
    assert not used(monkeypatch, mixer, network(**SHAPE), x)
    for model in altered_networks(**SHAPE):
        assert not used(monkeypatch, rewrite, model, x)
    assert not used(monkeypatch, rewrite, network(dtype="float64", **SHAPE), x.astype("float64"))
    assert not used(monkeypatch, rewrite, network(**{**SHAPE, "kernel_size": rewrite.LARGEST + 1}), x)


def test_the_network_leaves_it_where_there_is_the_operator(monkeypatch):
    if build.library() is None:
        pytest.skip("needs a C++ compiler")
    assert not used(monkeypatch, rewrite, network(**SHAPE), paddle.randn([2, 3, 16, 16]))


def test_a_saved_graph_has_the_layers(monkeypatch, without_operator, tmp_path):
    model = network(**SHAPE)
    model.eval()
    x = paddle.randn([2, 3, 16, 16])
    expected = model(x).numpy()
    monkeypatch.setattr(rewrite, "mix", None)
    paddle.jit.save(model, str(tmp_path / "m"), [paddle.static.InputSpec([None, 3, None, None], "float32")])
    found = paddle.jit.load(str(tmp_path / "m"))(x).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_training_without_the_operator_is_that_of_the_layers(monkeypatch, without_operator):
    """Five steps on the same pictures: weights and statistics, by their names in a checkpoint."""
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((5, 8, 3, 16, 16)).astype(np.float32), rng.integers(0, 10, (5, 8))
    states = []
    for by_layers in (True, False):
        model = network(num_classes=10, **SHAPE)
        if by_layers:
            model.stem.register_forward_pre_hook(lambda *_: None)
        assert used(monkeypatch, rewrite, model, paddle.to_tensor(images[0])) != by_layers
        optimizer = paddle.optimizer.Momentum(0.02, parameters=model.parameters())
        for x, y in zip(images, labels):
            paddle.nn.functional.cross_entropy(model(paddle.to_tensor(x)), paddle.to_tensor(y)).backward()
            optimizer.step()
            optimizer.clear_grad()
        states.append({name: value.numpy() for name, value in model.state_dict().items()})
    moved = network(num_classes=10, **SHAPE).state_dict()
    for name, value in states[0].items():
        room = 1e-4 * np.abs(value).max()
        np.testing.assert_allclose(states[1][name], value, rtol=0, atol=room, err_msg=name)
        assert np.abs(value - moved[name].numpy()).max() > (0 if name.endswith("bias") else 5 * room), name


def test_a_number_that_is_none_stays_none(without_operator):
    images = np.zeros((2, 3, 16, 16), np.float32)
    images[0, 0, 3, 3] = np.nan
    assert np.isnan(network(**SHAPE)(paddle.to_tensor(images)).numpy()).any()


def test_memory_is_bounded():
    """Full matrices of a 768 x 32 x 32 map would take 3 GiB; a map of two pictures takes 6 MiB."""
    code = """
        import resource
        import paddle, ppconvmixer
        from ppconvmixer.ops import rewrite

        def step(size):
            rewrite.mix(model, paddle.ones([2, 3, size, size]), True).sum().backward()
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        model = ppconvmixer.ConvMixer(768, 1, kernel_size=9, patch_size=1)
        print(-step(2) + step(32))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert int(done.stdout) < 128 << 10, done.stderr  # KiB; 94 MiB were seen, and 162 with all channels at once
