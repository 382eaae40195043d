"""The CPU operator against Paddle's own operators, against NumPy in float64, and against rough treatment."""

import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import paddle
import pytest
from conftest import (
    ROOT,
    SHAPES,
    altered_networks,
    check_evaluation_and_frozen_norms,
    check_made_static,
    check_second_way_back,
    check_step,
    check_the_same_bits,
    network,
    used,
)

from ppconvmixer import UserError
from ppconvmixer.engines import create_engine
from ppconvmixer.model import layer_id
from ppconvmixer.ops import build, mixer

if build.library() is None:
    pytest.skip("needs a C++ compiler", allow_module_level=True)
if paddle.get_device() != "cpu":
    paddle.set_device("cpu")


@pytest.mark.parametrize("act", ["gelu", "relu"])
@pytest.mark.parametrize("how", ["maps", "pooled"])
@pytest.mark.parametrize("case", SHAPES)
def test_a_step_is_as_near_to_float64_as_paddles_own(case, how, act):
    check_step(case, act, mixer.mix, how == "pooled")


def reference(state, images, kernel, patch):
    """Return the pooled result of a stem and one block with GELU in evaluation, in float64 and with NumPy alone."""
    from math import erf

    def norm(x, name):
        mean, variance = state[f"{name}._mean"], state[f"{name}._variance"]
        shape = (1, -1, 1, 1)
        scale = state[f"{name}.weight"] / np.sqrt(variance + 1e-5)
        return (x - mean.reshape(shape)) * scale.reshape(shape) + state[f"{name}.bias"].reshape(shape)

    def gelu(x):
        return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))

    n, _, height, width = images.shape
    h, w = height // patch, width // patch
    patches = images[:, :, : h * patch, : w * patch].reshape(n, -1, h, patch, w, patch)
    z = np.einsum("ncyaxb,dcab->ndyx", patches, state["stem.0.weight"]) + state["stem.0.bias"].reshape(1, -1, 1, 1)
    x = norm(gelu(z), "stem.2")
    pad = kernel // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    z = np.zeros_like(x) + state["blocks.0.0.fn.0.bias"].reshape(1, -1, 1, 1)
    for i in range(kernel):
        for j in range(kernel):
            tap = state["blocks.0.0.fn.0.weight"][:, 0, i, j].reshape(1, -1, 1, 1)
            z += tap * padded[:, :, i : i + h, j : j + w]
    y = x + norm(gelu(z), "blocks.0.0.fn.2")
    weight = state["blocks.0.1.weight"][:, :, 0, 0]
    z = np.einsum("ncyx,dc->ndyx", y, weight) + state["blocks.0.1.bias"].reshape(1, -1, 1, 1)
    return norm(gelu(z), "blocks.0.3").mean(axis=(2, 3))


def test_gradients_are_the_slopes_of_numpys_float64():
    """With the statistics held fixed, so that every gradient has a size of its own."""
    shape = {"dim": 6, "depth": 1, "kernel_size": 3, "patch_size": 2}
    rng = np.random.default_rng(3)
    images = rng.standard_normal((2, 3, 8, 10)).astype(np.float32)
    weights = rng.standard_normal((2, 6))
    model = network(**shape)
    model.eval()
    out = mixer.mix(model, paddle.to_tensor(images), pooled=True)
    state = {name: value.numpy().astype(np.float64) for name, value in model.state_dict().items()}
    np.testing.assert_allclose(out.numpy(), reference(state, images, 3, 2), rtol=0, atol=2e-6)
    (out * paddle.to_tensor(weights.astype(np.float32))).sum().backward()
    checked = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is None or name.startswith("head"):
            continue
        for index in rng.integers(0, state[name].size, 5):
            slopes = []
            for sign in (1, -1):
                moved = {**state, name: state[name].copy()}
                moved[name].flat[index] += sign * 1e-5
                slopes.append((reference(moved, images, 3, 2) * weights).sum() / 2e-5)
            assert parameter.grad.numpy().flat[index] == pytest.approx(slopes[0] - slopes[1], rel=2e-4, abs=2e-5), name
            checked += 1
    assert checked == 12 * 5


def test_the_whole_line_of_gelu():
    """Values and slopes from -20 to 20."""
    from math import erf, erfc, exp, pi, sqrt

    model = network(dim=1, depth=0, kernel_size=3, patch_size=1, in_chans=1)
    model.eval()
    for name, value in (("0.weight", 1), ("0.bias", 0), ("2.weight", 1), ("2.bias", 0)):
        layer, leaf = name.split(".")
        getattr(model.stem[int(layer)], leaf).set_value(
            np.full(getattr(model.stem[int(layer)], leaf).shape, value, "float32")
        )
    model.stem[2]._mean.set_value(np.zeros(1, np.float32))
    model.stem[2]._variance.set_value(np.full(1, 1 - 1e-5, np.float32))
    z = np.linspace(-20, 20, 20_001).astype(np.float32)
    out = mixer.mix(model, paddle.to_tensor(z.reshape(1, 1, 1, -1)), pooled=False).numpy().ravel()
    exact = np.array([x * 0.5 * erfc(-x / sqrt(2)) for x in z.astype(float)])
    # Phi is off by 1e-8 and two roundings of numbers up to 1; the input was rounded, by the norm, once more.
    assert (np.abs(out - exact) / np.maximum(np.abs(z), 0.1)).max() < 2e-7
    slope = np.array([0.5 * (1 + erf(x / sqrt(2))) + x * exp(-x * x / 2) / sqrt(2 * pi) for x in z.astype(float)])
    for i in range(0, len(z), 997):
        model.clear_gradients()
        mixer.mix(model, paddle.to_tensor(z[i].reshape(1, 1, 1, 1)), pooled=True).sum().backward()
        assert model.stem[0].bias.grad.item() == pytest.approx(slope[i], abs=3e-7)


@pytest.mark.parametrize("dim", [256, 300, 520])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 5), (14, 21)])
@pytest.mark.parametrize("scale", [1, 100])
def test_evaluation_is_as_near_to_float64_as_paddles_own(dim, size, scale):
    """With seven products of quarters instead of one of the whole; ``scale`` makes some pixels larger than others."""
    shape = {"dim": dim, "depth": 2, "kernel_size": 3, "patch_size": 2}
    images = np.random.default_rng(0).standard_normal((2, 3, 2 * size[0], 2 * size[1])).astype(np.float32)
    images[:, :, :, :2] *= scale
    found = []
    for dtype in ("float64", "float32"):
        model = network(dtype=dtype, **shape)
        model.eval()
        with paddle.no_grad():
            found.append(model.blocks(model.stem(paddle.to_tensor(images.astype(dtype)))).numpy())
    exact, theirs = found
    ours = mixer.Prepared(model)(images, pooled=False)
    np.testing.assert_array_equal(mixer.Prepared(model)(images, pooled=False), ours)
    error, paddles = np.abs(ours - exact).max(), np.abs(theirs - exact).max()
    assert error <= 10 * paddles, f"off by {error:.1e}, Paddle's own operators by {paddles:.1e}"


def test_the_same_bits_every_time():
    check_the_same_bits(mixer.mix)


@pytest.mark.parametrize("how", ["maps", "pooled"])
def test_evaluation_and_frozen_norms(how):
    check_evaluation_and_frozen_norms(mixer.mix, how == "pooled")


def test_parameters_that_are_frozen_get_no_gradient():
    model = network(dim=32, depth=2, kernel_size=5, patch_size=2)
    for parameter in [*model.stem.parameters(), *model.blocks[0].parameters()]:
        parameter.stop_gradient = True
    model(paddle.randn([2, 3, 16, 16])).sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient and all(name.startswith(("blocks.1", "head")) for name in with_gradient)


@pytest.mark.parametrize("layers", range(6))
def test_the_way_back_ends_above_what_is_frozen(layers, monkeypatch):
    """And finds for the rest what it finds with nothing frozen, the norms being in evaluation there as well."""
    shape = {"dim": 32, "depth": 3, "kernel_size": 5, "patch_size": 2, "num_classes": 7}
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32))
    asked = []
    original = mixer._Call.backward
    monkeypatch.setattr(mixer._Call, "backward", lambda *a, **k: (asked.append(k["lowest"]), original(*a, **k)))
    found = []
    for frozen in (False, True):
        model = network(**shape)
        model.freeze(layers)
        for parameter in () if frozen else model.parameters():
            parameter.stop_gradient = parameter.name.endswith(("_mean", "_variance"))
        (model(images) ** 2).sum().backward()
        found.append({name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None})
    every, ours = found
    assert set(ours) == {name for name in every if layer_id(name, 3) >= layers}
    room = 0 if layers < 4 else 1e-6  # with all frozen another kernel computes, that of evaluation
    for name, value in ours.items():
        np.testing.assert_allclose(value, every[name], rtol=0, atol=room * np.abs(every[name]).max(), err_msg=name)
    assert asked == ([0, layers] if layers < 4 else [0])


def test_two_ways_forward_before_one_back():
    """As distillation and gradient accumulation do; the memory of one must not be lent to the other."""
    model = network(dim=32, depth=2, kernel_size=5, patch_size=2)
    model.eval()
    a, b = (
        paddle.to_tensor(np.random.default_rng(i).standard_normal((2, 3, 16, 16)).astype(np.float32)) for i in (0, 1)
    )
    (model(a).sum() + 2 * model(b).sum()).backward()
    together = model.stem[0].weight.grad.numpy()
    model.clear_gradients()
    model(a).sum().backward()
    (2 * model(b).sum()).backward()
    np.testing.assert_allclose(model.stem[0].weight.grad.numpy(), together, rtol=0, atol=1e-5 * np.abs(together).max())


def test_a_second_way_back_is_an_error():
    check_second_way_back(network(dim=16, depth=1, kernel_size=5, patch_size=2))


@pytest.mark.parametrize("full_graph", [False, True])
def test_a_network_made_static_has_the_layers(monkeypatch, full_graph):
    check_made_static(monkeypatch, mixer, network(dim=16, depth=1, kernel_size=5, patch_size=2), full_graph)


def test_the_network_uses_it_only_where_it_computes_the_same(monkeypatch):
    x = paddle.randn([2, 3, 16, 16])
    shape = {"dim": 16, "depth": 1, "kernel_size": 5, "patch_size": 2}
    assert used(monkeypatch, mixer, network(**shape), x)
    assert used(monkeypatch, mixer, network(act="relu", **shape), x)
    assert used(monkeypatch, mixer, network(**{**shape, "kernel_size": 4}), x)
    for model in altered_networks(**shape):
        assert not used(monkeypatch, mixer, model, x)
    wanted = x.clone()
    wanted.stop_gradient = False
    assert not used(monkeypatch, mixer, network(**shape), wanted)
    assert not used(monkeypatch, mixer, network(dtype="float64", **shape), x.astype("float64"))


def test_it_is_the_tensors_that_say_their_precision():
    """Moving the network to where it is must not cost the operator, and doubles must not be read as floats."""
    model = network(dim=16, depth=1, kernel_size=5, patch_size=2)
    model.to("cpu")
    assert mixer.unchanged(model)
    model.blocks[0][1].bias = paddle.create_parameter([16], "float64")
    assert not mixer.unchanged(model)


def test_the_operator_comes_back_when_hooks_are_gone(monkeypatch):
    model = network(dim=8, depth=2, kernel_size=3, patch_size=2)
    x = paddle.randn([1, 3, 8, 8])
    hooks = [block.register_forward_post_hook(lambda *_: None) for block in model.blocks]
    assert not used(monkeypatch, mixer, model, x)  # every layer notes that it was called
    for hook in hooks:
        hook.remove()
    assert used(monkeypatch, mixer, model, x)


def test_a_number_that_is_none_stays_none():
    """A loss that is not finite must be seen, not smoothed over."""
    model = network(dim=16, depth=1, kernel_size=5, patch_size=2)
    images = np.zeros((2, 3, 16, 16), np.float32)
    images[0, 0, 3, 3] = np.nan
    assert np.isnan(model(paddle.to_tensor(images)).numpy()).any()


def test_pictures_that_do_not_fit_are_refused_and_other_numbers_brought_to_float32():
    """The engine reads memory by what it is told of it."""
    engine = create_engine("operator", network(dim=16, depth=1, kernel_size=5, patch_size=2))
    for shape in ((1, 1, 16, 16), (1, 3, 1, 16), (3, 16, 16)):
        with pytest.raises(UserError, match="want N x 3 x H x W, at least 2 x 2 pixels"):
            engine(np.zeros(shape, np.float32))
    images = np.random.default_rng(0).integers(0, 3, (2, 3, 16, 16))
    expected = engine(images.astype(np.float32))
    for dtype in (np.uint8, np.float16, np.float64):
        np.testing.assert_array_equal(engine(images.astype(dtype)), expected)


def test_an_empty_batch_is_refused():
    """Its statistics would be no numbers, and stay so."""
    model = network(dim=16, depth=1, kernel_size=5, patch_size=2)
    model.train()
    with pytest.raises(UserError, match="the batch is empty"):
        model(paddle.zeros([0, 3, 16, 16]))


def test_memory_is_given_to_one_thread_at_a_time():
    pool, wrong = mixer._Pool(), []

    def work(size):
        for _ in range(20_000):
            array = pool.take(size)
            if array.size != size:
                wrong.append(array.size)
            pool.give(array)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [threading.Thread(target=work, args=(size,)) for size in (1, 2, 3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_a_library_of_nothing_is_built_anew(tmp_path, monkeypatch):
    """As the power may leave it behind."""
    monkeypatch.setenv("PPCONVMIXER_HOME", str(tmp_path))
    target = tmp_path / "ops" / f"operator-{build._key(build._compiler())}.so"
    target.parent.mkdir()
    target.touch()
    assert build._built() == target and target.stat().st_size > 0


# --- building ------------------------------------------------------------------------------------------


def build_in(home, queue):
    os.environ["PPCONVMIXER_HOME"] = str(home)
    build.library.cache_clear()
    queue.put((build.library() is not None, sorted(p.suffix for p in (home / "ops").iterdir())))


def test_ten_processes_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    processes = [context.Process(target=build_in, args=(tmp_path, queue)) for _ in range(10)]
    for process in processes:
        process.start()
    assert all(queue.get()[0] for _ in processes)
    for process in processes:
        process.join()
    assert len(list((tmp_path / "ops").glob("*.so"))) == 1
    assert not [p for p in (tmp_path / "ops").iterdir() if p.suffix not in (".so", ".lock")]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"PPCONVMIXER_OPS": "0"}, "PPCONVMIXER_OPS is 0"),
        ({"PATH": "/nowhere", "CXX": ""}, "there is no C++ compiler"),
        ({"CXX": "/bin/false"}, "exit status 1"),
        ({"CXX": "BROKEN"}, "an error of the loader"),
    ],
)
def test_without_it_one_line_says_what_is_lost_and_all_goes_on(tmp_path, settings, reason):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho an error of the loader >&2\nexit 127\n")
    broken.chmod(0o755)
    settings = {key: str(broken) if value == "BROKEN" else value for key, value in settings.items()}
    code = """
        import logging, sys
        logging.getLogger("ppconvmixer").addHandler(logging.StreamHandler(sys.stdout))
        logging.getLogger("ppconvmixer").setLevel(logging.INFO)
        import paddle, ppconvmixer
        model = ppconvmixer.create_model("convmixer_tiny")
        for _ in range(2):
            model(paddle.ones([2, 3, 32, 32])).sum().backward()
        print(list(model.stem[0].weight.grad.shape))
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PPCONVMIXER_HOME": str(tmp_path), **settings}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stdout.splitlines() if "CPU operator" in line]
    assert len(lines) == 1 and reason in lines[0] and done.stdout.splitlines()[-1] == "[64, 3, 4, 4]"


DRIVER = """
#include <cstdio>
#include <vector>
#include "network.h"

int main() {
  const Shape shapes[] = {
      {2, 3, 16, 16, 2, 32, 2, 5, 0, 2}, {3, 3, 22, 31, 3, 24, 2, 3, 1, 2}, {3, 3, 12, 20, 4, 16, 1, 9, 0, 3},
      {3, 3, 10, 10, 2, 1, 1, 3, 0, 1},  {1, 1, 18, 18, 2, 40, 2, 7, 1, 2}, {2, 3, 9, 9, 1, 37, 2, 5, 0, 2},
      {2, 3, 63, 56, 7, 300, 1, 3, 0, 2}, {2, 3, 8, 8, 2, 16, 0, 3, 0, 2},  {4, 3, 8, 8, 8, 16, 1, 5, 0, 2},
      {5, 3, 30, 22, 2, 48, 2, 8, 0, 2},  {2, 3, 6, 10, 2, 256, 1, 3, 0, 2}};
  for (const Shape& s : shapes)
    for (int64_t pooled : {0, 1})
      for (int64_t keep : {0, 1}) {
        std::vector<std::vector<float>> held;  // every tensor in an array of its own size: a step outside is seen
        auto make = [&](size_t count) {
          held.emplace_back(count);
          for (size_t i = 0; i < count; ++i) held.back()[i] = 0.1f + 0.01f * (i * 7919 % 97);
          return held.back().data();
        };
        size_t c = s.c, in = s.channels * s.patch * s.patch, k = s.kernel * s.kernel;
        Stem stem = {make(c * in), make(c), make(c), make(c), make(c), make(c), keep};
        StemGradients stem_gradients = {make(c * in), make(c), make(c), make(c)};
        std::vector<Block> blocks;
        std::vector<Gradients> gradients;
        for (int i = 0; i < s.depth; ++i) {
          blocks.push_back({make(c * k), make(c), make(c), make(c), make(c), make(c), make(c * c), make(c), make(c),
                            make(c), make(c), make(c), keep, keep});
          gradients.push_back({make(c * k), make(c), make(c), make(c), make(c * c), make(c), make(c), make(c)});
        }
        size_t out = s.n * c * (pooled ? 1 : (s.height / s.patch) * (s.width / s.patch));
        float *images = make(s.n * s.channels * s.height * s.width), *result = make(out);
        float *memory = make(mixer_memory(&s, keep)), *d = make(mixer_map(&s));
        mixer_forward(&s, &stem, blocks.data(), images, pooled, result, memory, keep);
        if (keep)
          mixer_backward(&s, &stem, blocks.data(), images, pooled, result, memory, &stem_gradients, gradients.data(), d, s.depth / 2);
        else {
          float* prepared = make(network_floats(&s));
          network_prepare(&s, &stem, blocks.data(), prepared);
          network_run(&s, prepared, images, pooled, result, make(network_memory(&s)));
        }
        for (size_t i = 0; i < out; ++i)
          if (!std::isfinite(result[i])) return 1;
      }
  puts("sound");
}
"""


@pytest.mark.slow
def test_no_step_outside_its_memory(tmp_path):
    (tmp_path / "driver.cpp").write_text(DRIVER)
    flags = ["-std=c++17", "-O1", "-g", "-march=native", "-fopenmp", "-Wno-psabi", f"-I{build.FOLDER}"]
    command = [build._compiler(), *flags, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([*command, *build.SOURCES, tmp_path / "driver.cpp", "-o", tmp_path / "driver"], check=True)
    done = subprocess.run([tmp_path / "driver"], capture_output=True, text=True, env={"ASAN_OPTIONS": "detect_leaks=0"})
    assert done.returncode == 0 and done.stdout == "sound\n", done.stderr[-3000:]
