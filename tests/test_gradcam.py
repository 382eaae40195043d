import dataclasses
import json

import numpy as np
import paddle
import pytest
from conftest import network, picture, refused, run
from PIL import Image

from ppconvmixer import UserError, zoo
from ppconvmixer.insight.gradcam import class_number, gradcam, overlay, spread
from ppconvmixer.trained import Trained
from ppconvmixer.transforms import decode, eval_box, eval_crop, eval_transform

SHAPE = {"dim": 10, "depth": 3, "kernel_size": 3, "patch_size": 2, "num_classes": 4}


def images(count=3):
    """Their maps have 4 x 8 pixels: Paddle divides by their number in float32, which is exact for 32."""
    return np.random.default_rng(5).standard_normal((count, 3, 8, 16))


def test_of_the_last_block_it_is_the_class_activation_map():
    """The mean and a linear head follow: the gradient of the logit is the class's weight by the number of pixels."""
    model = network(**SHAPE, dtype="float64")
    found = gradcam(model, images())
    maps = model.forward_features(paddle.to_tensor(images())).numpy()
    logits = maps.mean(axis=(2, 3)) @ model.head.weight.numpy() + model.head.bias.numpy()
    for heat, values, expected in zip(found, maps, logits):
        assert heat.label == expected.argmax()
        np.testing.assert_allclose(heat.logits, expected, rtol=1e-12)
        activation = np.einsum("c,chw->hw", model.head.weight.numpy()[:, heat.label], values)
        np.testing.assert_allclose(heat.values, np.maximum(activation, 0) / (4 * 8), rtol=0, atol=1e-13)
        bias = float(model.head.bias[heat.label])
        assert activation.mean() + bias == pytest.approx(expected[heat.label], rel=1e-12)
    assert any(heat.values.max() > 0 for heat in found)


@pytest.mark.parametrize("block", [0, 1, -2])
def test_of_an_inner_block_it_agrees_with_finite_differences(block):
    """A channel's weight is the mean of the gradient over its map: how the logit grows with the whole of it."""
    model, step = network(**SHAPE, dtype="float64"), 1e-5
    found = [gradcam(model, images(1), block, label)[0].values for label in range(4)]
    with paddle.no_grad():
        maps = model.forward_intermediates(paddle.to_tensor(images(1)), [block])[1][0].numpy()

        def logits(values):
            x = paddle.to_tensor(values)
            for part in list(model.blocks)[block % 3 + 1 :]:
                x = part(x)
            return model.head(x.mean(axis=[2, 3])).numpy()

        nudges = step * np.eye(10)[:, :, np.newaxis, np.newaxis]  # one channel each
        weights = (logits(maps + nudges) - logits(maps - nudges)) / (2 * step * 4 * 8)  # (channels, classes)
    expected = np.maximum(np.einsum("cl,chw->lhw", weights, maps[0]), 0)
    # The step costs its square, the difference of two logits 1e-16 by the step.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * expected.max())
    assert expected.max() > 0


def test_pictures_do_not_see_each_other_and_nothing_is_left_behind():
    model = network(**SHAPE)
    model.freeze(5)  # a network that nobody trains has a way back to its maps all the same
    x = images().astype(np.float32)
    together, alone = gradcam(model, x, 1), [gradcam(model, x[i : i + 1], 1)[0] for i in range(3)]
    for a, b in zip(together, alone):
        assert a.label == b.label and a.values.dtype == np.float32
        np.testing.assert_allclose(a.values, b.values, rtol=0, atol=1e-5 * b.values.max())
    assert all(parameter.grad is None for parameter in model.parameters())
    np.testing.assert_allclose(together[0].probabilities.sum(), 1, rtol=1e-6)


def test_a_block_that_is_not_there_is_named():
    with pytest.raises(UserError, match="there is no block 3; the network has 3"):
        gradcam(network(**SHAPE), images(1).astype(np.float32), 3)


# --- where in the picture ---------------------------------------------------------------------------------


def test_heat_is_spread_as_paddle_interpolates():
    """Paddle's weights are float32 in float64 too."""
    heat = np.random.default_rng(0).uniform(size=(4, 4))
    found = spread(heat, zoo.CIFAR10, 8, 96, 96)
    wanted = paddle.nn.functional.interpolate(paddle.to_tensor(heat[None, None]), [96, 96], mode="bilinear")
    np.testing.assert_allclose(found, wanted.numpy()[0, 0], rtol=0, atol=1e-6)


def test_heat_lies_where_the_network_looks():
    spec = dataclasses.replace(zoo.IMAGENET, size=32, crop_pct=0.8)  # 40 pixels of the short side, 32 of them seen
    found = spread(np.ones((4, 4)), spec, 7, 120, 80)  # four whole patches of 7 in 32 pixels
    rows, columns = np.nonzero(found)
    assert eval_box(spec, 120, 80) == (28, 8, 92, 72)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (28, 8, 28 + 56 - 1, 8 + 56 - 1)
    np.testing.assert_allclose(found[8:64, 28:84], 1, rtol=1e-12)


@pytest.mark.parametrize("size", [(90, 60), (47, 81), (64, 64), (33, 200)])
def test_the_box_is_what_the_crop_shows(size):
    """A picture that is nothing but its own coordinates says where its crop comes from."""
    spec = dataclasses.replace(zoo.IMAGENET, size=24, crop_pct=0.75, interpolation="bilinear")
    width, height = size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    crop = eval_crop(spec)(np.stack([x, y, x], axis=2).astype(np.uint8)).astype(float)
    left, top, right, bottom = eval_box(spec, width, height)
    columns = left + (np.arange(24) + 0.5) * (right - left) / 24 - 0.5
    rows = top + (np.arange(24) + 0.5) * (bottom - top) / 24 - 0.5
    inner = slice(2, -2)  # at the edges of the picture the filter is cut off
    assert np.abs(crop[:, inner, 0] - columns[inner]).max() <= 0.6  # rounded to whole numbers
    assert np.abs(crop[inner, :, 1] - rows[inner, np.newaxis]).max() <= 0.6


def test_the_overlay_is_grey_but_for_the_heat():
    image = picture(1, 50, 30)
    heat = np.zeros((30, 50))
    grey = np.asarray(image.convert("L")).astype(int)
    np.testing.assert_allclose(overlay(image, heat), np.stack([grey] * 3, axis=2), atol=1)
    heat[10, 20] = 0.5
    found = overlay(image, heat).astype(int)
    assert found.shape == (30, 50, 3) and found[10, 20, 0] > found[10, 20, 2] + 40  # the hot end is yellow
    np.testing.assert_allclose(np.delete(found, 10, axis=0), np.delete(overlay(image, 0 * heat), 10, axis=0))


# --- the command ------------------------------------------------------------------------------------------


def test_a_class_has_a_name_or_a_number(tiny_weights, tmp_path):
    trained = Trained(tiny_weights)
    assert class_number("dog", trained) == class_number("1", trained) == 1
    with pytest.raises(UserError, match="unknown class 'dogg'; did you mean dog"):
        class_number("dogg", trained)
    with pytest.raises(UserError, match="unknown class '3'; known: cat, dog, owl"):
        class_number("3", trained)
    trained.classes = ("crane", "owl", "crane")
    with pytest.raises(UserError, match="2 classes are named 'crane'; give the number: 0, 2"):
        class_number("crane", trained)
    trained.classes = None
    with pytest.raises(UserError, match="unknown class 'owl'; want a number from 0 to 2, or a name of the card"):
        class_number("owl", trained)
    trained.classes = ("2", "1", "0")
    assert class_number("2", trained) == 0  # a name before a number


def test_inspect_gradcam(tiny_weights, tmp_path, capsys):
    names = []
    for i, size in enumerate([(40, 32), (64, 200), (3000, 180)]):
        names.append(tmp_path / f"{i} $x_$.png")  # no formula
        picture(i, *size).save(names[-1])
    command = "inspect", "gradcam", "--weights", tiny_weights
    assert run(*command, *names, "--output", tmp_path / "heat.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "convmixer_tiny, block 3, maps of 8 x 8" and len(lines) == 5
    pixels = np.asarray(Image.open(tmp_path / "heat.png").convert("RGB"))
    assert pixels.std() > 20
    assert run(*command, *names, "--class", "owl", "--block", "1", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    trained = Trained(tiny_weights)
    model = trained.create()
    model.eval()
    for name, row in zip(names, facts["pictures"]):
        image = eval_transform(trained.input)(decode(name.read_bytes()))[np.newaxis]
        logits = model.forward_head(model.blocks(model.stem(paddle.to_tensor(image)))).numpy()[0].astype(np.float64)
        chances = np.exp(logits) / np.exp(logits).sum()
        assert row["class"]["name"] == "owl" and row["class"]["number"] == 2
        assert row["class"]["probability"] == pytest.approx(chances[2], abs=1e-5)
        assert row["predicted"]["number"] == logits.argmax()
        heat = np.array(row["heat"])
        assert heat.shape == (8, 8) and row["largest"] == pytest.approx(heat.max())
        if row["hottest"]:
            x, y = (int(8 * share) for share in row["hottest"])
            assert heat[y, x] == heat.max()
            assert row["hot"] == pytest.approx((heat > heat.max() / 2).mean())


def test_mistakes_are_named_before_the_work(tiny_weights, tmp_path, capsys):
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    command = "inspect", "gradcam", "--weights", tiny_weights, tmp_path / "a.png"
    assert "there is no block 9" in refused(capsys, *command, "--block", 9)
    assert "unknown class" in refused(capsys, *command, "--class", "bird")
    said = refused(capsys, *command, tmp_path / "b.png", tmp_path / "c.png")
    assert "2 of 3 pictures cannot be read" in said and "b.png: " in said and "c.png: No such file" in said
    assert "is an input of this command" in refused(capsys, *command, "--output", tmp_path / "a.png")
    assert "up to 48 pictures" in refused(capsys, *command, *[tmp_path / "a.png"] * 48, "--output", tmp_path / "o.png")
    assert not (tmp_path / "o.png").exists()
