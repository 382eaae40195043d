"""What several tests need: small files the tests make themselves, and the shared material where it is present."""

import logging
import os
import sys
import zlib  # noqa: F401  (before Paddle; see ppconvmixer/__init__.py)
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

import ppconvmixer
from ppconvmixer import card, checkpoint, cli, layouts, threads, zoo

if not threads._SAID:  # Paddle has set it; the programs that tests start must not inherit that
    os.environ.pop("OMP_NUM_THREADS", None)

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real pictures and reference results; it does not come with a clone."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the reference material in {SHARED}, which is not part of the project")
    return SHARED


@pytest.fixture(autouse=True)
def away_from_the_network(monkeypatch, tmp_path_factory):
    """No test downloads from, or looks into the cache of, the outside world."""
    monkeypatch.setenv("PPCONVMIXER_OFFLINE", "1")
    monkeypatch.setenv("PPCONVMIXER_HOME", str(tmp_path_factory.getbasetemp() / "empty cache"))


@pytest.fixture(autouse=True)
def messages_reach_caplog(monkeypatch):
    """The command keeps them from other handlers, whatever ran before."""
    monkeypatch.setattr(logging.getLogger("ppconvmixer"), "propagate", True)


def picture(seed: int, width: int = 40, height: int = 32) -> Image.Image:
    """A smooth colourful picture that differs with the seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory) -> Path:
    """Class folders train/{cat,dog,owl} with eight pictures each and val/ with four."""
    root = tmp_path_factory.mktemp("pictures")
    for part, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(("cat", "dog", "owl")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture(100 * label + i + (50 if part == "val" else 0), 52, 44).save(folder / f"{name} {i}.png")
    return root


def run(*arguments) -> int:
    """Run the command in this process."""
    return cli.main([str(a) for a in arguments])


def refused(capsys, *arguments) -> str:
    """Run a command that must fail as a user's mistake does, code 2 and a message; return what it said."""
    try:
        code = run(*arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert "Traceback" not in captured.err and "error: " in captured.err
    return captured.err.strip()


def waves() -> np.ndarray:
    """Return the four pictures out of a formula that ``tools/ship.py`` judges weights by, [4, 3, 32, 32]."""
    y, x, channel, number = np.ogrid[:32, :32, :3, :4]
    return np.sin(0.3 * (number + 1) * x + 0.2 * y * (channel + 1)).transpose(3, 2, 0, 1).astype(np.float32)


def random_state(seed: int = 0, **shape) -> dict:
    """A plausible state of ConvMixer(**shape) under our names, drawn by the seed."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, value in ppconvmixer.ConvMixer(**shape).state_dict().items():
        noise = rng.standard_normal(tuple(value.shape)).astype(np.float32)
        if len(value.shape) > 1:
            noise /= np.sqrt(noise.size / value.shape[0])
        state[name] = np.exp(0.2 * noise) if name.endswith("_variance") else noise
    return state


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """A convmixer_tiny of three classes with a card."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pdparams"
    checkpoint.write(path, random_state(dim=64, depth=4, kernel_size=5, patch_size=4, num_classes=3))
    card.write(path, card.Card(model="convmixer_tiny", classes=("cat", "dog", "owl")))
    return path


def write_layout(path: Path, state: dict, layout: str = layouts.OURS) -> Path:
    """Write a state under our names in a layout; the suffix says which framework's form."""
    framework = "paddle" if path.suffix == ".pdparams" else "torch"
    checkpoint.write(path, layouts.from_ours(state, layout, framework))
    return path


def reference_network(shared: Path, monkeypatch, name: str):
    """A published network with the weights that ``timm_reference.npz`` was computed with."""
    monkeypatch.setattr(sys, "path", [str(shared / "reference"), *sys.path])
    from deterministic_weights import fill

    model = zoo.create_model(name)
    ours = {n: np.broadcast_to(np.float32(0), tuple(v.shape)) for n, v in model.state_dict().items()}
    shapes = {n: v.shape for n, v in layouts.from_ours(ours, "timm", "torch").items()}
    zoo.fill(model, layouts.to_ours(fill(shapes, seed=1)), "the deterministic weights")
    return model


# --- ways to compute the network, held against its layers ------------------------------------------------


def network(act="gelu", dtype="float32", **shape):
    state = random_state(**shape)
    paddle.set_default_dtype(dtype)
    try:
        model = ppconvmixer.ConvMixer(**shape, act=act)
    finally:
        paddle.set_default_dtype("float32")
    model.set_state_dict({name: value.astype(dtype) for name, value in state.items()})
    return model


def step(model, images, mix=None, pooled=True):
    """Return result, gradients and statistics of a training step, by the layers or by ``mix(model, images, pooled)``."""
    dtype = model.stem[0].weight.dtype
    x = paddle.to_tensor(images).astype(dtype)
    out = mix(model, x, pooled) if mix else model.blocks(model.stem(x))
    if len(out.shape) == 4:
        out = out.mean(axis=[2, 3])
    weights = np.random.default_rng(1).standard_normal(tuple(out.shape))
    (out * paddle.to_tensor(weights).astype(dtype)).sum().backward()
    found = {"out": out.numpy()}
    found |= {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return found | {n: v.numpy() for n, v in model.state_dict().items() if n.endswith(("_mean", "_variance"))}


SHAPES = {
    "usual": ({"dim": 32, "depth": 2, "kernel_size": 5, "patch_size": 2}, (4, 16, 16)),
    "odd sizes": ({"dim": 24, "depth": 2, "kernel_size": 3, "patch_size": 3}, (3, 22, 31)),
    "kernel larger than the map": ({"dim": 16, "depth": 1, "kernel_size": 9, "patch_size": 4}, (3, 12, 20)),
    "one channel": ({"dim": 1, "depth": 1, "kernel_size": 3, "patch_size": 2}, (3, 10, 10)),
    "one picture": ({"dim": 40, "depth": 2, "kernel_size": 7, "patch_size": 2}, (1, 18, 18)),
    "odd channels": ({"dim": 37, "depth": 2, "kernel_size": 5, "patch_size": 1}, (2, 9, 9)),
    "grey": ({"dim": 33, "depth": 1, "kernel_size": 5, "patch_size": 2, "in_chans": 1}, (2, 12, 12)),
    "kernel 1": ({"dim": 8, "depth": 1, "kernel_size": 1, "patch_size": 2}, (2, 12, 12)),
    "even kernel": ({"dim": 16, "depth": 2, "kernel_size": 8, "patch_size": 2}, (2, 22, 18)),
    "kernel 15": ({"dim": 8, "depth": 1, "kernel_size": 15, "patch_size": 1}, (2, 12, 12)),
    "several panels and strips": ({"dim": 300, "depth": 1, "kernel_size": 3, "patch_size": 7}, (2, 63, 56)),
    "no blocks": ({"dim": 16, "depth": 0, "kernel_size": 3, "patch_size": 2}, (2, 8, 8)),
    "one pixel": ({"dim": 16, "depth": 1, "kernel_size": 5, "patch_size": 8}, (4, 8, 8)),
}


def check_step(case, act, mix, pooled):
    """Assert that a training step by ``mix`` is as near to float64 as one by the layers."""
    shape, (n, height, width) = SHAPES[case]
    images = np.random.default_rng(0).standard_normal((n, shape.get("in_chans", 3), height, width)).astype(np.float32)
    exact = step(network(act, "float64", **shape), images)
    theirs, ours = step(network(act, **shape), images), step(network(act, **shape), images, mix, pooled)
    assert set(ours) == set(exact)
    # Batch norm takes most of what comes in off again: what is left of the gradients is the rest of sums of terms of
    # about 1, of a thousand float32 roundings each. Biases before a norm are nothing but such a rest.
    scale = max(1.0, *(np.abs(exact[name]).max() for name in gradient_names(exact)))
    for name, value in exact.items():
        assert ours[name].dtype == np.float32 and ours[name].shape == value.shape
        error, paddles = (np.abs(found[name] - value).max() for found in (ours, theirs))
        room = 2e-5 * scale if name in gradient_names(exact) else 2e-6 * np.abs(value).max()
        assert error <= 5 * paddles + room, f"{name}: off by {error:.1e}, Paddle's own operators by {paddles:.1e}"


def gradient_names(found):
    return {name for name in found if name != "out" and not name.endswith(("_mean", "_variance"))}


def check_evaluation_and_frozen_norms(mix, pooled):
    """Assert that ``mix`` does what the layers do with some norms frozen, and in evaluation."""
    shape = {"dim": 32, "depth": 3, "kernel_size": 5, "patch_size": 2}
    images = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    found = []
    for way in (None, mix):
        model = network(**shape)
        model.stem[2].eval()
        model.blocks[1][0].fn[2].eval()
        model.blocks[1][3].eval()
        found.append(step(model, images, way, pooled))
        model.eval()
        with paddle.no_grad():
            x = paddle.to_tensor(images)
            found[-1]["evaluated"] = (way(model, x, False) if way else model.blocks(model.stem(x))).numpy()
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=0, atol=2e-5 * max(np.abs(value).max(), 1), err_msg=name)


def check_the_same_bits(mix):
    """Assert that two training steps by ``mix`` come to the same bits."""
    shape, (n, height, width) = SHAPES["several panels and strips"]
    images = np.random.default_rng(0).standard_normal((n, 3, height, width)).astype(np.float32)
    first, second = (step(network(**shape), images, mix) for _ in range(2))
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value, err_msg=name)


def check_second_way_back(model):
    """Assert that it ends in an error, and in no crash, which is what Paddle 3.3 has for it."""
    out = model(paddle.randn([2, 3, 16, 16])).sum()
    out.backward(retain_graph=True)
    with pytest.raises(OSError, match=r"no second way back.*images\.stop_gradient = False"):
        out.backward()


def check_made_static(monkeypatch, way, model, full_graph):
    """Assert that `paddle.jit.to_static` takes the layers, from the source, or, as it would by itself, the bytecode."""
    x = paddle.randn([2, 3, 16, 16])
    expected = model(x).numpy()
    monkeypatch.setattr(way, "mix", None)
    model = paddle.jit.to_static(model, full_graph=full_graph)
    out = model(x)
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    out.sum().backward()
    assert model.stem[0].weight.grad is not None


def altered_networks(**shape):
    """Yield networks that somebody rebuilt, set otherwise or hooked into."""
    for part in (lambda m: m.blocks, lambda m: m.blocks[0][0], lambda m: m.stem):
        model = network(**shape)
        part(model).register_forward_pre_hook(lambda *_: None)
        yield model
    model = network(**shape)
    model.blocks[0][0].fn[0].register_forward_post_hook(lambda *_: None)
    yield model
    model = network(**shape)
    model.blocks[0][2] = paddle.nn.Tanh()
    yield model
    model = network(**shape)
    model.blocks[0] = paddle.nn.Sequential(paddle.nn.Identity())
    yield model
    model = network(**shape)
    model.stem[2]._epsilon = 1e-3
    yield model
    model = network(**shape)
    model.blocks[0][1].forward = lambda x: x
    yield model


def used(monkeypatch, way, model, *arguments):
    """Tell whether a call of the model goes through ``way.mix``."""
    calls = []
    with monkeypatch.context() as patch:
        original = way.mix
        patch.setattr(way, "mix", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
        model(*arguments)
    return bool(calls)
