"""Networks around ConvMixer: several kernel sizes, the norm first, other residuals."""

import math

import numpy as np
import paddle
import pytest
from conftest import refused, run, used

from ppconvmixer import (
    ConvMixer,
    UserError,
    card,
    checkpoint,
    create_model,
    engines,
    graph,
    layouts,
    prune,
    recipe,
    zoo,
)
from ppconvmixer.engines import Dygraph
from ppconvmixer.evaluate import evaluate
from ppconvmixer.finetune import open_data
from ppconvmixer.insight import (
    complexity,
    diversity,
    examination,
    features,
    gradcam,
    kernels,
    receptive_field,
    robustness,
)
from ppconvmixer.loader import Samples, TrainBatches
from ppconvmixer.onnx_file import to_onnx
from ppconvmixer.ops import mixer, rewrite
from ppconvmixer.trained import Trained
from ppconvmixer.transforms import eval_transform, train_transform

SHAPE = {"dim": 8, "depth": 2, "patch_size": 2, "num_classes": 3}
VARIANTS = {
    "mixed kernels": {"kernel_size": [3, 5, 8]},
    "norm first": {"kernel_size": 3, "norm_first": True},
    "both halves": {"kernel_size": 5, "residual": "both"},
    "whole block": {"kernel_size": 3, "residual": "block", "act": "relu"},
    "all of them": {"kernel_size": (3, 5), "norm_first": True, "residual": "both"},
}
every_variant = pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)


def make(**settings):
    """A variant in evaluation with weights and statistics that are all its own."""
    paddle.seed(1)
    model = ConvMixer(**SHAPE, **settings)
    rng = np.random.default_rng(0)
    for name, value in model.state_dict().items():
        if len(value.shape) == 1:
            noise = 0.3 * rng.standard_normal(value.shape).astype(np.float32)
            value.set_value(np.exp(noise) if name.endswith(("_variance", "weight")) else noise)
    model.eval()
    return model


def images(count=2, seed=1):
    return np.random.default_rng(seed).standard_normal((count, 3, 12, 10)).astype(np.float32)


class Formula:
    """The variants in float64, written from what the documents say of them."""

    def __init__(self, model, kernel_size, norm_first=False, residual="depthwise", act="gelu"):
        self.state = {name: value.numpy().astype(np.float64) for name, value in model.state_dict().items()}
        self.kernels = [kernel_size] if isinstance(kernel_size, int) else list(kernel_size)
        self.norm_first, self.residual, self.act = norm_first, residual, act

    def __call__(self, x):
        rows, columns = x.shape[2] // 2, x.shape[3] // 2
        patches = x[:, :, : 2 * rows, : 2 * columns].reshape(len(x), 3, rows, 2, columns, 2)
        x = self.rest(np.einsum("ncrpsq,dcpq->ndrs", patches, self.state["stem.0.weight"]), "stem", 0)
        for i in range(SHAPE["depth"]):
            if self.residual == "block":
                y = self.depthwise(x, f"blocks.{i}.0.fn")
                x = self.pointwise(y, f"blocks.{i}.0.fn", 3) + x
                continue
            x = self.depthwise(x, f"blocks.{i}.0.fn") + x
            both = self.residual == "both"
            y = self.pointwise(x, f"blocks.{i}.1.fn", 0) if both else self.pointwise(x, f"blocks.{i}", 1)
            x = y + x if both else y
        return x.mean(axis=(2, 3)) @ self.state["head.weight"] + self.state["head.bias"]

    def depthwise(self, x, name):
        several = len(self.kernels) > 1
        channels = np.array_split(np.arange(x.shape[1]), len(self.kernels))
        found = []
        for j, (kernel, some) in enumerate(zip(self.kernels, channels)):
            before = (kernel - 1) // 2
            padded = np.pad(x[:, some], ((0, 0), (0, 0), *[(before, kernel - 1 - before)] * 2))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))
            own = f"{name}.0.{j}" if several else f"{name}.0"
            y = np.einsum("ncrspq,cpq->ncrs", windows, self.state[f"{own}.weight"][:, 0])
            found.append(y + self.state[f"{own}.bias"][:, None, None])
        return self.rest(np.concatenate(found, axis=1), name, 0, bias=False)

    def pointwise(self, x, name, first):
        y = np.einsum("ncrs,dc->ndrs", x, self.state[f"{name}.{first}.weight"][:, :, 0, 0])
        return self.rest(y, name, first)

    def rest(self, x, name, first, bias=True):
        if bias:
            x = x + self.state[f"{name}.{first}.bias"][:, None, None]
        norm = f"{name}.{first + (1 if self.norm_first else 2)}"
        mean, variance, weight, shift = (
            self.state[f"{norm}.{leaf}"][:, None, None] for leaf in ("_mean", "_variance", "weight", "bias")
        )

        def normed(v):
            return (v - mean) / np.sqrt(variance + 1e-5) * weight + shift

        def active(v):
            return np.maximum(v, 0) if self.act == "relu" else v * 0.5 * (1 + np.vectorize(math.erf)(v / math.sqrt(2)))

        return active(normed(x)) if self.norm_first else normed(active(x))


@every_variant
def test_a_variant_computes_its_formula(settings):
    model, x = make(**settings), images()
    expected = Formula(model, **settings)(x.astype(np.float64))
    # float32 keeps 7 digits; a few dozen roundings along the depth cost one or two of them
    np.testing.assert_allclose(model(paddle.to_tensor(x)).numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_channels_are_split_as_evenly_as_can_be():
    conv = ConvMixer(256, 1, kernel_size=[3, 5, 7]).blocks[0][0].fn[0]
    assert [tuple(part.weight.shape) for part in conv] == [(86, 1, 3, 3), (85, 1, 5, 5), (85, 1, 7, 7)]
    uneven = ConvMixer(11, 1, kernel_size=[3, 5, 7, 9], patch_size=1).blocks[0][0].fn[0]
    assert [part.weight.shape[0] for part in uneven] == [3, 3, 3, 2]
    for part, fan_in in zip(conv, (9, 25, 49)):  # each is drawn by its own fan-in
        assert 0.95 / math.sqrt(fan_in) < np.abs(part.weight.numpy()).max() <= 1 / math.sqrt(fan_in)


def test_the_default_is_drawn_as_ever():
    """Weight, then bias, of the stem, of the halves of every block in turn, of the head: the order of the draws."""
    paddle.seed(3)
    model = ConvMixer(6, 2, kernel_size=5, patch_size=2, num_classes=4)
    paddle.seed(3)
    state = model.state_dict()
    shapes = {"stem.0": ([6, 3, 2, 2], 12)}
    for i in range(2):
        shapes |= {f"blocks.{i}.0.fn.0": ([6, 1, 5, 5], 25), f"blocks.{i}.1": ([6, 6, 1, 1], 6)}
    shapes["head"] = ([6, 4], 6)
    for name, (shape, fan_in) in shapes.items():
        for leaf, size in (("weight", shape), ("bias", [shape[1] if name == "head" else shape[0]])):
            bound = 1 / math.sqrt(fan_in)
            draw = paddle.nn.initializer.Uniform(-bound, bound)
            wanted = paddle.create_parameter(size, "float32", default_initializer=draw)
            np.testing.assert_array_equal(state[f"{name}.{leaf}"].numpy(), wanted.numpy(), err_msg=f"{name}.{leaf}")


@pytest.mark.parametrize("kernel_size", [[5], (5,), [5, 5]])
def test_options_that_coincide_with_the_default_are_the_default(kernel_size, monkeypatch):
    found = []
    for size in (5, kernel_size):
        paddle.seed(2)
        found.append(ConvMixer(**SHAPE, kernel_size=size, norm_first=False, residual="depthwise"))
        found[-1].eval()
    ours, theirs = (model.state_dict() for model in found)
    assert list(ours) == list(theirs) and found[1].plain
    for name, value in ours.items():
        np.testing.assert_array_equal(value.numpy(), theirs[name].numpy())
    x = paddle.to_tensor(images())
    np.testing.assert_array_equal(found[0](x).numpy(), found[1](x).numpy())
    way = mixer if mixer.library() else rewrite
    assert used(monkeypatch, way, found[1], x)  # the speed path


@every_variant
def test_a_variant_runs_through_the_layers(settings, monkeypatch):
    model = make(**settings)
    x = paddle.to_tensor(images())
    for _ in range(2):  # in evaluation and in training
        assert not used(monkeypatch, mixer, model, x)
        with monkeypatch.context() as patch:
            patch.setattr(mixer, "library", lambda: None)
            assert not used(monkeypatch, rewrite, model, x)
        model.train()
    assert not model.plain and not mixer.known(model) and engines.fastest(model) in ("inference", "dygraph")
    for name in ("operator", "int8"):
        with pytest.raises(
            UserError, match=rf"the engine {name} needs .* unchanged float32 ConvMixer; take --engine auto"
        ):
            engines.create_engine(name, model)


@every_variant
def test_a_variant_learns(settings):
    model = make(**settings)
    model.train()
    optimizer = paddle.optimizer.AdamW(0.01, parameters=model.parameters())
    x, labels, losses = paddle.to_tensor(images(12)), paddle.to_tensor(np.arange(12) % 3), []
    for _ in range(25):
        loss = paddle.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        if not losses:
            trained = [name for name, p in model.named_parameters() if not name.endswith(("._mean", "._variance"))]
            gradients = dict(model.named_parameters())
            assert all(gradients[name].grad is not None for name in trained)
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


@every_variant
def test_the_lowest_layers_of_a_variant_can_be_frozen(settings):
    model = make(**settings)
    model.freeze(2)  # the stem and block 0
    model.train()
    (model(paddle.to_tensor(images())) ** 2).sum().backward()
    for name, parameter in model.named_parameters():
        if not name.endswith(("._mean", "._variance")):
            assert (parameter.grad is None) == name.startswith(("stem.", "blocks.0.")), name


def test_drop_path_goes_through_every_residual():
    for residual, count in (("both", 2), ("block", 1), ("depthwise", 1)):
        model = ConvMixer(8, 3, kernel_size=3, patch_size=2, drop_path=0.2, residual=residual)
        found = [[part.drop_path for part in block if hasattr(part, "drop_path")] for block in model.blocks]
        np.testing.assert_allclose(found, [[0.0] * count, [0.1] * count, [0.2] * count])


def test_static_engines_agree_with_the_layers(tmp_path, monkeypatch):
    monkeypatch.setenv("PPCONVMIXER_HOME", str(tmp_path))
    model = make(**VARIANTS["all of them"])
    expected = Formula(model, **VARIANTS["all of them"])(images().astype(np.float64))
    for name in ("dygraph", "inference"):
        found = engines.create_engine(name, model)(images())
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=name)


@every_variant
def test_what_knows_convmixer_alone_refuses_a_variant(settings):
    model = make(**settings)
    with pytest.raises(UserError, match="an ONNX graph is of ConvMixer itself, not of its variants"):
        to_onnx(model)
    with pytest.raises(UserError, match="only ConvMixer itself is made narrower, not its variants"):
        prune.narrow(model, 4, images())
    for look in (
        kernels.describe,
        receptive_field.theoretical,
        lambda model: receptive_field.gradients(model, images()),
        lambda model: diversity.describe(model, images()),
        lambda model: robustness.of_convmixer("variant", model),
        lambda model: examination.examine(model, None, None, 0),
    ):
        with pytest.raises(UserError, match="ConvMixer itself, not in its variants; insight.features, .* take these"):
            look(model)
    assert features.look(model, images()[0]) and gradcam.gradcam(model, images()) and complexity.count(model, 12)


@every_variant
def test_checkpoints_of_a_variant_and_of_convmixer_are_not_mistaken(settings, tmp_path, capsys):
    """Neither is loaded into the other, nor does a command compute something else with its weights."""
    variant, path = make(**settings), tmp_path / "variant.pdparams"
    checkpoint.write(path, {name: value.numpy() for name, value in variant.state_dict().items()})
    kernel = settings["kernel_size"] if isinstance(settings["kernel_size"], int) else 5
    name = f"convmixer_8_2_ks{kernel}_p2" + ("_relu" if settings.get("act") else "")
    card.write(path, card.Card(model=name))
    with pytest.raises(UserError, match="missing: .*; not used: |holds no complete ConvMixer"):
        Trained(path).create()
    plain = create_model(name, num_classes=3)
    with pytest.raises(UserError, match="missing: .*; not used: "):
        zoo.load_weights(plain, path)
    own = tmp_path / "plain.pdparams"
    checkpoint.write(own, {name: value.numpy() for name, value in plain.state_dict().items()})
    with pytest.raises(UserError, match="missing: "):
        create_model(name, pretrained=own, num_classes=3, **settings)
    assert "no part of a ConvMixer" in refused(capsys, "convert", path, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="no part of a ConvMixer"):
        layouts.from_ours(checkpoint.read(path), "official", "torch")


def test_a_variant_keeps_its_weights_by_paddles_own_means(tmp_path):
    """As the document shows it."""
    model, other = make(**VARIANTS["all of them"]), ConvMixer(**SHAPE, **VARIANTS["all of them"])
    paddle.save(model.state_dict(), str(tmp_path / "variant.pdparams"))
    missing, unexpected = other.set_state_dict(checkpoint.read(tmp_path / "variant.pdparams"))
    assert not missing and not unexpected
    other.eval()
    x = paddle.to_tensor(images())
    np.testing.assert_array_equal(other(x).numpy(), model(x).numpy())


def test_the_graph_shows_the_split_of_the_channels():
    drawn = graph.to_dict(ConvMixer(**SHAPE, kernel_size=[3, 5, 7]), zoo.CIFAR10)
    nodes = {node["name"]: node for node in drawn["nodes"]}
    inside = "/blocks/0/0/fn/0"
    assert nodes[f"{inside}/concat"]["input_vars"]["X"] == [f"{inside}/{j}:out" for j in range(3)]
    assert all(nodes[f"{inside}/{j}"]["input_vars"]["X"] == [f"{inside}/split:out"] for j in range(3))
    shapes = {variable["name"]: variable["shape"] for variable in drawn["vars"]}
    assert [shapes[f"{inside}/{j}:out"][1] for j in range(3)] == [3, 3, 2]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kernel_size": []}, r"kernel_size is \[\]; want a whole number from 1 on, or 1 to 8 \(dim\) of them"),
        ({"kernel_size": [3, 0]}, "kernel_size is"),
        ({"kernel_size": "35"}, "kernel_size is"),
        ({"kernel_size": 2.5}, "kernel_size is"),
        ({"kernel_size": [3] * 9}, "kernel_size is"),
        ({"residual": "bolck"}, "unknown residual 'bolck'; did you mean block"),
    ],
)
def test_options_that_make_no_sense_are_named(settings, said):
    with pytest.raises(UserError, match=said):
        ConvMixer(8, 1, **settings)


def test_a_zoo_name_takes_the_options_too():
    model = create_model("convmixer_tiny", kernel_size=[3, 5], residual="both")
    assert not model.plain and len(model.blocks[0][0].fn[0]) == 2
    assert run("models", "convmixer_tiny") == 0


def test_a_variant_is_trained_from_python():
    """As the document shows it, in small."""
    settings = recipe.load("digits")
    spec, (train, val) = settings.input_spec(), open_data(settings)
    paddle.seed(0)
    network = ConvMixer(16, 2, kernel_size=[1, 3], patch_size=8, num_classes=10, norm_first=True, residual="both")
    batches = TrainBatches(Samples(train, train_transform(spec, settings.augment), seed=0), 64, workers=0)
    model = paddle.Model(network)
    model.prepare(paddle.optimizer.AdamW(1e-2, parameters=network.parameters()), paddle.nn.CrossEntropyLoss())
    model.fit(batches, epochs=4, verbose=0)
    found = evaluate(Dygraph(network), Samples(val, eval_transform(spec)), 64, 0).metrics()
    assert found["samples"] == len(val) and found["top1"] > 0.5, found  # a tenth by chance
