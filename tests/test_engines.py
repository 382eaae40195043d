import gc
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from conftest import ROOT, random_state, reference_network

import ppconvmixer
from ppconvmixer import UserError, cli, datasets, engines, signal_stack, sources, zoo
from ppconvmixer.engines import ENGINES, create_engine
from ppconvmixer.loader import Samples, batches
from ppconvmixer.ops import mixer
from ppconvmixer.transforms import eval_transform

OTHERS = [name for name in ENGINES if name not in ("dygraph", "int8", "openvino-bf16")]  # the last two round
GRAPHS = [name for name in OTHERS if name != "operator"]


def make(name):
    """Return the engine maker, or skip where its package is missing."""
    for package in {"onnxruntime": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}.get(name, ()):
        pytest.importorskip(package)
    return lambda model: create_engine(name, model)


def network(**shape):
    shape = {"dim": 24, "depth": 2, "kernel_size": 5, "patch_size": 4, "num_classes": 7, **shape}
    state = random_state(**{key: value for key, value in shape.items() if key != "act"})
    model = ppconvmixer.ConvMixer(**shape)
    model.set_state_dict(state)
    return model


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PPCONVMIXER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def assert_close(found, expected):
    """To 1e-5 of the largest logit: some hundred float32 roundings in another order."""
    assert found.shape == expected.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    "shape",
    [{}, {"act": "relu"}, {"kernel_size": 8}, {"dim": 5, "patch_size": 1, "kernel_size": 9}, {"in_chans": 1}],
    ids=["gelu", "relu", "even kernel", "few channels", "grey"],
)
def test_every_engine_gives_the_logits_of_the_dynamic_graph(name, shape):
    model = network(**shape)
    engine = make(name)(model)
    assert (engine.name, engine.num_classes) == (name, 7)
    rng = np.random.default_rng(0)
    for n, height, width in ((1, 32, 32), (3, 32, 32), (2, 21, 36), (1, 32, 32)):
        images = rng.standard_normal((n, model.in_chans, height, width)).astype(np.float32)
        assert_close(engine(images), create_engine("dygraph", model)(images))


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_is_made_once_and_again_for_other_weights(name, home, monkeypatch):
    model = network()
    saved = []
    for save in ("_save_static", "_save_onnx"):
        original = getattr(engines, save)
        monkeypatch.setattr(engines, save, lambda *a, original=original: (saved.append(1), original(*a)))
    images = np.ones((1, 3, 32, 32), np.float32)
    first = make(name)(model)(images)
    np.testing.assert_array_equal(make(name)(model)(images), first)
    assert len(saved) == 1
    model.head.bias.set_value(model.head.bias + 1)
    assert_close(make(name)(model)(images), first + 1)
    assert len(saved) == 2


def test_the_cache_of_graphs_does_not_grow(home):
    model = network()
    images = np.ones((1, 3, 32, 32), np.float32)
    for i in range(engines.KEPT + 3):
        model.head.bias.set_value(np.full(7, i, np.float32))
        assert_close(create_engine("inference", model)(images), create_engine("dygraph", model)(images))
    assert len([p for p in (home / "graphs").iterdir() if p.is_dir()]) == engines.KEPT


def test_training_mode_and_statistics_are_left_alone(home):
    model = network()
    model.train()
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    for name in ("dygraph", "inference"):
        create_engine(name, model)(np.ones((2, 3, 32, 32), np.float32))
    assert model.training and model.stem[2].training
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])


def test_a_cache_that_cannot_be_written_is_named(home):
    home.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot keep the graph in .*PPCONVMIXER_HOME.*--engine dygraph"):
        create_engine("inference", network())


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_missing_package_is_named_with_the_command(name, monkeypatch):
    monkeypatch.setattr(engines, "_installed", lambda package: False)
    with pytest.raises(UserError, match=f"pip install {name}"):
        create_engine(name, network())


def test_an_unknown_engine_is_named():
    with pytest.raises(UserError, match=r"unknown engine 'onnx'; did you mean 'onnxruntime'|onnxruntime"):
        create_engine("onnx", network())


@pytest.mark.skipif(paddle.get_device() != "cpu", reason="a GPU has the dynamic graph")
def test_auto_is_the_fastest_there_is(monkeypatch):
    model = network()
    with_operator = "inference" if mixer.library() is None else "operator"
    assert engines.fastest(model) == create_engine("auto", model).name == with_operator
    monkeypatch.setattr(mixer, "library", lambda: None)
    assert engines.fastest(model) == create_engine("auto", model).name == "inference"
    with pytest.raises(UserError, match=r"operator needs a C\+\+ compiler.*--engine auto"):
        create_engine("operator", model)


@pytest.mark.parametrize("name", ["dygraph", *OTHERS])
def test_eval_and_predict_with_every_engine(name, tiny_weights, class_folders, tmp_path, capfd):
    make(name)
    results = []
    for engine in ("dygraph", name):
        arguments = ["eval", "--weights", tiny_weights, "--data", class_folders / "val", "--workers", 0]
        arguments += ["--engine", engine, "--logits", tmp_path / f"{engine}.npy"]
        assert cli.main([str(a) for a in arguments]) == 0
        results.append(np.load(tmp_path / f"{engine}.npy"))
    assert_close(results[1], results[0])
    picture = next((class_folders / "val/cat").iterdir())
    assert cli.main(["predict", "--weights", str(tiny_weights), "--engine", name, str(picture)]) == 0
    assert "cat" in capfd.readouterr().out


def test_standard_output_holds_the_result_alone(tiny_weights, class_folders, home):
    """Paddle's own remarks must not get into what a script reads."""
    command = [sys.executable, ROOT / "tools/eval.py", "--weights", tiny_weights, "--data", class_folders / "val"]
    done = subprocess.run(
        [str(c) for c in [*command, "--engine", "inference"]],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 1 and done.stdout.startswith("convmixer_tiny: 12 pictures")
    assert done.stderr.splitlines() == ["the model has 3 classes, so top-5 is top-3"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", OTHERS)
def test_the_same_top_5_on_a_hundred_real_pictures(name, shared, monkeypatch):
    """1024/20 with the weights of the reference: logits to 1e-4 of the largest, and the same five classes."""
    model = reference_network(shared, monkeypatch, "convmixer_1024_20_ks9_p14")
    spec = zoo.input_spec("convmixer_1024_20")
    sample = shared / "data/imagenet-sample"
    pictures = datasets.from_list(sources.Folder(sample), sample / "val_list.txt")
    engine, reference = make(name)(model), create_engine("dygraph", model)
    seen = 0
    for batch in batches(Samples(pictures, eval_transform(spec)), range(len(pictures)), 10, 0):
        images = batch.images[batch.readable]
        found, expected = engine(images), reference(images)
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
        assert [set(row) for row in np.argsort(-found)[:, :5]] == [set(row) for row in np.argsort(-expected)[:, :5]]
        seen += len(images)
    assert seen == 100


@pytest.mark.skipif(sys.platform != "linux", reason="seen on Linux alone")
def test_openvino_leaves_the_stack_of_signal_handlers_alone():
    """It would put one of its own in place and free it with the network; the next Ctrl-C would be a crash."""

    def stack():
        found = signal_stack.current()
        return found.start, found.flags, found.size

    before = stack()
    engine = make("openvino")(network())
    engine(np.zeros((1, 3, 32, 32), np.float32))
    assert stack() == before
    del engine
    gc.collect()
    assert stack() == before


def test_onnx_runtime_takes_the_gpu_where_its_package_has_one(monkeypatch, tmp_path):
    """In full float32, as an H100 had it: 6e-7 of the largest logit from the CPU, with TF32 3e-4."""
    made = []
    module = SimpleNamespace(
        SessionOptions=SimpleNamespace,
        InferenceSession=lambda graph, options, providers: made.append(providers),
        get_available_providers=lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
        preload_dlls=lambda: made.append("libraries"),
    )
    monkeypatch.setattr(engines, "_package", lambda name: module)
    engines.OnnxRuntime(tmp_path / "a.onnx", 3)
    assert made == ["libraries", [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]]
    module.get_available_providers = lambda: ["CPUExecutionProvider"]
    engines.OnnxRuntime(tmp_path / "a.onnx", 3)
    assert made[2:] == [["CPUExecutionProvider"]]
