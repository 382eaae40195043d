import json

import numpy as np
import pytest
from PIL import Image

from ppconvmixer import UserError, recipe
from ppconvmixer.cli import main
from ppconvmixer.model import ConvMixer, layer_id
from ppconvmixer.optim import lr_factor
from ppconvmixer.phases import create
from ppconvmixer.rates import describe, draw, groups

GRADUAL = [
    *("model.weights=x.pdparams", "finetune.freeze=true", "finetune.layer_decay=0.5", "train.epochs=4"),
    "finetune.unfreeze=[{epoch: 1, blocks: 2}]",
]


def facts(*overrides, pictures=640):
    ours = recipe.load("digits", overrides)
    return describe(ours, create(ours, lambda _: range(pictures)).counts)


def test_layer_ids():
    found = {}
    for name, _ in ConvMixer(8, 3, kernel_size=3).named_parameters():
        found.setdefault(layer_id(name, 3), set()).add(".".join(name.split(".")[:2]))
    assert list(found) == [0, 1, 2, 3, 4]  # in the order of the way of the data
    assert found[0] == {"stem.0", "stem.2"} and found[4] == {"head.weight", "head.bias"}
    assert [found[i] for i in (1, 2, 3)] == [{"blocks.0"}, {"blocks.1"}, {"blocks.2"}]


def test_layers_that_are_trained_alike_are_one_group():
    assert [group.name for group in groups(recipe.load("digits"))] == ["all layers"]
    found = groups(recipe.load("digits", GRADUAL))
    assert [(g.name, g.layers, g.rate, g.epoch) for g in found] == [
        *(("stem", (0, 0), 0.5**5, None), ("block 0", (1, 1), 0.5**4, None), ("block 1", (2, 2), 0.5**3, None)),
        *(("block 2", (3, 3), 0.25, 1), ("block 3", (4, 4), 0.5, 1), ("head", (5, 5), 1.0, 0)),
    ]
    frozen = groups(recipe.load("digits", GRADUAL[:2]))
    assert [(g.name, g.epoch) for g in frozen] == [("stem to block 3", None), ("head", 0)]


def test_the_figures_are_the_schedules():
    found = facts(*GRADUAL, "schedule.name=cosine")
    assert found["steps"] == [10] * 4 and found["at"] == list(range(40))
    schedule = recipe.Schedule("cosine")
    head = [0.02 * lr_factor(schedule, step, [10] * 4) for step in range(40)]
    stem, *_, block3, last = (group["learning_rate"] for group in found["groups"])
    assert last == head and stem == [0.0] * 40 and block3 == [0.0] * 10 + [0.5 * rate for rate in head[10:]]


def test_phases_have_steps_of_their_own():
    found = facts("train.epochs=null", "train.phases=[{epochs: 2, size: 16, batch_size: 32}, {epochs: 1}]")
    assert found["steps"] == [20, 20, 10]
    assert [phase["size"] for phase in found["phases"]] == [16, 32]


def test_a_long_run_is_sampled_at_every_epoch_and_its_end():
    found = facts("train.epochs=100", pictures=64_000)
    assert set(range(0, 100_000, 1000)) | {99_999} <= set(found["at"]) and len(found["at"]) < 1200


@pytest.mark.parametrize("overrides", [[], GRADUAL, [*GRADUAL, "finetune.layer_decay=1"]])
def test_the_picture_shows_every_group_in_its_colour(tmp_path, overrides):
    found = facts(*overrides)
    draw(found, tmp_path / "rates.png")
    pixels = np.asarray(Image.open(tmp_path / "rates.png").convert("RGB")).reshape(-1, 3)
    import matplotlib

    colours = matplotlib.colormaps["viridis"]
    for i in range(len(found["groups"])):
        wanted = 255 * np.array(colours(0.9 * i / max(len(found["groups"]) - 1, 1))[:3])
        assert (np.abs(pixels - wanted).max(axis=1) < 2).sum() > 20, i
    with pytest.raises(UserError, match=r"name a file ending in \.png, \.svg, \.pdf"):
        draw(found, tmp_path / "rates.txt")


def test_inspect_schedule(tmp_path, capsys):
    assert (
        main(["inspect", "schedule", "-c", "digits", "-o", "train.epochs=2", "--output", str(tmp_path / "r.svg")]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "convmixer_tiny: 2 epochs, 42 steps, adamw, onecycle"  # 1,348 digits to train on
    assert lines[2].split() == ["1-2", "32", "64", "42"]
    assert lines[-1].split() == ["all", "layers", "epoch", "1", "0.00119", "0.0198", "0"]
    assert (tmp_path / "r.svg").read_bytes().startswith(b"<?xml")
    assert main(["inspect", "schedule", "-c", "cifar10_tiny", "--pictures", "50000", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == [390] * 20
    assert main(["inspect", "schedule", "-c", "cifar10_tiny", "-o", "data.path=nowhere"]) == 2
