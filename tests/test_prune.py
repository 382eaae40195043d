"""Networks made smaller."""

import json

import numpy as np
import paddle
import pytest
from conftest import network, random_state, refused, run

from ppconvmixer import card, checkpoint, prune, zoo
from ppconvmixer.errors import UserError
from ppconvmixer.trained import Trained


def logits(model, images):
    model.eval()
    with paddle.no_grad():
        return model(paddle.to_tensor(images)).numpy()


def images(count=64, size=16):
    return np.random.default_rng(3).standard_normal((count, 3, size, size)).astype(np.float32)


def test_sparsify_takes_the_least_weights_of_all_layers_together():
    state = random_state(dim=24, depth=2, kernel_size=5, patch_size=2, num_classes=4)
    found = prune.sparsify(state, 0.6)
    weights = [name for name, value in state.items() if name.endswith(".weight") and value.ndim > 1]
    sizes = np.sort(np.concatenate([np.abs(state[name]).ravel() for name in weights]))
    bound = sizes[round(0.6 * sizes.size) - 1]
    for name, value in state.items():
        expected = np.where(np.abs(value) <= bound, 0, value) if name in weights else value
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
    assert prune.sparsity(found) == pytest.approx(0.6, abs=1 / sizes.size) and prune.sparsity(state) == 0


@pytest.mark.parametrize("act", ["gelu", "relu"])
def test_channels_that_say_the_same_are_enough_once(act):
    """A network in which every channel is there twice computes the same with half of them."""
    half = {"dim": 12, "kernel_size": 3, "patch_size": 2, "depth": 3, "num_classes": 4}
    small = network(act, **half)
    double = network(act, **{**half, "dim": 24})
    state = {}
    for name, value in small.state_dict().items():
        value = value.numpy()
        if name == "head.weight":
            state[name] = np.concatenate([0.7 * value, 0.3 * value])
        elif name.startswith("head"):
            state[name] = value
        else:
            value = np.concatenate([value, value])
            inner = value.ndim == 4 and name.split(".")[-2] == "1" and value.shape[1] == 12
            state[name] = np.concatenate([0.4 * value, 0.6 * value], axis=1) if inner else value
    double.set_state_dict(state)
    expected = logits(double, images())
    np.testing.assert_allclose(expected, logits(small, images()), rtol=0, atol=1e-4 * np.abs(expected).max())
    found = logits(prune.narrow(double, 12, images()), images())
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.01 * np.abs(expected).max())  # the ridge


def test_fitting_beats_cutting():
    """On other pictures than those it was fitted on."""
    model = network(dim=32, depth=3, kernel_size=3, patch_size=2, num_classes=5)
    model.eval()
    expected = logits(model, images(200)[100:])
    found = logits(prune.narrow(model, 24, images(200)[:100]), images(200)[100:])
    norms = sum(np.abs(block[1].weight.numpy()).sum(axis=(0, 2, 3)) for block in model.blocks)
    least = [np.sort(np.argsort(-norms)[:24])] * 4
    cut = logits(prune._cut(model, least), images(200)[100:])
    assert np.square(found - expected).mean() < 0.25 * np.square(cut - expected).mean()


def test_how_many_pictures_are_taken_at_once_changes_nothing(monkeypatch):
    model, found = network(dim=16, depth=2, kernel_size=3, patch_size=2, num_classes=5), []
    for part in (1, 7, 1000):
        monkeypatch.setattr(prune, "PART", part)
        found.append(logits(prune.narrow(model, 12, images(30)), images(8)))
    for each in found[:2]:
        np.testing.assert_allclose(each, found[2], rtol=0, atol=1e-4 * np.abs(found[2]).max())


def test_pictures_that_are_all_the_same_tell_no_channels_apart():
    model = network(dim=16, depth=2, kernel_size=3, patch_size=2, num_classes=5)
    same = np.repeat(images(1), 4, axis=0)
    small = prune.narrow(model, 12, same)
    np.testing.assert_allclose(logits(small, same), logits(model, same), rtol=0, atol=1e-4)  # all is in the head's bias
    with pytest.raises(UserError, match="some hundred pictures"):
        prune.narrow(model, 12, same[:1])


def test_a_narrower_network_is_one_like_any_other(tmp_path, tiny_weights, class_folders, capsys):
    made = tmp_path / "made.pdparams"
    command = ("prune", "--weights", tiny_weights, "--dim", 40, "--data", class_folders / "train", made)
    assert run(*command) == 0
    assert "convmixer_40_4_ks5_p4, " in capsys.readouterr().out
    about = Trained(made)
    assert about.name == "convmixer_40_4_ks5_p4" and about.classes == ("cat", "dog", "owl")
    assert about.create().dim == 40
    assert run("eval", "--weights", made, "--data", class_folders / "val", "--workers", 0) == 0
    capsys.readouterr()
    assert "exists" in refused(capsys, *command)


def test_pruned_weights_stay_0_while_the_rest_is_trained(tmp_path, tiny_weights, capsys):
    made, run_folder = tmp_path / "made.pdparams", tmp_path / "run"
    assert run("prune", "--weights", tiny_weights, "--sparsity", 0.5, made) == 0
    assert "50.0 % of the weights are 0" in capsys.readouterr().out
    assert card.read(made).facts["pruned"]["sparsity"] == pytest.approx(0.5, abs=1e-4)
    settings = (f"model.weights={made}", "finetune.keep_zeros=true", "train.epochs=2", "train.ema=0.9")
    settings = (*settings, "train.histograms=0", "data.val_fraction=0.9")
    command = ("finetune", "-c", "digits", "--output", run_folder, "-o", *settings)
    assert run(*command) == 0
    before, after = checkpoint.read(made), checkpoint.read(run_folder / "last.pdparams")
    before, after = ({name: np.asarray(value) for name, value in state.items()} for state in (before, after))
    for name, value in before.items():
        if value.ndim > 1 and not name.startswith("head"):
            np.testing.assert_array_equal(after[name][value == 0], 0)
            assert np.count_nonzero(after[name] != value) > 0.9 * np.count_nonzero(value)
    result = json.loads((run_folder / "result.json").read_text())
    assert result["epochs"] == 2


def test_no_card_is_replaced(tmp_path, tiny_weights, class_folders, capsys):
    checkpoint.write(tmp_path / "net.safetensors", checkpoint.read(tiny_weights), {"format": "pt"})
    ours = tmp_path / "net.safetensors"
    (tmp_path / "net.json").write_bytes(tiny_weights.with_suffix(".json").read_bytes())
    (tmp_path / "other.json").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    command = ("prune", "--weights", ours, "--sparsity", 0.5)
    for more in ((), ("--overwrite",)):
        assert "net.json is an input of this command" in refused(capsys, *command, tmp_path / "net.pdparams", *more)
    assert "other.json exists" in refused(capsys, *command, tmp_path / "other.pdparams")
    (tmp_path / "bare.pdparams").write_bytes(tiny_weights.read_bytes())  # it has no card that could be lost
    given = ("prune", "--model", "convmixer_tiny", "--weights", tmp_path / "bare.pdparams", "--sparsity", 0.5)
    assert run(*given, tmp_path / "b2.pdparams") == 0
    capsys.readouterr()
    assert refused(capsys, "prune", "--weights", ".", "--sparsity", 0.5, tmp_path / "c.pdparams")
    for path in ("bare.pdparams", "b2.pdparams", "b2.json"):
        (tmp_path / path).unlink()
    export = ("export", "--weights", ours, "--format", "paddle", tmp_path / "net.json", "--overwrite")
    assert "net.json is an input of this command" in refused(capsys, *export)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_mistakes(tmp_path, tiny_weights, class_folders, capsys):
    good = ("prune", "--weights", tiny_weights, tmp_path / "a.pdparams")
    assert "--sparsity" in refused(capsys, *good)
    assert "between 0 and 1" in refused(capsys, *good, "--sparsity", 1)
    assert "--data is missing" in refused(capsys, *good, "--dim", 32)
    assert "no effect" in refused(capsys, *good, "--sparsity", 0.5, "--data", class_folders)
    assert "--limit has no effect" in refused(capsys, *good, "--sparsity", 0.5, "--limit", 8)
    assert "has 1 to 63" in refused(capsys, *good, "--dim", 64, "--data", class_folders)
    assert ".pdparams" in refused(capsys, *good[:-1], tmp_path / "a.onnx", "--sparsity", 0.5)
    (tmp_path / "empty").mkdir()
    assert "there are no pictures" in refused(capsys, *good, "--dim", 32, "--data", tmp_path / "empty")
    (tmp_path / "empty/a.png").write_bytes(b"no picture")
    assert "1 of 1 pictures cannot be read" in refused(capsys, *good, "--dim", 32, "--data", tmp_path / "empty")
    keep = ("finetune", "-c", "digits", "--output", tmp_path / "run", "-o", "finetune.keep_zeros=true")
    assert "no effect on random weights" in refused(capsys, *keep)
    assert not (tmp_path / "a.pdparams").exists()


def test_the_name_of_a_shape():
    assert zoo.spelled(zoo.Variant(32, 2, 3, 7, "relu")) == "convmixer_32_2_ks3_p7_relu"
    assert zoo.spelled(zoo.VARIANTS["convmixer_tiny"]) == "convmixer_tiny"
    with pytest.raises(UserError, match="has 1 to 31"):
        prune.narrow(network(dim=32, depth=1, kernel_size=3, patch_size=2), 32, images())
