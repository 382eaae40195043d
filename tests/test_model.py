import math

import numpy as np
import paddle
import pytest

from ppconvmixer import ConvMixer, UserError, create_model
from ppconvmixer.model import Residual, layer_id


def numpy_convmixer(state, x, kernel, patch, depth, act):
    """ConvMixer in float64, written from the formula of the paper, as a reference."""
    s = {name: np.asarray(value, np.float64) for name, value in state.items()}

    def activate(v):
        return np.maximum(v, 0) if act == "relu" else v * 0.5 * (1 + np.vectorize(math.erf)(v / math.sqrt(2)))

    def norm(v, name):
        mean, var, weight, bias = (
            s[f"{name}.{leaf}"][:, None, None] for leaf in ("_mean", "_variance", "weight", "bias")
        )
        return (v - mean) / np.sqrt(var + 1e-5) * weight + bias

    def bias(name):
        return s[f"{name}.bias"][:, None, None]

    n, _, height, width = x.shape
    rows, columns = height // patch, width // patch
    patches = x[:, :, : rows * patch, : columns * patch].reshape(n, -1, rows, patch, columns, patch)
    v = np.einsum("ncrpsq,dcpq->ndrs", patches, s["stem.0.weight"]) + bias("stem.0")
    v = norm(activate(v), "stem.2")
    before = (kernel - 1) // 2
    for i in range(depth):
        padded = np.pad(v, ((0, 0), (0, 0), *[(before, kernel - 1 - before)] * 2))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))
        weight = s[f"blocks.{i}.0.fn.0.weight"][:, 0]
        mixed = np.einsum("ncrspq,cpq->ncrs", windows, weight) + bias(f"blocks.{i}.0.fn.0")
        v = norm(activate(mixed), f"blocks.{i}.0.fn.2") + v
        v = np.einsum("ncrs,dc->ndrs", v, s[f"blocks.{i}.1.weight"][:, :, 0, 0]) + bias(f"blocks.{i}.1")
        v = norm(activate(v), f"blocks.{i}.3")
    return v.mean(axis=(2, 3)) @ s["head.weight"] + s["head.bias"]


def randomised(**kwargs):
    paddle.seed(1)
    model = ConvMixer(**kwargs)
    rng = np.random.default_rng(0)
    for name, value in model.state_dict().items():
        noise = rng.standard_normal(tuple(value.shape)).astype(np.float32)
        if name.endswith(("_mean", "_variance", ".2.weight", ".3.weight")):
            value.set_value(np.exp(0.3 * noise) if name.endswith(("_variance", "weight")) else 0.1 * noise)
    model.eval()
    return model


@pytest.mark.parametrize("kernel", [3, 4, 5, 9])
@pytest.mark.parametrize("act", ["gelu", "relu"])
def test_forward_is_the_papers_formula(kernel, act):
    model = randomised(dim=8, depth=2, kernel_size=kernel, patch_size=3, in_chans=2, num_classes=5, act=act)
    x = np.random.default_rng(1).standard_normal((2, 2, 20, 17)).astype(np.float32)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    expected = numpy_convmixer(state, x.astype(np.float64), kernel, 3, 2, act)
    found = model(paddle.to_tensor(x)).numpy()
    # float32 keeps 7 digits; a few dozen roundings along the depth cost one or two of them
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_names_are_timms():
    names = set(ConvMixer(4, 1, num_classes=2).state_dict())
    block = [f"blocks.0.{part}" for part in ("0.fn.0", "0.fn.2", "1", "3")]
    leaves = {f"{m}.{leaf}" for m in ["stem.0", "stem.2", *block, "head"] for leaf in ("weight", "bias")}
    norms = {f"{m}.{leaf}" for m in ("stem.2", block[1], block[3]) for leaf in ("_mean", "_variance")}
    assert names == leaves | norms


def test_pieces_make_the_whole():
    model = randomised(dim=8, depth=1, num_classes=4)
    x = paddle.randn([2, 3, 30, 29])
    features = model.forward_features(x)
    assert features.shape == [2, 8, 4, 4]
    pooled = model.forward_head(features, pre_logits=True)
    np.testing.assert_allclose(pooled.numpy(), features.numpy().mean((2, 3)), rtol=1e-5, atol=1e-6)
    # On a CPU the whole takes the means in other order than the pieces.
    np.testing.assert_allclose(model.forward_head(features).numpy(), model(x).numpy(), rtol=0, atol=1e-6)


def test_reset_classifier_changes_the_head_alone():
    model = randomised(dim=8, depth=1, num_classes=4)
    before = {name: value.numpy() for name, value in model.state_dict().items() if not name.startswith("head")}
    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model(paddle.randn([1, 3, 14, 14])).shape == [1, 7]
    for name, value in before.items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), value)
    model.reset_classifier(0)
    assert model(paddle.randn([1, 3, 14, 14])).shape == [1, 8]
    assert not any(name.startswith("head") for name in model.state_dict())


def test_no_classes_means_features():
    model = ConvMixer(8, 1, num_classes=0)
    model.eval()
    x = paddle.randn([2, 3, 21, 21])
    whole = model(x).numpy()
    np.testing.assert_allclose(
        whole, model.forward_head(model.forward_features(x), pre_logits=True).numpy(), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("shape", [[1, 3, 6, 30], [1, 3, 30, 6], [1, 1, 30, 30]])
def test_an_input_without_room_or_with_other_channels_is_named(shape):
    with pytest.raises(UserError, match="takes 3 channels and at least 7 x 7"):
        ConvMixer(4, 1)(paddle.randn(shape))


def test_unknown_activation_gets_the_nearest():
    with pytest.raises(UserError, match="did you mean gelu"):
        ConvMixer(4, 1, act="gleu")


def test_initial_weights_are_drawn_as_the_official_ones():
    paddle.seed(0)
    model = ConvMixer(64, 1, kernel_size=9, patch_size=7)
    for name, fan_in in {"stem.0": 147, "blocks.0.0.fn.0": 81, "blocks.0.1": 64, "head": 64}.items():
        for leaf in ("weight", "bias"):
            values = model.state_dict()[f"{name}.{leaf}"].numpy()
            bound = 1 / math.sqrt(fan_in)
            assert np.abs(values).max() <= bound
            # The standard deviation of U(-b, b) is b / sqrt(3); 64 draws know it to 10 % within three sigma.
            assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.2)


def test_dropout_acts_in_training_only():
    model = ConvMixer(32, 1, num_classes=0, drop_rate=0.5)
    x = paddle.randn([2, 3, 14, 14])
    model.eval()
    assert (model(x).numpy() != 0).all()
    model.train()
    assert 0.2 < (model(x).numpy() == 0).mean() < 0.8


@pytest.mark.parametrize("operator", ["0", "1"])
def test_frozen_layers_stay_as_they_are(operator, monkeypatch):
    """Neither gradient, nor decay, nor the pictures' statistics change them; their output is that of evaluation."""
    from ppconvmixer.ops import mixer

    if operator == "0":
        monkeypatch.setattr(mixer, "library", lambda: None)
    model = randomised(dim=8, depth=2, kernel_size=3, patch_size=2, num_classes=5)
    x = paddle.to_tensor(np.random.default_rng(1).standard_normal((4, 3, 12, 12)).astype(np.float32))
    for layers in range(5):
        model.freeze(layers)
        model.train()
        optimizer = paddle.optimizer.AdamW(0.1, parameters=model.parameters(), weight_decay=0.5)
        before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
        for _ in range(2):
            loss = (model(x) ** 2).sum()
            if layers < 4:
                loss.backward()
            optimizer.step()
            optimizer.clear_grad()
        for name, value in model.state_dict().items():
            same = np.array_equal(value.numpy(), before[name])
            # A bias before a norm is not changed by its gradient, which is 0 to a rounding, but by adam and the decay.
            assert same == (layer_id(name, 2) < layers), (layers, name)
    model.freeze(3)
    model.train()
    trained = model(x).numpy()
    model.eval()
    np.testing.assert_allclose(trained, model(x).numpy(), rtol=0, atol=1e-5 * np.abs(trained).max())
    model.freeze(0)
    model.train()
    assert all(layer.training for layer in model.sublayers())


def test_drop_path_drops_whole_pictures_and_keeps_the_mean():
    layer = Residual(paddle.nn.Identity(), drop_path=0.25)
    x = paddle.to_tensor(np.random.default_rng(0).uniform(1, 2, (4000, 2, 3, 3)).astype(np.float32))
    paddle.seed(5)
    ratio = (layer(x) / x).numpy()
    paddle.seed(5)
    np.testing.assert_array_equal((layer(x) / x).numpy(), ratio)
    assert (np.abs(ratio - ratio[:, :1, :1, :1]) < 1e-6).all()  # all of a picture alike
    kept = ratio[:, 0, 0, 0] > 1.5
    np.testing.assert_allclose(ratio[kept], 1 + 1 / 0.75, rtol=1e-6)
    np.testing.assert_allclose(ratio[~kept], 1, rtol=0)
    assert abs(kept.mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / 4000)
    layer.eval()
    np.testing.assert_array_equal(layer(x).numpy(), 2 * x.numpy())


def test_drop_path_rises_with_depth_and_spares_frozen_blocks(monkeypatch):
    from ppconvmixer.ops import mixer

    used = []
    original = mixer.mix
    monkeypatch.setattr(mixer, "mix", lambda *a, **k: (used.append(1), original(*a, **k))[1])
    model = ConvMixer(8, 4, kernel_size=3, patch_size=2, num_classes=5, drop_path=0.3)
    np.testing.assert_allclose([block[0].drop_path for block in model.blocks], [0, 0.1, 0.2, 0.3], rtol=1e-12)
    assert model.blocks[0][0].drop_path == 0
    x = paddle.randn([2, 3, 8, 8])
    model(x)
    assert not used  # the operator does not know it
    model.eval()
    model(x)
    assert bool(used) == (mixer.library() is not None)
    model.freeze(5)
    model.train()
    assert not any(block[0].drops() for block in model.blocks)
    np.testing.assert_array_equal(model(x).numpy(), model(x).numpy())


def test_frozen_norms_stay_so_inside_another_layer():
    """Which sets what it holds to training without asking it."""
    model = create_model("convmixer_tiny")
    around = paddle.nn.Sequential(model, paddle.nn.Linear(10, 2))
    model.freeze(3)
    around.eval()
    around.train()
    before = {name: value.numpy() for name, value in model.state_dict().items() if name.endswith("._mean")}
    around(paddle.randn([2, 3, 32, 32]))
    after = model.state_dict()
    same = {name for name, value in before.items() if np.array_equal(value, after[name].numpy())}
    assert same == {name for name in before if name.startswith(("stem", "blocks.0", "blocks.1"))}
    assert not model.train(False).training and model.train().training
