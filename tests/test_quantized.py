"""Products in 8 bits: the engine int8."""

import logging

import numpy as np
import paddle
import pytest
from conftest import SHAPES, network, random_state

import ppconvmixer
from ppconvmixer.engines import create_engine
from ppconvmixer.ops import mixer

pytestmark = pytest.mark.skipif(mixer.library() is None, reason="there is no C++ compiler here")


def whole(values, axis):
    """Return whole numbers from -127 to 127, and what they are to be multiplied with."""
    scale = np.abs(values).max(axis=axis, keepdims=True) / 127
    return np.rint(values / np.where(scale, scale, 1)), scale


def in_8_bits(model, images):
    """Return the feature maps by float64, with the pointwise products as the engine defines them."""
    x = model.stem(paddle.to_tensor(images))
    for block in model.blocks:
        y, conv = block[0](x).numpy(), block[1]
        rows, row_scale = whole(y, axis=1)
        columns, column_scale = whole(conv.weight.numpy()[:, :, 0, 0], axis=1)
        z = np.einsum("nchw,oc->nohw", rows, columns) * row_scale * column_scale.reshape(1, -1, 1, 1)
        x = block[3](block[2](paddle.to_tensor(z + conv.bias.numpy().reshape(1, -1, 1, 1))))
    return x.numpy()


@pytest.mark.parametrize("act", ["gelu", "relu"])
@pytest.mark.parametrize("case", SHAPES)
def test_it_is_the_network_with_rows_and_columns_rounded(case, act):
    shape, (n, height, width) = SHAPES[case]
    images = np.random.default_rng(0).standard_normal((n, shape.get("in_chans", 3), height, width)).astype(np.float32)
    model, exact = network(act, **shape), network(act, "float64", **shape)
    for each in (model, exact):
        each.eval()
    with paddle.no_grad():
        expected = in_8_bits(exact, images.astype(np.float64))
    found = mixer.Prepared(model, eight=True)(images, pooled=False)
    # A number that float32 rounds to the other side of a half moves by one of 127 parts, in one of the channels.
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.02 * np.abs(expected).max())
    assert np.sqrt(np.mean((found - expected) ** 2)) <= 1e-3 * np.abs(expected).max()
    means = mixer.Prepared(model, eight=True)(images, pooled=True)
    np.testing.assert_allclose(means, found.mean(axis=(2, 3)), rtol=0, atol=1e-5 * np.abs(found).max())


def test_zeros_stay_zeros_and_what_is_no_number_stays_none():
    shape = {"dim": 32, "depth": 1, "kernel_size": 3, "patch_size": 2}
    images = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    for value in (np.nan, np.inf, 0.0):
        model = network(**shape)
        model.eval()
        weight = model.blocks[0][1].weight.numpy()
        weight[5] = value
        model.blocks[0][1].weight.set_value(weight)
        found = mixer.Prepared(model, eight=True)(images, pooled=True)
        if value:
            assert not np.isfinite(found[0, 5]) and np.isfinite(np.delete(found, 5, axis=1)).all()
        else:
            with paddle.no_grad():
                plain = model.blocks(model.stem(paddle.to_tensor(images))).numpy().mean(axis=(2, 3))
            np.testing.assert_allclose(found[0, 5], plain[0, 5], rtol=1e-5)
    images[0, 0, 3, 3] = np.nan
    assert np.isnan(mixer.Prepared(model, eight=True)(images, pooled=True)).any()


def test_the_engine_is_near_the_network_and_offered_by_name_alone(monkeypatch, caplog):
    model = ppconvmixer.convmixer_tiny()
    state = random_state(dim=64, depth=4, kernel_size=5, patch_size=4, num_classes=10)
    model.set_state_dict(state)
    model.eval()
    images = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    exact, found = (create_engine(name, model)(images) for name in ("operator", "int8"))
    assert 0 < np.abs(found - exact).max() < 0.1 * np.abs(exact).max()
    assert create_engine("auto", model).name != "int8"
    monkeypatch.setattr(mixer, "eight_is_fast", lambda: False)
    with caplog.at_level(logging.WARNING, "ppconvmixer"):
        create_engine("int8", model)
    assert "slow" in caplog.text
