import json

import numpy as np
import paddle
import pytest
from conftest import refused, run

from ppconvmixer import ConvMixer
from ppconvmixer.insight import kernels

DELTA = np.pad(np.ones((1, 1)), 2)
BOX = np.full((5, 5), -3.0)
EDGE = np.outer(np.ones(5), [-1, 0, 0, 0, 1])


def described(*tiles):
    """Figures of a block that has these kernels."""
    model = ConvMixer(len(tiles), 1, kernel_size=len(tiles[0]), patch_size=2)
    model.blocks[0][0].fn[0].weight.set_value(paddle.to_tensor(np.stack(tiles)[:, None].astype(np.float32)))
    return kernels.describe(model)["layers"][0]


@pytest.mark.parametrize(
    "kernel, wanted",
    [
        (DELTA, {"norm": 1, "centre": 1, "delta": 1, "radius": 0, "symmetric": 1, "blur": 1 / 25, "energy": [1, 0, 0]}),
        (BOX, {"norm": 15, "centre": 1 / 25, "delta": 0, "radius": 2, "symmetric": 1, "blur": 1, "energy": [0.04, 0.32, 0.64]}),
        # Ten taps, 2 columns from the middle: squares of the distances 4 + (4 + 1 + 0 + 1 + 4) / 5.
        (EDGE, {"norm": 10**0.5, "centre": 0, "delta": 0, "radius": 6**0.5, "symmetric": 0, "blur": 0, "energy": [0, 0, 1]}),
        (0 * BOX, {"norm": 0, "centre": 0, "delta": 0, "radius": 0, "symmetric": 0, "blur": 0, "energy": [0, 0, 0]}),
    ],
)  # fmt: skip
def test_figures_of_kernels_that_are_known(kernel, wanted):
    found = described(kernel)
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, abs=1e-6), key


def test_every_kernel_counts_alike():
    found = described(100 * DELTA, BOX, EDGE, EDGE)
    assert found["delta"] == 0.25 and found["symmetric"] == pytest.approx(0.5)
    assert found["energy"] == pytest.approx([(1 + 0.04) / 4, 0.08, (0.64 + 2) / 4])


def test_distances_in_even_kernels_are_from_the_tap_on_the_output():
    np.testing.assert_array_equal(kernels.distances(4)[1], [1, 0, 1, 2])
    shifted = np.zeros((4, 4))
    shifted[1, 1] = 1  # such a kernel changes nothing: the map is padded by one before, and by two after
    model = ConvMixer(1, 1, kernel_size=4, patch_size=1)
    conv = model.blocks[0][0].fn[0]
    conv.weight.set_value(paddle.to_tensor(shifted[None, None].astype(np.float32)))
    x = paddle.rand([1, 1, 6, 6])
    np.testing.assert_allclose((conv(x) - conv.bias).numpy(), x.numpy(), atol=1e-6)
    assert described(shifted)["delta"] == 1


@pytest.mark.parametrize("side", [3, 4, 5, 8])
def test_noise_is_what_random_kernels_come_to(side):
    tiles = np.random.default_rng(side).standard_normal((4000, side, side))
    wanted = kernels.noise(side)
    energy = kernels.energy_by_distance(tiles)
    np.testing.assert_allclose(energy.sum(1), 1)
    np.testing.assert_allclose(energy.mean(0), wanted["energy"], atol=0.012)  # 5 standard errors of the widest of them
    assert energy[:, 0].mean() == pytest.approx(wanted["centre"], abs=0.012)
    assert kernels.symmetric(tiles).mean() == pytest.approx(wanted["symmetric"], abs=0.012)
    assert kernels.blur(tiles).mean() == pytest.approx(wanted["blur"], abs=0.012)
    assert described(*tiles[:400])["radius"] == pytest.approx(wanted["radius"], rel=0.05)


def test_the_grey_part_of_filters():
    model = ConvMixer(2, 1, kernel_size=3, patch_size=2)
    filters = np.zeros((2, 3, 2, 2), np.float32)
    filters[0] = 1  # all colours alike
    filters[1, :, 0, 0] = [1, -1, 0]  # a difference of colours
    model.stem[0].weight.set_value(paddle.to_tensor(filters))
    found = kernels.describe(model)["stem"]
    assert found["grey"] == pytest.approx(0.5) and found["norm"] == pytest.approx((12**0.5 + 2**0.5) / 2)


def test_a_mosaic_shows_every_tile_in_its_place():
    tiles = np.arange(5 * 2 * 3 * 3).reshape(5, 2, 3, 3) / 100
    sheet = kernels.mosaic(tiles)  # two rows of three
    assert sheet.shape == (5, 11, 3) and (sheet[2] == 1).all() and (sheet[3:, 8:] == 1).all()
    np.testing.assert_array_equal(sheet[:2, 4:7], tiles[1])
    np.testing.assert_array_equal(sheet[3:, 4:7], tiles[4])


def test_inspect_kernels(tmp_path, capsys, tiny_weights):
    command = ["inspect", "kernels", "--weights", tiny_weights]
    assert run(*command, "--output", tmp_path / "kernels.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3:]] == ["block"] * 4 + ["noise"]
    assert (tmp_path / "kernels.png").read_bytes().startswith(b"\x89PNG")
    assert run(*command, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kernel_size"] == 5 and len(found["layers"]) == 4
    assert all(sum(layer["energy"]) == pytest.approx(1) for layer in found["layers"])
    assert "is an input of this command" in refused(capsys, *command, "--classes", tmp_path / "a.png", "--output", tmp_path / "a.png")  # fmt: skip
