"""The mean of several checkpoints."""

import numpy as np
import pytest
from conftest import random_state, refused, run

from ppconvmixer import card, checkpoint
from ppconvmixer.files import sha256


@pytest.fixture
def three(tmp_path):
    """Three checkpoints of one network, and their states."""
    paths, states = (
        [],
        [random_state(seed, dim=64, depth=4, kernel_size=5, patch_size=4, num_classes=3) for seed in range(3)],
    )
    for i, state in enumerate(states):
        paths.append(tmp_path / f"{i}.pdparams")
        checkpoint.write(paths[-1], state)
        card.write(paths[-1], card.Card(model="convmixer_tiny", classes=("cat", "dog", "owl")))
    return paths, states


def test_it_is_the_mean_and_says_of_what(three, tmp_path, capsys):
    paths, states = three
    target = tmp_path / "mean.pdparams"
    assert run("average", *paths, target) == 0
    assert f"the mean of 3 checkpoints -> {target}" in capsys.readouterr().out
    found, about = checkpoint.read(target), card.read(target)
    assert set(found) == set(states[0])
    for name, value in found.items():
        value, sums = np.asarray(value), sum(np.float64(state[name]) for state in states)
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, sums / 3, rtol=1e-7, atol=1e-45, err_msg=name)  # rounded once, to float32
    assert about.facts == {"average_of": [sha256(path) for path in paths]}
    assert about.model == "convmixer_tiny" and about.classes == ("cat", "dog", "owl")


def test_mistakes(three, tmp_path, tiny_weights, capsys):
    (a, b, c), states = three
    target = tmp_path / "mean.pdparams"
    assert "two checkpoints or more" in refused(capsys, "average", a, target)
    assert "ending in .pdparams" in refused(capsys, "average", a, b, tmp_path / "mean.npz")
    assert "is an input" in refused(capsys, "average", a, b, b)
    card.write(b, card.Card(model="convmixer_tiny", classes=("cat", "dog", "cow")))
    assert f"{b} differs from {a} in its classes" in refused(capsys, "average", a, b, target)
    assert not target.exists()
    target.write_bytes(b"mine")
    assert "--overwrite" in refused(capsys, "average", a, c, target)
    assert target.read_bytes() == b"mine"
    assert run("average", a, c, target, "--overwrite") == 0
    capsys.readouterr()
    for path in (a, b):  # without cards, the heads alone tell them apart
        path.with_suffix(".json").unlink()
    checkpoint.write(b, random_state(dim=64, depth=4, kernel_size=5, patch_size=4, num_classes=4))
    more = ("--model", "convmixer_tiny", "--overwrite")
    assert "in its num_classes: 4, not 3" in refused(capsys, "average", a, b, target, *more)


def test_checkpoints_that_lack_something_are_refused(three, tmp_path, capsys):
    """The mean must not lack it too, nor be broadcast from what has another shape."""
    paths, states = three
    target, name = tmp_path / "mean.pdparams", "blocks.1.1.bias"
    for lacking in (paths, paths[1:]):
        for path, state in zip(paths, states):
            state = {key: value for key, value in state.items() if key != name} if path in lacking else state
            checkpoint.write(path, state)
            card.write(path, card.Card(model="convmixer_tiny", classes=("cat", "dog", "owl")))
        assert name in refused(capsys, "average", *paths, target)
    checkpoint.write(paths[0], {**states[0], name: np.zeros(1, np.float32)})
    assert name in refused(capsys, "average", *paths, target)
    assert not target.exists()
