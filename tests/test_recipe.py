import dataclasses

import pytest
import yaml
from conftest import ROOT

from ppconvmixer import UserError, recipe

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_recipe_loads_and_comes_back_from_yaml(path, tmp_path):
    loaded = recipe.load(path)
    (tmp_path / "copy.yaml").write_text(loaded.to_yaml())
    assert recipe.load(tmp_path / "copy.yaml") == loaded
    assert recipe.differences(loaded, recipe.load(tmp_path / "copy.yaml")) == []
    first, second, *_ = path.read_text().splitlines()
    assert first.startswith(f"# ppconvmixer finetune -c configs/{path.name}") and second.startswith("# Cost:")


def test_a_shipped_recipe_goes_by_its_name():
    assert recipe.load("digits") == recipe.load("configs/digits.yaml") == recipe.load(ROOT / "configs/digits.yaml")
    with pytest.raises(
        UserError, match="no recipe digit; give a YAML file, or one that comes with the package:.*digits"
    ):
        recipe.load("digit")


def test_overrides():
    changed = recipe.load("digits", ["train.epochs=3", "optimizer.lr=1e-3", "augment.crop_scale=null",
                                     "augment.crop_ratio=[1, 1]", "input.size=16", "model.weights=a b.pdparams"])  # fmt: skip
    assert changed.train.epochs == 3 and changed.optimizer.lr == 1e-3 and changed.augment.crop_scale is None
    assert changed.input_spec().size == 16 and changed.model.weights == "a b.pdparams"
    assert recipe.differences(recipe.load("digits"), changed)[-1] == "train.epochs: 10 -> 3"


def test_a_path_in_the_home_folder_is_that_of_a_shell(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    pictures = recipe.load("small_dataset", ["data.path=~/pictures"])
    assert pictures.data.path == "/home/ada/pictures"


def test_where_a_recipe_is_no_yaml_is_said(tmp_path):
    (tmp_path / "r.yaml").write_text("train:\n  epochs: [1, 2}\n")
    with pytest.raises(UserError) as error:
        recipe.load(tmp_path / "r.yaml")
    assert str(error.value) == (
        f"cannot read the recipe {tmp_path / 'r.yaml'}: line 2, column 16: expected ',' or ']', but got '}}'"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "unknown key 'train.epoch'; did you mean train.epochs"),
        ("trian.epochs=3", "unknown key 'trian'; did you mean train"),
        ("train.epochs=three", "train.epochs is 'three'; want a whole number"),
        ("train.epochs=1.5", "train.epochs is 1.5; want a whole number"),
        ("train.epochs=true", "train.epochs is True; want a whole number"),
        ("train.epochs=0", "train.epochs is 0; want at least 1"),
        ("train.epochs", "not of the form key.sub=value"),
        ("train.epochs=[", "is no YAML"),
        ("optimizer.name=adamv", "did you mean adam"),
        ("optimizer.lr=nan", "optimizer.lr is nan; want a number"),
        ("optimizer.lr=.inf", "optimizer.lr is inf"),
        ("optimizer.clip_norm=0", "optimizer.clip_norm is 0.0"),
        ("schedule.name=linear", "unknown schedule.name 'linear'"),
        ("schedule.warmup_epochs=1", "no effect on onecycle"),
        ("schedule.gamma=1", "schedule.gamma is 1.0"),
        ("schedule.gamma=0.5", "schedule.gamma has no effect on onecycle"),
        ("schedule.every=2", "schedule.every has no effect on onecycle"),
        ("schedule.name=step", "needs either schedule.milestones or schedule.every"),
        ("schedule={name: step, milestones: [2], every: 2}", "needs either schedule.milestones or schedule.every"),
        ("schedule={name: step, milestones: [3, 3]}", r"milestones is \[3, 3\]; want rising"),
        ("schedule={name: step, milestones: [3, 10]}", "after the warm-up and below 10"),
        ("schedule={name: step, every: 2, warmup_epochs: 3}", "every is 2; want rising whole epochs after the warm-up"),
        ("schedule={name: step, milestones: 3}", "schedule.milestones is 3; want a list"),
        ("schedule={name: step, milestones: [1.5]}", r"schedule.milestones\[0\] is 1.5; want a whole number"),
        ("optimizer={name: lamb, lr: 0.01}", "lamb without optimizer.weight_decay is adam"),
        ("train.histograms=-1", "train.histograms is -1; want at least 0"),
        ("train.histogram=1", "unknown key 'train.histogram'; did you mean train.histograms"),
        ("train.histograms=0.5", "train.histograms is 0.5; want a whole number"),
        ("train.accumulate=0", "train.accumulate is 0; want at least 1"),
        ("train.ema=1", "train.ema is 1.0; want a number between 0 and 1, or null"),
        ("distill={teacher: convmixer_tny, weights: x}", "did you mean convmixer_tiny"),
        ("distill={teacher: convmixer_tiny}", "the key distill.weights is missing"),
        ("distill={teacher: convmixer_tiny, weights: x, temperature: 0}", "distill.temperature is 0.0"),
        ("distill={teacher: convmixer_tiny, weights: x, alpha: 0}", r"distill.alpha is 0.0; want a number in \(0, 1\]"),
        ("distill.alpha=0.5", "the key distill.teacher is missing"),
        ("model.drop_path=1", r"model.drop_path is 1.0; want a number in \[0, 1\)"),
        ("train.epochs=100001", "the run has 100001 epochs; want at most 100,000"),
        ("train.batch_size=0", "train.batch_size is 0; want at least 1"),
        ("train.batch_size=null", "train.batch_size is missing"),
        ("train.epochs=null", "train.epochs is missing"),
        ("train={phases: [{epochs: 1}]}", "train.batch_size is missing, and not every phase has its own"),
        ("train={phases: [{epochs: 0}], batch_size: 8}", r"train.phases\[0\].epochs is 0"),
        ("train.phases=[{epochs: 2}, {epochs: 3}]", "train.epochs is 10, but the phases have 5"),
        ("train.phases=[{epochs: 10, batch_size: 8}]", "train.batch_size has no effect where every phase has its own"),
        ("train.phases=[{epochs: 10, size: 3}]", r"train.phases\[0\].size is 3; want 4 \(a patch\) to"),
        ("train.phases=[{epochs: 10, sise: 3}]", r"train.phases\[0\].sise'; did you mean train.phases\[0\].size"),
        ("train.phases=[3]", r"train.phases\[0\] is 3; want keys and values"),
        ("finetune.layer_decay=0", "finetune.layer_decay is 0.0"),
        ("finetune.freeze=true", "would keep random weights as they are; give model.weights"),
        ("finetune.unfreeze=[{epoch: 1, blocks: 1}]", "no effect without finetune.freeze"),
        ("model.name=convmixer_tny", "did you mean convmixer_tiny"),
        ("model=3", "model is 3; want keys and values"),
        ("model.name.x=3", "model.name.x cannot be set"),
        ("data.path=/x", "data.path has no effect on the data set digits"),
        ("data.val_fraction=null", "give either data.val or data.val_fraction"),
        ("data.val_fraction=1", "data.val_fraction is 1.0"),
        ("data.val_fraction=0", "data.val_fraction is 0.0"),
        ("data.dataset=folder", "data.path is missing"),
        ("augment.crop_scale=[1]", "augment.crop_scale is \\[1\\]; want a list of 2 numbers"),
        ("augment.crop_scale=null", "augment.crop_ratio has no effect without"),
        ("augment.crop_interpolation=nearest", "unknown augment.crop_interpolation 'nearest'"),
        ("augment={crop_interpolation: random}", "augment.crop_interpolation has no effect without"),
        ("optimizer.clip_norm=.inf", "optimizer.clip_norm is inf"),
        ("augment.erasing_mode=const", "augment.erasing_mode has no effect without augment.erasing"),
        ("augment.randaugment=m12-n2", "augment.randaugment is 'm12-n2'; want nN-mM"),
        ("augment.mix_prob=0.5", "augment.mix_prob has no effect without augment.mixup or augment.cutmix"),
        ("input.sise=3", "unknown key of the input 'sise'; did you mean size"),
        ("train.seed=-1", "train.seed is -1"),
        ("train.amp=O3", "unknown train.amp 'O3'"),
    ],
)
def test_every_mistake_is_named(override, message):
    with pytest.raises(UserError, match=message) as error:
        recipe.load("digits", [override])
    assert "digits.yaml" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ("{epoch: 10, blocks: 1}", r"unfreeze\[0\].epoch is 10; want rising whole numbers from 0 on, below 10"),
        ("{epoch: -1, blocks: 1}", "epoch is -1"),
        ("{epoch: 1, blocks: 2}, {epoch: 1, blocks: 3}", r"unfreeze\[1\].epoch is 1"),
        ("{epoch: 1, blocks: 2}, {epoch: 2, blocks: 2}", "frees 2 blocks; want more than the step before it"),
        ("{epoch: 1, blocks: 5}", "frees 5 blocks, and convmixer_tiny has 4"),
        ("{epoch: 1, blocks: 0}", "frees 0 blocks"),
        ("{epoch: 1, blocks: 3, stem: true}", "stem needs all 4 blocks freed"),
        ("{epoch: 0, blocks: 4, stem: true}", "finetune.freeze has no effect, as all is freed from epoch 0 on"),
        ("{epoch: 1}", r"the key finetune.unfreeze\[0\].blocks is missing"),
    ],
)
def test_layers_thaw_from_the_head_down(phases, message):
    frozen = ["model.weights=x.pdparams", "finetune.freeze=true"]
    with pytest.raises(UserError, match=message):
        recipe.load("digits", [*frozen, f"finetune.unfreeze=[{phases}]"])


def test_validation_pictures_never_lie_in_the_training_part():
    folder = ["data.dataset=folder", "data.path=x", "data.val=val", "data.val_fraction=null"]
    with pytest.raises(UserError, match="data.train is missing"):
        recipe.load("digits", folder)
    assert recipe.load("digits", [*folder, "data.train=train"]).data.val == "val"


def test_drop_path_wants_a_second_block():
    with pytest.raises(UserError, match="model.drop_path has no effect on a network of 1 blocks; leave it out"):
        recipe.load("digits", ["model.name=convmixer_16_1_ks3_p4", "model.drop_path=0.1"])


@pytest.mark.parametrize("idle", ["model.drop_path=0.1", "finetune.layer_decay=0.5"])
def test_what_only_blocks_feel_is_refused_where_the_head_alone_is_trained(idle):
    frozen = ["model.weights=x.pdparams", "finetune.freeze=true", idle]
    with pytest.raises(UserError, match="has no effect where the head alone is trained"):
        recipe.load("digits", frozen)
    assert recipe.load("digits", [*frozen, "finetune.unfreeze=[{epoch: 1, blocks: 1}]"]).finetune.freeze


def test_the_average_of_amp_o2_keeps_no_zeros():
    zeros = ["model.weights=x.pdparams", "finetune.keep_zeros=true", "train.amp=O2"]
    with pytest.raises(UserError, match="leave train.ema out"):
        recipe.load("digits", [*zeros, "train.ema=0.9"])
    assert recipe.load("digits", zeros).finetune.keep_zeros


def test_how_many_layers_are_frozen():
    frozen = ["model.weights=x.pdparams", "finetune.freeze=true"]
    phases = "finetune.unfreeze=[{epoch: 1, blocks: 1}, {epoch: 3, blocks: 4}, {epoch: 5, blocks: 4, stem: true}]"
    for overrides, expected in (([], [0] * 7), (frozen, [5] * 7), ([*frozen, phases], [5, 4, 4, 1, 1, 0, 0])):
        ours = recipe.load("digits", overrides)
        assert [ours.frozen_layers(epoch) for epoch in range(7)] == expected


def test_phases_say_what_they_leave_open():
    overrides = ["train.epochs=null", "train.phases=[{epochs: 2, size: 16, batch_size: 8}, {epochs: 3}]"]
    ours = recipe.load("digits", overrides)
    assert ours.phases() == (recipe.Phase(2, 16, 8), recipe.Phase(3, 32, 64)) and ours.epochs == 5
    assert recipe.from_dict(ours.to_dict()) == ours


def test_an_odd_batch_cannot_be_mixed_in_pairs():
    with pytest.raises(UserError, match="train.batch_size is 63; pictures are mixed in pairs"):
        recipe.load("digits", ["augment.mixup=0.5", "train.batch_size=63"])
    assert recipe.load("digits", ["augment.cutmix=1", "train.batch_size=62"]).augment.mixes


@pytest.mark.parametrize("text", ["", "- a", "a: [", "model: !!python/object:os.system {}", "\tx"])
def test_files_that_are_no_recipe(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match="r.yaml") as error:
        recipe.load(tmp_path / "r.yaml")
    assert "\n" not in str(error.value)


def test_a_missing_key_is_named(tmp_path):
    tree = yaml.safe_load((ROOT / "configs/digits.yaml").read_text())
    del tree["optimizer"]["lr"]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match="optimizer.lr is missing"):
        recipe.load(tmp_path / "r.yaml")


def test_a_recipe_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.load("digits").train.epochs = 5
