import dataclasses
import json

import numpy as np
import paddle
import pytest
from conftest import network, picture, refused, run

from ppconvmixer import ConvMixer, UserError, checkpoint
from ppconvmixer.insight import robustness
from ppconvmixer.insight.robustness import Network, describe, equivariance, moved, of_convmixer, similarity

RNG = np.random.default_rng(0)
IMAGES = np.stack([np.asarray(picture(i, 16, 16), np.float32).transpose(2, 0, 1) / 99 - 1 for i in range(4)])


def mirrored(images, before, after):
    return np.pad(images, [(0, 0)] * 3 + [(before, after)], mode="symmetric")


def identity(stride):
    """A network whose map is the picture itself, averaged over squares."""
    return Network("mean", False, stride, 0, lambda x: paddle.nn.functional.avg_pool2d(x, stride), None)


@pytest.mark.parametrize("pixels", [0, 1, 5])
def test_a_shift_shows_what_is_further_right(pixels):
    np.testing.assert_allclose(moved(IMAGES, "shift", pixels), mirrored(IMAGES, 0, pixels)[..., pixels:], atol=1e-5)


def test_turns_and_scales_that_are_known():
    for turns in range(3):
        wanted = np.rot90(IMAGES, turns, (2, 3))  # counter-clockwise, where rows go down
        np.testing.assert_allclose(moved(IMAGES, "rotation", 90 * turns), wanted, atol=1e-4)
    np.testing.assert_allclose(moved(IMAGES, "scale", 1), IMAGES, atol=1e-5)
    # Half as large: every pixel comes from between two by two of twice as large a picture, that of mirrors.
    wide = np.pad(IMAGES, [(0, 0)] * 2 + [(8, 8)] * 2, mode="symmetric")
    wanted = wide.reshape(4, 3, 16, 2, 16, 2).mean((3, 5))
    np.testing.assert_allclose(moved(IMAGES, "scale", 0.5), wanted, atol=1e-4)
    # Twice as large: the middle, whose new pixels lie a quarter from the old ones.
    double = moved(IMAGES, "scale", 2)
    above, left = 0.75 * IMAGES[:, :, 5] + 0.25 * IMAGES[:, :, 4], 0.75 * IMAGES[..., 5] + 0.25 * IMAGES[..., 4]
    np.testing.assert_allclose(double[:, :, 2, 2], 0.75 * above[..., 5] + 0.25 * above[..., 4], atol=1e-4)
    np.testing.assert_allclose(double[:, :, 2, 2], 0.75 * left[..., 5] + 0.25 * left[..., 4], atol=1e-4)
    with pytest.raises(UserError, match="unknown move 'turn'"):
        moved(IMAGES, "turn", 1)


def test_similarity_by_hand():
    a = np.array([[3.0, 1], [1, 3]])  # less its mean: (1, -1) and (-1, 1)
    assert similarity(a, a) == pytest.approx(1)
    assert similarity(a, a[::-1]) == pytest.approx(-1)
    assert similarity(a, np.array([[3.0, 3], [1, 3]])) == pytest.approx((0 + 1) / 2)  # (1, 1) and (-1, 1)


def test_a_convmixer_is_equivariant_to_whole_patches():
    model = network(dim=8, depth=2, kernel_size=4, patch_size=4)
    found = equivariance(of_convmixer("small", model), IMAGES, range(9))
    assert found[::4] == pytest.approx([1] * 3, abs=1e-5)
    assert all(found[i] < 0.99 for i in range(9) if i % 4)


def test_the_zeros_at_the_edges_would_be_seen_without_the_margin():
    far = of_convmixer("far", network(dim=8, depth=1, kernel_size=15, patch_size=4))
    assert far.reach == 28
    assert equivariance(far, IMAGES, [0, 8]) == pytest.approx([1, 1], abs=1e-5)
    found = equivariance(dataclasses.replace(far, reach=0), IMAGES, [0, 8])
    assert found[0] == pytest.approx(1) and found[1] < 1 - 1e-4


def test_a_fraction_of_a_position_is_interpolated():
    assert equivariance(identity(1), IMAGES, range(5)) == pytest.approx([1] * 5, abs=1e-6)
    (found,) = equivariance(identity(2), IMAGES, [3])
    strip = mirrored(IMAGES, 3, 4)  # 23 pixels; windows of 20: 16 that are compared, and 4 to shift
    whole = [strip[:, :, :, i : i + 16].reshape(4, 3, 8, 2, 8, 2).mean((3, 5)) for i in (2, 3, 4)]
    rows = [np.moveaxis(part, 1, -1).reshape(-1, 3) for part in whole]
    assert found == pytest.approx(similarity((rows[0] + rows[2]) / 2, rows[1]), abs=1e-6)


def test_an_untrained_network_has_the_statistics_of_the_pictures():
    before = paddle.get_rng_state()
    first = robustness.untrained("convmixer_tiny", IMAGES)
    assert not first.trained and first.name == "convmixer_tiny, untrained"
    for old, new in zip(before, paddle.get_rng_state()):
        assert old.current_seed() == new.current_seed()
    found = first.maps(IMAGES)
    np.testing.assert_allclose(found.mean((0, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(found.std((0, 2, 3)), 1, atol=1e-2)
    np.testing.assert_array_equal(robustness.untrained("convmixer_tiny", IMAGES).maps(IMAGES), found)


def test_curves_count_what_stays():
    """A network that tells whether a picture is brighter on the left: a turn by 180 degrees changes every class."""

    def sides(x):
        halves = paddle.nn.functional.avg_pool2d(x.mean(1, keepdim=True), [16, 8])
        return halves.reshape([len(x), -1, 2]).transpose([0, 2, 1])[:, :, None]

    left = Network("left", True, 16, 0, sides, lambda features: features)
    labels = (IMAGES[..., :8].mean((1, 2, 3)) < IMAGES[..., 8:].mean((1, 2, 3))).astype(np.int64)
    labels[0] = 1 - labels[0]
    found = describe([left], IMAGES, labels)
    turned = found["networks"][0]["rotation"]
    assert found["at"]["rotation"][-1] == 180 and found["at"]["shift"][0] == 0
    assert (turned["agreement"][0], turned["accuracy"][0], turned["similarity"][0]) == pytest.approx((1, 0.75, 1))
    assert (turned["agreement"][-1], turned["accuracy"][-1]) == (0, 0.25)
    means = found["networks"][0]["means"]
    assert means["rotation"]["agreement"] == pytest.approx(sum(turned["agreement"][1:]) / 12)
    scaled = found["networks"][0]["scale"]["accuracy"]
    assert found["at"]["scale"][4] == 1 and means["scale"]["accuracy"] == pytest.approx((sum(scaled) - scaled[4]) / 8)
    even = found["networks"][0]["equivariance"]
    assert even[0] == pytest.approx(1) and means["equivariance"] == pytest.approx(sum(even[1:]) / (len(even) - 1))
    last = robustness.table(found).splitlines()[-3:]
    assert last[1].split()[3:] == [f"{100 * means[move]['agreement']:.2f}" for move in robustness.MOVES]
    assert last[0].split()[2] == f"{means['equivariance']:.3f}"
    assert "accuracy" not in describe([left], IMAGES)["networks"][0]["rotation"]


def test_the_labels_of_one_network_do_not_judge_one_of_other_classes():
    def network(name, classes):
        return dataclasses.replace(identity(16), name=name, trained=True, head=lambda mean: mean, classes=classes)

    found = describe([network("ours", 3), network("theirs", 1000), network("alike", 3)], IMAGES, np.zeros(4, np.int64))
    assert ["accuracy" in part["shift"] for part in found["networks"]] == [True, False, True]
    assert all("agreement" in part["scale"] for part in found["networks"])
    lines = robustness.table(found).splitlines()
    assert lines[1] == "all networks get them normalised as ours takes them"
    assert lines[2] == "no accuracy of theirs: it has 1000 classes, and the labels are those of the 3 of ours"
    assert lines[3] == "" and not any(line.startswith("no accuracy of alike") for line in lines)
    assert "no accuracy" not in robustness.table(describe([network("ours", 3), network("theirs", 5)], IMAGES))


def test_a_resnet_of_paddle_with_and_without_weights(tmp_path):
    paddle.seed(3)
    model = paddle.vision.models.resnet18(num_classes=3)
    model.eval()
    paddle.save(model.state_dict(), str(tmp_path / "resnet.pdparams"))
    given = robustness.of_paddle("resnet18", IMAGES, tmp_path / "resnet.pdparams")
    x = paddle.to_tensor(IMAGES)
    features = given.maps(IMAGES)
    assert features.shape == (4, 512, 1, 1) and given.trained and given.name == "resnet18" and given.classes == 3
    assert (given.stride, given.reach) == (32, (435 - 1) // 2)  # Araujo et al. 2019 give a field of 435 pixels
    np.testing.assert_array_equal(given.classify(features[..., 0, 0]), model(x).argmax(-1).numpy())
    paddle.save(ConvMixer(4, 1).state_dict(), str(tmp_path / "mixer.pdparams"))
    with pytest.raises(UserError, match="mixer.pdparams is not a resnet18 as Paddle saves it"):
        robustness.of_paddle("resnet18", IMAGES, tmp_path / "mixer.pdparams")
    paddle.save({"fc.bias": paddle.to_tensor(1.0)}, str(tmp_path / "scalar.pdparams"))
    with pytest.raises(UserError, match="scalar.pdparams is not a resnet18 as Paddle saves it"):
        robustness.of_paddle("resnet18", IMAGES, tmp_path / "scalar.pdparams")
    with pytest.raises(UserError, match="unknown network to compare with 'resnet19'; did you mean resnet18"):
        robustness.of_paddle("resnet19", IMAGES)
    drawn = robustness.of_paddle("resnet18", IMAGES)
    assert not drawn.trained and drawn.name == "resnet18, untrained" and drawn.maps(IMAGES).std() > 0.1


@pytest.mark.parametrize("aspect", ["robustness", "gradcam", "kernels"])
def test_weights_that_are_no_numbers_are_refused(aspect, tmp_path, capsys, tiny_weights, class_folders):
    state = {name: np.array(value) for name, value in checkpoint.read(tiny_weights).items()}
    state["blocks.0.0.fn.0.weight"][0, 0, 0, 0] = np.nan
    checkpoint.write(tmp_path / "bad.pdparams", state)
    (tmp_path / "bad.json").write_bytes(tiny_weights.with_suffix(".json").read_bytes())
    more = {
        "robustness": ["--data", class_folders / "val", "--limit", 3],
        "gradcam": [class_folders / "val/cat/cat 0.png"],
        "kernels": [],
    }
    command = ["inspect", aspect, "--weights", tmp_path / "bad.pdparams", *more[aspect], "--json"]
    assert "holds what is no number" in refused(capsys, *command)


def test_inspect_robustness(tmp_path, capsys, tiny_weights, class_folders):
    command = ["inspect", "robustness", "--weights", tiny_weights, "--data", class_folders / "val", "--limit", 3]
    assert run(*command, "--json", "--output", tmp_path / "moves.png") == 0
    found = json.loads(capsys.readouterr().out)
    trained, untrained = found["networks"]
    assert trained["trained"] and set(trained["shift"]) == {"similarity", "agreement", "accuracy"}
    assert not untrained["trained"] and set(untrained["shift"]) == {"similarity"}
    assert found["at"]["equivariance"] == list(range(9)) and trained["equivariance"][4] == pytest.approx(1, abs=1e-4)
    assert trained["scale"]["agreement"][4] == 1 and found["at"]["scale"][4] == 1
    assert (tmp_path / "moves.png").read_bytes().startswith(b"\x89PNG")
    unlabelled = tmp_path / "pictures"
    unlabelled.mkdir()
    picture(1).save(unlabelled / "a.png")
    picture(2).save(unlabelled / "b.png")
    assert run(*command[:-3], unlabelled) == 0
    table = capsys.readouterr().out
    assert table.startswith("2 pictures of 32 pixels\n") and "agreement" in table and "accuracy" not in table
    assert "one picture is too few" in refused(capsys, *command[:-1], 1)
    said = refused(capsys, *command, "--against-weights", "x.pdparams")
    assert "--against is missing" in said
