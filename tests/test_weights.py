"""The checkpoints that come with the package."""

import json

import numpy as np
import paddle
import pytest
from conftest import GOLDEN, random_state, run, waves

import ppconvmixer
from ppconvmixer import card, checkpoint, cli, deployment, quantize, recipe, zoo
from ppconvmixer.engines import int8_is_fast
from ppconvmixer.export import photographs
from ppconvmixer.files import sha256
from ppconvmixer.trained import Trained

SHIPPED = [name for name, entry in zoo.manifest().items() if "shipped" in entry]


@pytest.fixture
def one_that_comes_along(tmp_path, monkeypatch):
    """Let a checkpoint of convmixer_tiny come with the package."""
    path = tmp_path / "weights" / "convmixer_tiny_made.pdparams"
    path.parent.mkdir()
    checkpoint.write(path, random_state(dim=64, depth=4, kernel_size=5, patch_size=4, num_classes=10))
    card.write(path, card.Card(model="convmixer_tiny", classes=tuple("abcdefghij")))
    entry = {"data": "CIFAR-10", "top1": 0.5, "top5": 0.9, "source": "made", "shipped": path.name}
    monkeypatch.setattr(zoo, "manifest", lambda: {"convmixer_tiny": entry})
    monkeypatch.setattr(zoo, "shipped", lambda folder: tmp_path / folder)
    return path


def test_pretrained_means_what_comes_along(one_that_comes_along, capsys):
    assert ppconvmixer.list_models(pretrained=True) == ["convmixer_tiny"]
    assert zoo.find_weights("convmixer_tiny", "pretrained") == one_that_comes_along
    by_name = ppconvmixer.convmixer_tiny(pretrained=True)
    by_path = ppconvmixer.convmixer_tiny(pretrained=one_that_comes_along)
    for name, value in by_path.state_dict().items():
        np.testing.assert_array_equal(by_name.state_dict()[name].numpy(), value.numpy(), err_msg=name)
    assert cli.main(["models", "--pretrained"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert "convmixer_tiny" in line and "50.00 % / 90.00 %, CIFAR-10" in line and line.endswith("shipped")


def test_a_layout_does_not_mean_what_comes_along(one_that_comes_along):
    with pytest.raises(ppconvmixer.UserError, match="no timm weights of convmixer_tiny; use pretrained"):
        ppconvmixer.convmixer_tiny(pretrained="timm")


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_what_its_card_and_the_manifest_say(name):
    path, entry = zoo.own(name), zoo.manifest()[name]
    about = card.read(path)
    assert about.sha256 == sha256(path) and about.model == name and len(about.classes) == 10
    assert {key: about.facts[key] for key in ("top1", "top5")} == {key: entry[key] for key in ("top1", "top5")}
    assert {"command", "data", "environment", "curve", "recipe"} <= set(about.facts)
    assert "/" not in json.dumps(about.facts["recipe"]["data"]["path"])  # no folder of whoever trained it
    assert entry["top1"] >= {"convmixer_128_8_ks5_p2": 0.89, "convmixer_256_8_ks5_p2": 0.915}[name]


@pytest.mark.parametrize("name", SHIPPED)
def test_it_computes_what_it_did_when_it_was_shipped(name):
    """On pictures out of a formula; the logits are those of Paddle's own layers in float64."""
    model = zoo.create_model(name, pretrained=True)
    model.eval()
    with paddle.no_grad():
        logits = model(paddle.to_tensor(waves())).numpy()
    expected = np.load(GOLDEN / f"{name}.npy")
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.fixture
def cifar10(shared, tmp_path):
    """A recipe of which the 10,000 test pictures are those to judge by."""
    settings = ["data.dataset=folder", f"data.path={shared / 'data/cifar10-jpg.tar.xz'}"]
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.load("cifar10_official", [*settings, "data.train=train", "data.val=test"]).to_yaml())
    return path


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("engine", ["auto", "int8"])
def test_it_reaches_the_accuracy_of_its_card(name, engine, cifar10, tmp_path):
    if engine == "int8" and not int8_is_fast(zoo.create_model(name)):
        pytest.skip("products in 8 bits want a processor with VNNI and a compiler")
    result = tmp_path / "result.json"
    command = ("eval", "--model", name, "--weights", "pretrained", "-c", cifar10, "--engine", engine)
    assert run(*command, "--output", result) == 0
    found, facts = json.loads(result.read_text()), card.read(zoo.own(name)).facts
    assert found["samples"] == facts["samples"] == 10_000
    if engine == "int8":
        assert found["top1"] >= facts["top1"] - 0.005
    else:
        assert found["top1"] == pytest.approx(facts["top1"], abs=2e-4)  # two pictures whose best classes nearly tie


@pytest.mark.parametrize("name", SHIPPED)
def test_it_can_be_deployed_in_every_form(name, tmp_path, monkeypatch):
    """As graphs, in fewer bits and pruned, it sees the same classes in parts of photographs, but for a few."""
    monkeypatch.setattr(deployment, "WIDTHS", (0.75,))
    monkeypatch.setattr(deployment, "SPARSITIES", (0.1,))
    monkeypatch.setattr(quantize, "AGREEMENT", 0.0)  # looking for what to leave in float32 takes minutes
    network = Trained("pretrained", name)
    images = photographs(network.input, 32)
    expected, seen = network.engine("auto")(images).argmax(1), set()
    for form in deployment.make(deployment.Material(network, images, samples=None), tmp_path):
        same = (form.network().engine(form.engine)(images).argmax(1) == expected).mean()
        assert same >= {"float32": 1.0, "int8": 0.75, "narrow": 0.5}.get(form.kind, 0.9), form.name
        seen.add(form.kind)
    assert seen >= {"float32", "narrow", "sparse"}
