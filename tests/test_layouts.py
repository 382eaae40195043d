import json

import numpy as np
import pytest
from conftest import GOLDEN, random_state

from ppconvmixer import UserError, checkpoint, layouts

SHAPE = {"dim": 6, "depth": 2, "kernel_size": 3, "patch_size": 2, "num_classes": 5}
FRAMEWORKS = ("paddle", "torch")


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_there_and_back_to_the_bit(layout, framework):
    state = random_state(**SHAPE)
    theirs = layouts.from_ours(state, layout, framework)
    theirs = {n: v for n, v in theirs.items() if not n.endswith("num_batches_tracked")}
    found = layouts.to_ours(theirs)
    assert (found.layout, found.framework, found.left_out) == (layout, framework, ())
    assert set(found.state) == set(state)
    for name, value in state.items():
        assert found.state[name].tobytes() == value.tobytes() and found.state[name].shape == value.shape


def test_names_and_shapes_are_the_official_networks():
    """``official_names.json`` lists the state of the official network as torch gives it."""
    expected = json.loads((GOLDEN / "official_names.json").read_text())
    found = layouts.from_ours(random_state(**SHAPE), "official", "torch")
    assert {n: [list(v.shape), str(v.dtype)] for n, v in found.items()} == expected


def test_torch_loads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is no dependency; names and shapes are checked without it")
    from golden.make_torch_files import official
    from safetensors.torch import load_file

    state = random_state(**SHAPE)
    checkpoint.write(tmp_path / "w.safetensors", layouts.from_ours(state, "official", "torch"))
    network = official(6, 2, 3, 2, 5)
    network.load_state_dict(load_file(tmp_path / "w.safetensors"), strict=True)
    assert torch.equal(network[7].weight, torch.tensor(state["head.weight"].T.copy()))


def test_names_and_shapes_are_timms(shared):
    from safetensors import safe_open

    path = shared / "reference/checkpoints/timm.safetensors"
    with safe_open(path, "np") as content:
        expected = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    found = layouts.from_ours(layouts.to_ours(checkpoint.read(path)).state, "timm", "torch")
    assert {n: (v.shape, v.dtype) for n, v in found.items()} == {n: (v.shape, v.dtype) for n, v in expected.items()}
    for name, value in expected.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(found[name], value)


def test_a_square_head_is_turned_by_the_framework_not_by_its_shape():
    state = random_state(**{**SHAPE, "num_classes": 6})
    found = layouts.to_ours(layouts.from_ours(state, "timm", "torch")).state
    np.testing.assert_array_equal(found["head.weight"], state["head.weight"])


def test_without_a_head():
    state = {n: v for n, v in random_state(**SHAPE).items() if not n.startswith("head")}
    found = layouts.to_ours(layouts.from_ours(state, "mmpretrain", "paddle"))
    assert found.layout == "mmpretrain" and layouts.classes(found.state) is None and set(found.state) == set(state)


def test_what_is_no_part_is_left_out_by_name():
    state = {**random_state(**SHAPE), "ema.decay": np.ones(1)}
    assert layouts.to_ours(state).left_out == ("ema.decay",)
    with pytest.raises(UserError, match="ema.decay is no part"):
        layouts.from_ours(state, "timm", "torch")


def test_mixed_frameworks_are_refused():
    state = random_state(**SHAPE)
    state["stem.2.running_mean"] = state["stem.2._mean"]
    with pytest.raises(UserError, match="mixes"):
        layouts.to_ours(state)


def test_description():
    assert layouts.describe(random_state(**SHAPE)) == "ConvMixer-6/2, kernel 3, patch 2, 3 channels, 5 classes"
    with pytest.raises(UserError, match="did you mean official"):
        layouts.from_ours(random_state(**SHAPE), "offical", "paddle")
