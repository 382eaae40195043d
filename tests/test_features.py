import json

import numpy as np
import paddle
import pytest
from conftest import SHAPES, network, picture, refused, run
from PIL import Image

from ppconvmixer import ConvMixer, UserError
from ppconvmixer.insight import features
from ppconvmixer.model import FeatureInfo
from ppconvmixer.ops import mixer, rewrite

SHAPE = {"dim": 12, "depth": 4, "kernel_size": 3, "patch_size": 3}


def images(dtype="float32"):
    return paddle.to_tensor(np.random.default_rng(4).standard_normal((2, 3, 13, 17)).astype(dtype))


def evaluated(**settings):
    model = network(**SHAPE, **settings)
    model.eval()
    return model


# --- ConvMixer.forward_intermediates ----------------------------------------------------------------------


def test_maps_are_what_the_blocks_compute():
    model, seen = evaluated(), []
    hooks = [block.register_forward_post_hook(lambda layer, x, y: seen.append(y.numpy())) for block in model.blocks]
    model.blocks(model.stem(images()))
    for hook in hooks:
        hook.remove()
    last, maps = model.forward_intermediates(images())
    assert len(maps) == 4
    for found, expected in zip([*maps, last], [*seen, seen[-1]]):
        np.testing.assert_array_equal(found.numpy(), expected)


def test_the_last_map_is_that_of_forward_features(monkeypatch):
    model = evaluated()
    last, (found,) = model.forward_intermediates(images(), [-1])
    whole = model.forward_features(images()).numpy()  # by the operator, or what takes its place
    np.testing.assert_allclose(found.numpy(), whole, rtol=0, atol=1e-5 * np.abs(whole).max())
    monkeypatch.setattr(mixer, "library", lambda: None)
    monkeypatch.setattr(rewrite, "usable", lambda model: False)
    for result in (last, found):
        np.testing.assert_array_equal(result.numpy(), model.forward_features(images()).numpy())


@pytest.mark.parametrize(
    ("indices", "blocks"),
    [
        (None, [0, 1, 2, 3]),
        (1, [3]),
        (3, [1, 2, 3]),
        ([0, 2], [0, 2]),
        ([-1, 0, 3], [0, 3]),  # in the order of the blocks, each once
        ((-4,), [0]),
        ([], []),
        (np.int64(2), [2, 3]),
        (np.array([1, -2]), [1, 2]),
    ],
)
def test_indices_are_timms(indices, blocks):
    model = evaluated()
    everything = model.forward_intermediates(images())[1]
    found = model.forward_intermediates(images(), indices)[1]
    assert len(found) == len(blocks) and model.block_numbers(indices) == blocks
    for values, i in zip(found, blocks):
        np.testing.assert_array_equal(values.numpy(), everything[i].numpy())


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        ([4], "there is no block 4; the network has 4, numbered from 0, or from -1 back"),
        ([0, -5], "there is no block -5"),
        (5, "the network has 4 blocks; the last 5 of them cannot be taken"),
        (0, "the last 0 of them cannot be taken"),
    ],
)
def test_blocks_that_are_not_there_are_named(indices, said):
    with pytest.raises(UserError, match=said):
        evaluated().forward_intermediates(images(), indices)


def test_an_input_that_does_not_fit_is_named():
    with pytest.raises(UserError, match="takes 3 channels and at least 3 x 3"):
        evaluated().forward_intermediates(paddle.randn([1, 3, 2, 9]))


@pytest.mark.parametrize("case", SHAPES)
def test_the_maps_are_as_announced(case):
    shape, (n, height, width) = SHAPES[case]
    model = ConvMixer(**shape)
    model.eval()
    x = paddle.zeros([n, shape.get("in_chans", 3), height, width])
    _, maps = model.forward_intermediates(x)
    assert len(maps) == len(model.feature_info) == shape["depth"]
    layers = dict(model.named_sublayers())
    for found, info in zip(maps, model.feature_info):
        assert found.shape == [n, info.channels, height // info.stride, width // info.stride] and info.name in layers
    assert ConvMixer(16, 2, patch_size=7).feature_info == [
        FeatureInfo(16, 7, "blocks.0"),
        FeatureInfo(16, 7, "blocks.1"),
    ]


def test_gradients_of_every_map_reach_the_weights():
    """As a dense task trains: held against finite differences in float64, in training and in evaluation."""
    model, x = network(**SHAPE, dtype="float64"), images("float64")
    weights = [np.random.default_rng(i).standard_normal([2, 12, 4, 5]) for i in range(2)]
    for training in (True, False):
        model.train() if training else model.eval()

        def loss(model=model):
            maps = model.forward_intermediates(x, [0, 2])[1]
            return sum((values * paddle.to_tensor(w)).sum() for values, w in zip(maps, weights))

        model.clear_gradients()
        loss().backward()
        parameters = dict(model.named_parameters())
        for name in ("stem.0.weight", "blocks.0.0.fn.0.weight", "blocks.2.1.weight"):
            parameter, step = parameters[name], 1e-5
            value, nudge = parameter.numpy(), np.zeros(parameter.shape)
            nudge.flat[1] = step
            sides = []
            for sign in (1, -1):
                parameter.set_value(value + sign * nudge)
                sides.append(float(loss()))
            parameter.set_value(value)
            expected = (sides[0] - sides[1]) / (2 * step)
            assert parameter.grad.numpy().flat[1] == pytest.approx(expected, rel=1e-5, abs=1e-7), name
        beyond = parameters["blocks.3.1.weight"].grad  # no map was asked for above block 2
        assert beyond is None or not beyond.numpy().any()


# --- what the command shows -------------------------------------------------------------------------------


def test_the_components_are_those_of_the_covariance():
    values = np.random.default_rng(0).standard_normal((5, 6, 7)).astype(np.float32)
    values[3] += 4 * values[1]
    variances, maps = features.spectrum(values)
    covariance = np.cov(values.reshape(5, -1), bias=True)
    expected, vectors = np.linalg.eigh(covariance)
    np.testing.assert_allclose(variances, expected[::-1], rtol=1e-6)
    np.testing.assert_allclose(maps.var(axis=(1, 2)), variances, rtol=1e-10)
    vector = vectors[:, -1] * np.sign(vectors[np.abs(vectors[:, -1]).argmax(), -1])
    centred = values - values.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(maps[0], np.einsum("c,chw->hw", vector, centred), rtol=0, atol=1e-5)


def test_the_rank_counts_components_of_equal_variance():
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((400, 5)) - 0.0)[0]
    basis = np.linalg.qr(basis - basis.mean(axis=0))[0]  # orthogonal and without a mean
    mixed = (basis @ np.linalg.qr(rng.standard_normal((9, 5)))[0].T).T.reshape(9, 20, 20)
    (facts,) = features.describe([features.Map(FeatureInfo(9, 2, "blocks.0"), mixed.astype(np.float32))])
    assert facts["rank"] == pytest.approx(5, rel=1e-4) and facts["explained"] == pytest.approx(3 / 5, rel=1e-4)


def test_the_figures_of_a_map():
    values = np.random.default_rng(2).standard_normal((4, 5, 6)).astype(np.float32) * [[[1]], [[3]], [[0]], [[2]]]
    (facts,) = features.describe([features.Map(FeatureInfo(4, 7, "blocks.3"), values.astype(np.float32))])
    assert (facts["name"], facts["channels"], facts["stride"]) == ("blocks.3", 4, 7)
    assert (facts["height"], facts["width"], facts["channels_by_variance"]) == (5, 6, [1, 3, 0, 2])
    assert facts["mean"] == pytest.approx(values.mean(), abs=1e-6)
    assert facts["deviation"] == pytest.approx(values.std(), rel=1e-6)
    assert (facts["lowest"], facts["highest"]) == pytest.approx((values.min(), values.max()), rel=1e-6)
    json.dumps(facts)
    np.testing.assert_allclose(features.strength(values), np.sqrt((values**2).mean(axis=0)), rtol=1e-12)


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 3, 3), (6, 1, 1), (6, 1, 2)])
def test_maps_of_few_channels_or_pixels_have_colours_too(shape):
    values = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    found = features.colours(values)
    assert found.shape == (*shape[1:], 3) and found.min() >= 0 and found.max() <= 1
    (facts,) = features.describe([features.Map(FeatureInfo(shape[0], 2, "blocks.0"), values)])
    assert (facts["rank"] is None) == (shape[1:] == (1, 1))
    assert len(features.table([facts]).splitlines()) == 2


def test_eight_blocks_are_chosen_of_many():
    model = network(dim=4, depth=20, kernel_size=1, patch_size=4)
    maps = features.look(model, np.zeros((3, 8, 8), np.float32))
    assert [int(shown.info.name.split(".")[1]) for shown in maps] == [0, 3, 5, 8, 11, 14, 16, 19]


def test_a_map_that_holds_no_numbers_is_refused():
    model = network(dim=4, depth=2, kernel_size=3, patch_size=4)
    model.blocks[1][1].bias.set_value(np.full(4, np.inf, np.float32))
    assert len(features.look(model, np.ones((3, 8, 8), np.float32), [0])) == 1
    with pytest.raises(UserError, match=r"the map of blocks\.1 holds what is no number; .*; take another checkpoint"):
        features.look(model, np.ones((3, 8, 8), np.float32))


def test_inspect_features(tiny_weights, tmp_path, capsys):
    picture(7).save(tmp_path / "a.png")
    command = "inspect", "features", "--weights", tiny_weights, tmp_path / "a.png"
    assert run(*command, "--output", tmp_path / "maps.png", "--channels", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [[f"blocks.{i}", "64x8x8", "4"] for i in range(4)]
    assert np.asarray(Image.open(tmp_path / "maps.png").convert("RGB")).std() > 20
    assert run(*command, "--json", "--blocks", "-1", "0") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"] == "convmixer_tiny" and [row["name"] for row in facts["blocks"]] == ["blocks.0", "blocks.3"]


def test_mistakes_are_named(tiny_weights, tmp_path, capsys):
    picture(7).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    command = "inspect", "features", "--weights", tiny_weights
    assert "there is no block 4; the network has 4" in refused(capsys, *command, tmp_path / "a.png", "--blocks", 4)
    assert "b.png: no picture of a known kind" in refused(capsys, *command, tmp_path / "b.png")
    assert "No such file" in refused(capsys, *command, tmp_path / "c.png")
    said = refused(capsys, *command, tmp_path / "a.png", "--output", tmp_path / "a.png")
    assert "is an input of this command" in said
    assert "name a file ending in" in refused(capsys, *command, tmp_path / "a.png", "--output", tmp_path / "x.gif")
    assert "--channels has no effect without --output" in refused(capsys, *command, tmp_path / "a.png", "--channels", 2)
