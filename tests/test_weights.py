"""The checkpoints that come with the package."""

import json

import numpy as np
import paddle
import pytest
from conftest import GOLDEN, random_state

import ppconvmixer
from ppconvmixer import card, checkpoint, cli, recipe, zoo
from ppconvmixer.files import sha256

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
    y, x, channel, number = np.ogrid[:32, :32, :3, :4]
    images = np.sin(0.3 * (number + 1) * x + 0.2 * y * (channel + 1)).transpose(3, 2, 0, 1).astype(np.float32)
    with paddle.no_grad():
        logits = model(paddle.to_tensor(images)).numpy()
    expected = np.load(GOLDEN / f"{name}.npy")
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", SHIPPED)
def test_it_reaches_the_accuracy_of_its_card(name, shared, tmp_path):
    data, result = shared / "data/cifar10-jpg.tar.xz", tmp_path / "result.json"
    settings = ["data.dataset=folder", f"data.path={data}", "data.train=train", "data.val=test"]
    (tmp_path / "recipe.yaml").write_text(recipe.load("cifar10_official", settings).to_yaml())
    command = ["eval", "--model", name, "--weights", "pretrained", "-c", str(tmp_path / "recipe.yaml")]
    assert cli.main([*command, "--output", str(result)]) == 0
    found, facts = json.loads(result.read_text()), card.read(zoo.own(name)).facts
    assert found["samples"] == facts["samples"] == 10_000
    assert found["top1"] == pytest.approx(facts["top1"], abs=2e-4)  # two pictures whose best classes nearly tie
