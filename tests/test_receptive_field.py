import json
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from conftest import refused, run

from ppconvmixer import ConvMixer, UserError
from ppconvmixer.insight import maps
from ppconvmixer.insight.receptive_field import BATCH, describe, deviation, gradients, room, square, theoretical


def positive(*shape, **settings):
    """A network all of whose weights are above 0, so that no path cancels out another."""
    model = ConvMixer(*shape, **settings, num_classes=0)
    for name, parameter in model.named_parameters():
        if not name.endswith(("_mean", "_variance")):
            parameter.set_value(paddle.rand(parameter.shape) + 0.5)
    return model


def test_fields_computed_by_hand():
    assert theoretical(ConvMixer(4, 2, kernel_size=3, patch_size=4)) == [(0, 0), (4, 4), (8, 8)]
    assert theoretical(ConvMixer(4, 2, kernel_size=4, patch_size=2)) == [
        (0, 0),
        (2, 4),
        (4, 8),
    ]  # 1 tap before, 2 after
    model = ConvMixer(4, 2, kernel_size=3, patch_size=4)
    found = describe(model, gradients(model, np.random.default_rng(0).random((1, 3, 20, 20), np.float32)))
    assert [layer["theoretical"] for layer in found["layers"]] == [4, 12, 20]


@pytest.mark.parametrize("kernel, patch", [(3, 2), (4, 3), (5, 1), (1, 2)])
def test_the_field_is_where_positive_weights_have_gradients(kernel, patch):
    model = positive(3, 2, kernel_size=kernel, patch_size=patch)
    images = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    mass = gradients(model, images, size=30)
    start = 30 // patch // 2 * patch
    for part, (before, after) in zip(mass, theoretical(model)):
        for axis in (0, 1):
            rows = np.flatnonzero(part.sum(axis))
            assert (rows[0], rows[-1] + 1) == (start - before, start + patch + after)


@pytest.mark.parametrize(("dim", "pictures"), [(1, 1), (4, 2)])
def test_gradients_are_what_small_changes_make(dim, pictures):
    """The slope of the outputs in the middle, added up under the signs, by every value of the pictures, by hand."""
    model = positive(dim, 2, kernel_size=3, patch_size=2)
    images = np.random.default_rng(0).random((pictures, 3, 14, 14), np.float32)
    mass = gradients(model, images, size=14)
    signs = np.random.default_rng(0).choice([-1, 1], (pictures, dim))
    assert dim == 1 or (signs.min(1) < signs.max(1)).any()
    step = 1e-2
    changes = step * np.eye(3 * 14 * 14, dtype=np.float32).reshape(-1, 3, 14, 14)
    total = np.zeros((3, 14, 14))
    for image, sign in zip(images, signs):
        outputs = (maps.outputs(model, paddle.to_tensor(image + way * changes)) for way in (1, -1))
        for layer, (above, below) in enumerate(zip(*(found.values() for found in outputs))):
            slopes = (above - below).numpy()[:, :, 3, 3].astype(np.float64) @ sign
            total[layer] += np.abs(slopes).reshape(3, 14, 14).sum(0)
    for part, slopes in zip(mass, total):
        np.testing.assert_allclose(part, slopes / slopes.sum(), atol=2e-3 * part.max())


def test_squares_and_deviations():
    even = np.full((10, 10), 0.01)
    assert square(even, (5, 5), 0.36) == 6 and square(even, (5, 5), 0.37) == 8 and square(even, (5, 5), 1) == 10
    assert square(even, (4.5, 4.5), 0.08) == 3 and square(even, (4, 6), 0.5) == 8
    assert deviation(even) == pytest.approx(np.sqrt((100 - 1) / 12))
    bell = np.exp(-0.5 * ((np.arange(101) - 50) / 9) ** 2)
    bell = np.outer(bell, bell) / bell.sum() ** 2
    assert deviation(bell) == pytest.approx(9, rel=1e-3)
    model = ConvMixer(2, 0, patch_size=1)
    (layer,) = describe(model, bell[None])["layers"]
    # A normal distribution holds 95 % in a square of 2.2365 deviations to each side: erf(2.2365 / sqrt 2) ** 2 = 0.95.
    assert layer["gaussian"] == pytest.approx(2 * 2.2365 * 9, rel=1e-3) and abs(layer["effective"] - 40.3) < 1.5
    assert layer["own"] == pytest.approx(bell[50, 50])


def test_pictures_are_extended_by_mirrors():
    row = np.float32([[[[1, 2, 3]]]])
    np.testing.assert_array_equal(maps.mirrored(row, 1, 8)[0, 0, 0], [2, 1, 1, 2, 3, 3, 2, 1])
    with pytest.raises(UserError, match="1 x 2 pixels are less than the pictures have; want 1 x 3 or more"):
        maps.mirrored(row, 1, 2)
    model = ConvMixer(4, 2, kernel_size=4, patch_size=2)  # the field reaches 8 pixels below and right
    assert room(model, 8) == 18 and room(model, 40) == 40 and room(model, 5) == 15


def test_large_maps_are_seen_a_picture_at_a_time(monkeypatch):
    for dim, depth, patch, size, count in ((768, 32, 7, 672, 1), (1536, 20, 7, 672, 1), (128, 8, 2, 96, 4)):
        shape = SimpleNamespace(dim=dim, blocks=[None] * depth, patch_size=patch)
        assert maps.at_once(shape, size, size, BATCH) == count
    model = ConvMixer(4, 1, kernel_size=3, patch_size=2)
    images = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
    whole = gradients(model, images)
    monkeypatch.setattr(maps, "ROOM", 0)
    np.testing.assert_allclose(gradients(model, images), whole, rtol=1e-4, atol=1e-9)


def test_a_dead_network_is_refused():
    model = positive(2, 1, kernel_size=3, patch_size=2)
    model.blocks[0][1].weight.set_value(paddle.zeros([2, 2, 1, 1]))
    with pytest.raises(UserError, match="maps do not depend on the pictures"):
        gradients(model, np.ones((1, 3, 8, 8), np.float32))


def test_a_network_is_left_as_it_was():
    model = ConvMixer(4, 1, kernel_size=3, patch_size=2)
    gradients(model, np.zeros((1, 3, 8, 8), np.float32) + 0.5)
    assert model.training and not model.stem._forward_post_hooks and model.stem[0].weight.grad is None


def test_inspect_receptive_field(tmp_path, capsys, tiny_weights, class_folders):
    command = ["inspect", "receptive-field", "--weights", tiny_weights, "--data", class_folders, "--limit", 2]
    assert run(*command, "--output", tmp_path / "field.png", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [layer["theoretical"] for layer in found["layers"]] == [4, 20, 36, 52, 68]
    assert found["size"] == 68 and found["pictures"] == 2 and found["layers"][0]["own"] == pytest.approx(1)
    assert all(0 < layer["effective"] <= layer["theoretical"] for layer in found["layers"])
    assert (tmp_path / "field.png").read_bytes().startswith(b"\x89PNG")
    assert run(*command, "--size", 32) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ["block", "3", "68"]
    assert "8 x 8 pixels are less than the pictures have" in refused(capsys, *command, "--size", 8)
    assert "name a file ending in .png" in refused(capsys, *command, "--output", tmp_path / "field.txt")
