import dataclasses
import itertools
import json
import re

import numpy as np
import paddle
import pytest
from conftest import random_state, refused, run
from paddle import nn
from PIL import Image

from ppconvmixer import ConvMixer, UserError, card, checkpoint, zoo
from ppconvmixer.insight import complexity, networks, scaling, tradeoff

SHAPES = [
    (zoo.Variant(24, 3, 5, 2, "gelu", 10, zoo.CIFAR10), 32),
    (zoo.Variant(16, 2, 4, 3, "relu", 7, zoo.CIFAR10), 33),  # an even kernel
    (zoo.Variant(8, 1, 9, 7, "gelu", 5, zoo.IMAGENET), 40),  # 40 pixels are 5 patches of 7, and a rest
    (zoo.Variant(8, 2, 1, 1, "gelu", 3, zoo.CIFAR10), 6),
    (zoo.Variant(6, 2, 3, 7, "relu", 3, zoo.CIFAR10), 18),
]


def sized(shape, size):
    return dataclasses.replace(shape, input=dataclasses.replace(shape.input, size=size))


def network_of(shape, size):
    def create():
        return ConvMixer(shape.dim, shape.depth, shape.kernel_size, shape.patch_size, 3, shape.num_classes, shape.act)

    return networks.Network("ours", size, create, sized(shape, size), {})


class Noted(np.ndarray):
    """An array that counts how many products are made with it."""

    products = 0

    def __mul__(self, other):
        Noted.products += self.size
        return np.asarray(self) * np.asarray(other)


def convolve(images, weights, stride, padding, groups):
    """Convolve (channels, height, width) by the definition, product by product."""
    (outputs, inputs, kh, kw), x = weights.shape, np.pad(images, ((0, 0), (padding, padding), (padding, padding)))
    height, width = (x.shape[1] - kh) // stride + 1, (x.shape[2] - kw) // stride + 1
    result = np.zeros((outputs, height, width))
    for o, i, j in itertools.product(range(outputs), range(height), range(width)):
        first = o // (outputs // groups) * inputs
        window = x[first : first + inputs, i * stride : i * stride + kh, j * stride : j * stride + kw]
        result[o, i, j] = (window.view(Noted) * weights[o]).sum()
    return result


@pytest.mark.parametrize(
    "inputs, outputs, kernel, stride, padding, groups, kind",
    [
        (3, 8, (3, 3), 2, 1, 1, "convolution"),
        (6, 6, (5, 5), 1, 2, 6, "depthwise"),
        (4, 8, (3, 3), 1, 0, 4, "depthwise"),  # two results a channel
        (8, 4, (1, 3), 1, 0, 2, "grouped"),
        (8, 5, (1, 1), 1, 0, 1, "pointwise"),
    ],
)
def test_the_macs_of_a_convolution_are_the_products_that_its_definition_makes(
    inputs, outputs, kernel, stride, padding, groups, kind
):
    layer = nn.Conv2D(inputs, outputs, kernel, stride, padding, groups=groups)
    image = np.random.default_rng(0).standard_normal((inputs, 9, 9)).astype(np.float32)
    Noted.products = 0
    ours = convolve(image, layer.weight.numpy(), stride, padding, groups)
    theirs = layer(paddle.to_tensor(image[None])).numpy()[0] - layer.bias.numpy()[:, None, None]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)  # it is this convolution that was counted
    (counted,) = complexity.count(nn.Sequential(layer), 9)
    assert counted.macs == Noted.products and counted.kind == kind
    assert counted.shape == ours.shape and counted.activations == ours.size
    assert counted.parameters == layer.weight.size + outputs and counted.statistics == 0
    assert counted.held == image.size + ours.size
    assert counted.bytes(3) == 4 * (counted.parameters + 3 * ours.size)


def test_every_layer_is_counted_once_for_a_call_and_its_parameters_once():
    class Twice(nn.Layer):
        def __init__(self):
            super().__init__()
            self.stem, self.mix, self.norm = nn.Conv2D(3, 4, 2, 2), nn.Conv2D(4, 4, 1), nn.BatchNorm2D(4)
            self.act, self.pool, self.drop, self.head = (
                nn.ReLU(),
                nn.AdaptiveAvgPool2D(1),
                nn.Dropout(),
                nn.Linear(4, 5),
            )

        def forward(self, x):
            x = self.norm(self.act(self.mix(self.act(self.mix(self.stem(x))))))
            return self.head(self.drop(self.pool(x).flatten(1)))

    model = Twice()
    model.train()
    found = {layer.name: layer for layer in complexity.count(model, 6)}
    assert list(found) == ["stem", "mix", "act", "norm", "pool", "head"]  # the dropout does nothing, and has no map
    assert (found["mix"].macs, found["mix"].parameters, found["mix"].activations) == (2 * 9 * 16, 20, 2 * 36)
    assert (found["norm"].parameters, found["norm"].statistics, found["norm"].macs) == (8, 8, 0)
    assert (found["head"].macs, found["head"].parameters, found["act"].activations) == (20, 25, 2 * 36)
    assert [layer.kind for layer in found.values()] == [
        "convolution",
        "pointwise",
        "activation",
        "norm",
        "pooling",
        "linear",
    ]
    assert model.training and not any(layer._forward_post_hooks for layer in model.sublayers())
    model.head = nn.Bilinear(4, 4, 5)
    with pytest.raises(UserError, match="cannot count what the layer head does; it is a Bilinear"):
        complexity.count(model, 6)


@pytest.mark.parametrize("shape, size", SHAPES)
def test_what_is_counted_is_what_the_formulas_say(shape, size):
    network = network_of(shape, size)
    facts = complexity.describe(network, batch_size=3)
    for key, value in facts["formula"].items():
        assert facts[key] == value, key
    kinds, parts = complexity.by_kind(facts["layers"]), network.shape.parts()
    if shape.kernel_size > 1 and shape.patch_size > 1:
        for part, kind in (
            ("stem", "convolution"),
            ("depthwise", "depthwise"),
            ("pointwise", "pointwise"),
            ("head", "linear"),
        ):
            assert kinds[kind]["macs"] == parts[part]["macs"], part
    state = network.create().state_dict()
    assert facts["memory"]["weights"] == 4 * sum(value.size for value in state.values())
    assert facts["memory"]["all"] == 4 * 3 * sum(layer["activations"] for layer in facts["layers"])
    patches = (size // shape.patch_size) ** 2
    assert facts["memory"]["largest"] == 4 * 3 * (patches * shape.dim + max(patches * shape.dim, 3 * size**2))
    assert sum(layer["parameters"] for layer in facts["layers"]) == facts["parameters"]


def test_the_figures_of_other_published_networks():
    """Parameters and GMACs as torchvision has them."""
    for name, parameters, gmacs in (("resnet18", 11_689_512, 1.814), ("mobilenet_v2", 3_504_872, 0.301)):
        facts = complexity.describe(networks.find(name))
        assert facts["parameters"] == parameters and round(facts["macs"] / 1e9, 3) == gmacs
        assert "formula" not in facts and facts["published"]["source"].startswith("PaddleClas")


def test_networks_that_paddle_does_not_have_are_told_by_published_figures_that_their_formulas_bear_out():
    def vit(d, side, patch=16, depth=12):
        patches = (side // patch) ** 2
        tokens, block = patches + 1, 12 * d * d
        parameters = depth * (block + 13 * d) + d * (3 * patch**2 + 1) + d * (tokens + 1) + 2 * d + 1000 * (d + 1)
        return parameters, patches * d * 3 * patch**2 + depth * (tokens * block + 2 * tokens**2 * d) + 1000 * d

    def convnext(dims, depths, side=224):
        parameters = 3 * 16 * dims[0] + 3 * dims[0] + 2 * dims[-1] + 1000 * (dims[-1] + 1)
        macs = (side // 4) ** 2 * 3 * 16 * dims[0] + 1000 * dims[-1]
        for i, (d, n) in enumerate(zip(dims, depths)):
            patches = (side // 4 // 2**i) ** 2
            parameters += n * (49 * d + 8 * d * d + 9 * d)
            macs += n * patches * (49 * d + 8 * d * d)
            if i:
                parameters += 4 * dims[i - 1] * d + d + 2 * dims[i - 1]
                macs += patches * 4 * dims[i - 1] * d
        return parameters, macs

    expected = {
        **{"deit_small": vit(384, 224), "deit_base": vit(768, 224)},
        **{"vit_base_16_384": vit(768, 384), "convnext_tiny": convnext((96, 192, 384, 768), (3, 3, 9, 3))},
        **{"convnext_small": convnext((96, 192, 384, 768), (3, 3, 27, 3))},
        **{"convnext_base": convnext((128, 256, 512, 1024), (3, 3, 27, 3))},
    }
    for name in networks.compared():
        network = networks.find(name)
        assert (
            0.6 < network.figures["top1"] < 0.9 and network.figures["data"] == "ImageNet" and network.figures["source"]
        )
        if network.create is None:
            facts = complexity.describe(network)
            parameters, macs = expected.pop(name)
            assert facts["parameters"] == pytest.approx(parameters, rel=0.025), name  # published in whole millions
            assert facts["macs"] == pytest.approx(macs, rel=0.04), name
            assert not facts["counted"] and facts["layers"] == [] and "memory" not in facts
    assert not expected


def test_every_name_of_paddle_vision_is_known():
    assert {"resnet50", "vgg16", "densenet121", "googlenet", "LeNet", "alexnet"} <= set(networks.VISION)
    facts = complexity.describe(networks.find("LeNet"))
    # 1 x 28 x 28: convolutions 6 x 3 x 3 and 16 x 5 x 5 on 28 and 10 pixels, then 400, 120, 84 and 10 numbers
    assert facts["macs"] == 784 * 6 * 9 + 100 * 16 * 6 * 25 + 400 * 120 + 120 * 84 + 84 * 10
    assert facts["parameters"] == 6 * 10 + 16 * 151 + 120 * 401 + 84 * 121 + 10 * 85


def test_a_checkpoint_is_counted_with_its_classes_and_size(tiny_weights):
    network = networks.find(str(tiny_weights))
    assert (network.name, network.size, network.shape.num_classes, network.figures) == ("convmixer_tiny", 32, 3, {})
    assert complexity.describe(network)["parameters"] == zoo.variant("convmixer_tiny").parameters() - 7 * 65


def test_a_checkpoint_that_is_none_of_what_is_counted_is_refused(tmp_path, capsys):
    tiny = {"dim": 64, "depth": 4, "kernel_size": 5, "patch_size": 4, "num_classes": 3}
    for name, shape in (("grey", {**tiny, "in_chans": 1}), ("other", {**tiny, "depth": 3})):
        checkpoint.write(tmp_path / f"{name}.pdparams", random_state(**shape))
    card.write(tmp_path / "other.pdparams", card.Card(model="convmixer_tiny"))
    said = refused(capsys, "inspect", "complexity", tmp_path / "grey.pdparams")
    assert "grey.pdparams takes 1 channels; pictures have 3" in said
    said = refused(capsys, "inspect", "complexity", tmp_path / "other.pdparams")
    assert "holds ConvMixer-64/3, kernel 5, patch 4, 3 channels, 3 classes; the model is ConvMixer-64/4" in said


@pytest.mark.parametrize("along", scaling.SCALED)
@pytest.mark.parametrize("shape, size", [SHAPES[0], SHAPES[1]])
def test_scaled_networks_cost_what_they_are_counted_to_cost(along, shape, size):
    facts = scaling.describe(network_of(shape, size), along)
    values = [point["value"] for point in facts["points"]]
    assert values == sorted(set(values)) and facts["here"] == getattr(shape, along) in values
    for point in (facts["points"][0], facts["points"][-1]):
        other = dataclasses.replace(shape, **{along: point["value"]})
        counted = complexity.describe(network_of(other, size))
        for key in ("parameters", "macs", "activations"):
            assert point[key] == counted[key] == sum(part[key] for part in point["parts"].values())


def test_what_a_separable_convolution_saves():
    shape, size = SHAPES[0]
    facts = scaling.separate(network_of(shape, size))
    assert facts["separable"] == {"parameters": 24 * 26 + 24 * 25, "macs": 256 * (24 * 25 + 24 * 24)}
    assert facts["standard"] == {"parameters": 24 * 24 * 25 + 24, "macs": 256 * 24 * 24 * 25}
    assert facts["ratio"]["counted"] == pytest.approx(25 * 24 / (25 + 24), rel=1e-12)
    assert facts["ratio"]["formula"] == pytest.approx(facts["ratio"]["counted"], rel=1e-12)
    assert facts["network"]["separable"] == sized(shape, size).macs()


def test_accuracy_by_cost(tmp_path):
    found = tradeoff.describe(map(networks.find, ["convmixer_1024_20", "deit_small", "convmixer_tiny"]))
    assert found[0]["per_gmac"] == pytest.approx(76.944 / 5.949, rel=1e-3)
    assert found[1]["per_million_parameters"] == pytest.approx(79.9 / 22.1)
    assert not found[2]["published"] and "per_gmac" not in found[2]
    lines = tradeoff.table(found).splitlines()
    assert lines[1].split()[:5] == ["convmixer_1024_20_ks9_p14", "224", "24.38M", "5.949", "76.94"]
    assert lines[2].endswith("[2], of the size too") and lines[3].split()[-4:] == ["0.002", "-", "-", "-"]
    assert [line[:13] for line in lines[4:]] == ["[1] ImageNet:", "[2] ImageNet:"]
    tradeoff.draw(found, tmp_path / "x.png")
    assert min(Image.open(tmp_path / "x.png").size) > 500
    with pytest.raises(UserError, match="two networks or more"):
        tradeoff.draw(found[1:], tmp_path / "x.png")


def test_the_accuracy_is_of_the_size_it_is_published_at():
    assert networks.find("resnet50").figures and not networks.find("resnet50", 256).figures
    assert networks.find("convmixer_768_32").figures and not networks.find("convmixer_768_32", 192).figures


def test_the_command(tmp_path, capsys):
    picture = tmp_path / "x.svg"
    assert run("inspect", "complexity", "convmixer_tiny", "--batch-size", 4, "--output", picture) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("convmixer_tiny at 32 x 32: ") and lines[2].split()[:2] == ["convolution", "1"]
    assert (
        lines[-1] == "the closed formulas: the same parameters, MACs and activations" and picture.stat().st_size > 1000
    )
    # Of 4 pictures, 64 maps of 8 x 8 twice; the residual's third one is named and not counted.
    assert "largest input and result of a layer 0.1 MiB (inference, which holds beside them what a" in lines[-2]
    assert run("inspect", "complexity", "convmixer_tiny", "--by-layer", "--size", 48) == 0
    assert "blocks.3.0.fn.0" in capsys.readouterr().out
    for option in (["--scale", "kernel_size"], ["--scale", "patch_size"], ["--separable"]):
        assert run("inspect", "complexity", "convmixer_tiny", *option, "--output", picture) == 0
        assert "convmixer_tiny at 32 x 32" in capsys.readouterr().out
    assert run("inspect", "complexity", "convmixer_tiny", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["layers"][0]["shape"] == [64, 8, 8] and facts["macs"] == zoo.variant("convmixer_tiny").macs()


def test_all_are_compared_at_another_size_but_those_known_at_one_alone(capsys, monkeypatch):
    everybody = networks.compared()
    ones = [name for name in everybody if name.startswith(("vit", "deit", "convnext"))]
    assert networks.compared(224) == [name for name in everybody if name != "vit_base_16_384"]
    assert networks.compared(96) == [name for name in everybody if name not in ones]
    few = ["convmixer_1024_20_ks9_p14", "mobilenet_v1", "deit_small"]  # the others take a minute
    original = networks.compared
    monkeypatch.setattr(networks, "compared", lambda size=None: [name for name in original(size) if name in few])
    assert run("inspect", "complexity", "--size", 96, "--json") == 0
    out, err = capsys.readouterr()
    assert [(facts["model"], facts["size"]) for facts in json.loads(out)] == [(name, 96) for name in few[:2]]
    assert "left out, as Paddle lacks them and other sizes are published: deit_small" in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["resnet51"], "unknown network 'resnet51'; did you mean resnet50"),
        (["nowhere.pdparams"], "there is no checkpoint nowhere.pdparams"),
        (["convmixer_768_33"], "unknown model 'convmixer_768_33'"),
        (
            ["convnext_tiny", "--size", "384"],
            "Paddle has no convnext_tiny, and its figures are published at 224 pixels only",
        ),
        (["convnext_tiny", "--by-layer"], "Paddle has no convnext_tiny, and only its totals are published"),
        (["convnext_tiny", "--batch-size", "2"], "leave --by-layer and --batch-size out"),
        (["convnext_tiny", "--output", "x.png"], "there are no layers of convnext_tiny to draw"),
        (["convmixer_9999_999_ks99_p99"], "parameters and .* MACs at 224 pixels; name a smaller one"),
        (["convmixer_768_32", "--size", "6"], "takes no pictures of 6 pixels; its patches have 7"),
        (["convmixer_768_32", "--size", "9999"], "at most 4096 pixels"),
        (["resnet18", "--scale", "dim"], "resnet18 is no ConvMixer"),
        (["convmixer_9999_1_ks9_p7", "--separable"], "too many here"),
        (["resnet18", "resnet34", "--by-layer"], "are about one network"),
        (["convmixer_tiny", "--scale", "dim", "--batch-size", "1"], "--batch-size has no effect with --scale"),
        (["convmixer_tiny", "--separable", "--batch-size", "4"], "which take one picture; leave it out"),
        (["LeNet", "--size", "32"], "LeNet does not take 32 x 32 pixels"),
        (["convmixer_tiny", "--output", "x.txt"], "name a file ending in"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.search(message, refused(capsys, "inspect", "complexity", *arguments))
    assert not list(tmp_path.iterdir())
