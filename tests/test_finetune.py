import dataclasses
import json
import logging.handlers
import math
import shutil
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from conftest import ROOT, random_state, write_layout

from ppconvmixer import UserError, card, checkpoint, datasets, finetune, recipe, run_folder, run_state, zoo
from ppconvmixer.engines import Dygraph
from ppconvmixer.evaluate import evaluate
from ppconvmixer.trained import Trained
from ppconvmixer.transforms import eval_transform

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def small(class_folders, *overrides):
    """A run of two epochs on the class folders, seconds long."""
    own = [
        *("data.dataset=folder", f"data.path={class_folders}", "data.train=train", "data.val=val"),
        *("data.val_fraction=null", "train.epochs=2", "train.batch_size=8", "data.workers=0"),
    ]
    return recipe.load("digits", [*own, *overrides])


@pytest.fixture(scope="module")
def finished(class_folders, tmp_path_factory):
    """The folder and the result of a whole small run."""
    folder = tmp_path_factory.mktemp("run") / "run"
    return folder, finetune.finetune(small(class_folders), folder)


def test_a_run_folder_holds_what_it_should(finished, class_folders):
    folder, result = finished
    states = {p.name for p in run_state.files(folder)}
    assert states == {"state-0000000003.safetensors", "state-0000000006.safetensors"}
    wanted = {*run_folder.RUN_FILES, *states, ".lock"} - {"not_finite.txt"}
    assert {p.name for p in folder.iterdir()} == wanted
    assert recipe.load(folder / "recipe.yaml") == small(class_folders)
    assert json.loads((folder / "result.json").read_text()) == result
    keys = {"model", "weights", "engine", "samples", "skipped", "top1", "top5", "loss", "images_per_second"}
    assert keys <= set(result) and result["samples"] == 12 and result["epochs"] == 2
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["paddle"] == paddle.__version__ and environment["seed"] == 0
    log = (folder / "log.txt").read_text()
    assert "epoch 2/2: train loss" in log and log.index("curves: visualdl") < log.index("epoch 1/2")


def test_the_card_says_what_prediction_needs(finished):
    folder, result = finished
    found = card.read(folder / "best.pdparams")
    assert found.model == "convmixer_tiny" and found.classes == ("cat", "dog", "owl")
    assert found.input["size"] == 32 and found.facts["top1"] == result["top1"]
    assert found.sha256 == result["weights"]["sha256"]


def test_the_weights_load_anywhere(finished):
    model = zoo.create_model("convmixer_tiny", pretrained=finished[0] / "best.pdparams", num_classes=3)
    other = zoo.create_model("convmixer_tiny", num_classes=3)
    other.set_state_dict(paddle.load(str(finished[0] / "best.pdparams")))  # Paddle's own way, on our own file
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), other.state_dict()[name].numpy())


def test_a_second_run_leaves_the_first_alone(finished, class_folders):
    folder, _ = finished
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    with pytest.raises(UserError, match="already holds a run"):
        finetune.finetune(small(class_folders), folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_overwrite_replaces_the_run_and_nothing_else(class_folders, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "best.pdparams").write_text("old")
    finetune.finetune(small(class_folders, "train.epochs=1"), tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(checkpoint.read(tmp_path / "best.pdparams")) == 56


@pytest.mark.parametrize("how", ["overwrite", "resume"])
def test_a_recipe_and_a_table_of_the_user_are_not_replaced(how, class_folders, tmp_path):
    ours, mine = small(class_folders, "train.epochs=1"), tmp_path / "recipe.yaml"
    mine.write_text("# by hand\n" + ours.to_yaml())
    with pytest.raises(UserError, match="recipe.yaml was written by no run, and would be replaced; choose another"):
        finetune.finetune(ours, tmp_path, **{how: True})
    assert mine.read_text().startswith("# by hand")
    table = tmp_path / "pictures.csv"
    table.write_text("path,label\n" + "".join(f"cat/cat {i}.png,cat\nowl/owl {i}.png,owl\n" for i in range(4)))
    data = {
        "dataset": "csv",
        "path": str(class_folders / "train"),
        "train": str(table),
        "val_fraction": 0.5,
        "workers": 0,
    }
    other = recipe.from_dict({**ours.to_dict(), "data": data})
    mine.write_text(other.to_yaml())  # as a run that was killed at once leaves it
    with pytest.raises(UserError, match=r"pictures\.csv"):
        finetune.finetune(other, tmp_path, **{how: True})
    assert table.read_text().startswith("path,label")
    table.unlink()
    mine.write_text(ours.to_yaml())
    finetune.finetune(ours, tmp_path, **{how: True})
    assert (tmp_path / "best.pdparams").exists()


def test_curves_on_another_disk_are_left_there(class_folders, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "curves").mkdir()
    (tmp_path / "run/visualdl").symlink_to(tmp_path / "curves")
    finetune.finetune(small(class_folders, "train.epochs=1"), tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run/visualdl").is_symlink() and (tmp_path / "curves").is_dir()


def test_settings_that_reach_further_than_the_run_are_told(class_folders, tmp_path, caplog):
    overrides = ["train.epochs=1", "train.accumulate=50", "schedule.name=onecycle", "schedule.warmup_epochs=0"]
    with caplog.at_level("WARNING", logger="ppconvmixer"):
        finetune.finetune(small(class_folders, *overrides), tmp_path / "run")
    assert "train.accumulate is 50, but an epoch has" in caplog.text
    assert "the only step of this run is the last of onecycle" in caplog.text


def test_what_cannot_begin_costs_nothing_of_the_run_before(finished, class_folders, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    own = small(class_folders, f"model.weights={run / 'best.pdparams'}")
    with pytest.raises(UserError, match="model.weights .* is of the run that would be replaced; choose another"):
        finetune.finetune(own, run, overwrite=True)
    teacher = ["distill.teacher=convmixer_tiny", f"distill.weights={run / 'best.pdparams'}"]
    with pytest.raises(UserError, match="distill.weights .* is of the run that would be replaced"):
        finetune.finetune(small(class_folders, *teacher), run, overwrite=True)
    nowhere = small(class_folders, f"model.weights={tmp_path / 'nowhere.pdparams'}")
    with pytest.raises(UserError, match="nowhere.pdparams"):
        finetune.finetune(nowhere, run, overwrite=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match="nowhere.pdparams"):
        finetune.finetune(nowhere, tmp_path / "new")
    finetune.finetune(small(class_folders, "train.epochs=1"), tmp_path / "new")  # nothing is in its way


def test_early_stopping(class_folders, tmp_path):
    ours = small(class_folders, "train.epochs=30", "train.patience=2", "optimizer.lr=1e-12", "schedule.name=constant")
    result = finetune.finetune(ours, tmp_path / "run")
    assert result["epochs"] == result["best_epoch"] + 2 < 30
    assert "stopping" in (tmp_path / "run/log.txt").read_text()
    states = [path.name for path in run_state.files(tmp_path / "run")]
    assert finetune.finetune(ours, tmp_path / "run", resume=True) == result  # it has stopped for good
    assert [path.name for path in run_state.files(tmp_path / "run")] == states


def test_numbers_of_classes_that_run_ahead_of_the_pictures(class_folders, tmp_path, caplog):
    names = [f"train/cat/cat {i}.png" for i in range(4)] + [f"train/dog/dog {i}.png" for i in range(4)]

    def listed(labels):
        (tmp_path / "train.txt").write_text("".join(f"{name} {label}\n" for name, label in zip(names, labels)))
        (tmp_path / "val.txt").write_text("val/cat/cat 0.png 1\n")
        data = ["data.dataset=list", f"data.train={tmp_path / 'train.txt'}", f"data.val={tmp_path / 'val.txt'}"]
        return small(class_folders, *data, "train.epochs=1")

    with pytest.raises(UserError, match=r"dog 3.png has the label 1440764, which makes 1,440,765 classes of 8 train"):
        finetune.finetune(listed([0, 0, 0, 0, 1, 1, 1, 1440764]), tmp_path / "run")
    finetune._check_numbers(small(class_folders), datasets.Pictures(list("abc"), np.array([0, 5, 999]), None, None))
    assert "997 of 1000 classes have no training picture, such as 1" in caplog.text
    assert not (tmp_path / "run").exists()
    finetune.finetune(listed([1, 1, 1, 1, 2, 2, 2, 2]), tmp_path / "run")
    assert "1 of 3 classes have no training picture, such as 0" in caplog.text


GRADUAL = ["train.epochs=4", "finetune.freeze=true", "finetune.unfreeze=[{epoch: 1, blocks: 2}, {epoch: 3, blocks: 4}]"]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb"])
def test_layers_thaw_at_their_epochs(class_folders, tmp_path, monkeypatch, optimizer):
    from ppconvmixer import callbacks

    state = random_state(dim=64, depth=4, kernel_size=5, patch_size=4, num_classes=3)
    weights = write_layout(tmp_path / "w.pdparams", state)
    seen = [state]
    original = callbacks.Save.on_epoch_end

    def watch(self, epoch, logs=None):
        seen.append(run_state.to_arrays(self.model.network.state_dict()))
        original(self, epoch, logs)

    monkeypatch.setattr(callbacks.Save, "on_epoch_end", watch)
    overrides = [*GRADUAL, f"model.weights={weights}", f"optimizer.name={optimizer}", "optimizer.lr=0.1"]
    finetune.finetune(small(class_folders, *overrides, "optimizer.weight_decay=0.1"), tmp_path / "run")
    assert "entries loaded from" in (tmp_path / "run/log.txt").read_text()  # said before there was a file
    moved = [{n.rsplit(".", 1)[0] for n in a if not np.array_equal(a[n], b[n])} for a, b in zip(seen, seen[1:])]
    parts = ("0.fn.0", "0.fn.2", "1", "3")
    upper, lower = ({f"blocks.{i}.{part}" for i in blocks for part in parts} for blocks in ((2, 3), (0, 1)))
    assert moved[0] == {"head"} and moved[1] == moved[2] == {"head"} | upper and moved[3] == {"head"} | upper | lower


def test_layers_do_not_thaw_in_several_processes(class_folders, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune.distributed, "WORLD", 2)
    with pytest.raises(UserError, match=r"finetune\.unfreeze needs a single process"):
        finetune.finetune(small(class_folders, *GRADUAL, "model.weights=w.pdparams"), tmp_path / "run")


def test_phases_have_pictures_and_batches_of_their_own(class_folders, tmp_path, monkeypatch):
    from ppconvmixer import callbacks
    from ppconvmixer.trainer import Trainer

    trained, evaluated, rates = [], [], []
    step, engine = Trainer.train_batch, callbacks._Interruptible.__call__

    def watch(self, inputs, labels=None, update=True):
        trained.append(inputs[0].shape)
        rates.append(self._optimizer.get_lr())
        return step(self, inputs, labels, update)

    monkeypatch.setattr(Trainer, "train_batch", watch)
    monkeypatch.setattr(callbacks._Interruptible, "__call__", lambda *a: (evaluated.append(a[1].shape), engine(*a))[1])
    ours = small(class_folders, "train.epochs=null", "train.batch_size=8", "schedule.name=cosine", "train.accumulate=2",
                 "train.phases=[{epochs: 2, size: 16, batch_size: 4}, {epochs: 1, size: 24}, {epochs: 1}]")  # fmt: skip
    finetune.finetune(ours, tmp_path / "run")
    first, second, third = (
        (2, 4, 3, 16, 16),
        [(2, 8, 3, 24, 24), (1, 8, 3, 24, 24)],
        [(2, 8, 3, 32, 32), (1, 8, 3, 32, 32)],
    )
    assert trained == [first] * 6 + second + third  # of 24 pictures
    assert set(evaluated) == {(8, 3, 32, 32), (4, 3, 32, 32)}
    assert rates == pytest.approx([0.01 * (1 + np.cos(np.pi * step / 10)) for step in range(10)])
    assert card.read(tmp_path / "run/best.pdparams").input["size"] == 32


def test_the_moving_average_is_the_formulas_and_the_best(class_folders, tmp_path, monkeypatch):
    """Its numbers are NumPy's in float64, its figures those of a network that holds it, and the cards say what is what."""
    from visualdl import LogReader

    from ppconvmixer import callbacks

    seen, figures = [], []
    original = callbacks.Count.on_train_batch_end

    def watch(self, step, logs=None):
        original(self, step, logs)
        seen.append({n: v.astype(float) for n, v in run_state.to_arrays(self.model.network.state_dict()).items()})

    monkeypatch.setattr(callbacks.Count, "on_train_batch_end", watch)
    monkeypatch.setattr(callbacks, "_told", lambda metrics: (figures.append(metrics), "")[1])
    ours = small(class_folders, "train.ema=0.35", "train.monitor=loss", "optimizer.lr=0.05", "model.drop_rate=0.1")
    result = finetune.finetune(ours, tmp_path / "run")
    paddle.seed(ours.train.seed)
    average = {
        n: v.numpy().astype(float) for n, v in finetune._network(ours, ("cat", "dog", "owl"), 3).state_dict().items()
    }
    averages = []
    for step, weights in enumerate(seen, 1):
        share = min(0.35, (1 + step) / (10 + step))
        average = {n: share * v + (1 - share) * weights[n] for n, v in average.items()}
        averages.append(average)
    saved = run_state.read(tmp_path / "run")
    assert len(averages) == 6
    for name, value in averages[-1].items():
        room = 1e-6 * max(np.abs(weights[name]).max() for weights in seen)
        np.testing.assert_allclose(saved.arrays[f"ema/{name}"], value, rtol=0, atol=room, err_msg=name)
    # The best weights are the average of the best epoch, the last ones those of the optimiser.
    best, last = (checkpoint.read(tmp_path / f"run/{name}.pdparams") for name in ("best", "last"))
    for name, value in averages[3 * result["best_epoch"] - 1].items():
        np.testing.assert_allclose(best[name], value, rtol=0, atol=1e-5 * max(np.abs(value).max(), 1), err_msg=name)
        np.testing.assert_array_equal(last[name], saved.arrays[f"model/{name}"], err_msg=name)
    cards = [card.read(tmp_path / f"run/{name}.pdparams").facts for name in ("best", "last")]
    assert [facts["ema"] for facts in cards] == [0.35, None] and result["ema"] == 0.35
    assert cards[0]["loss"] == result["loss"] == min(figures[1]["loss"], figures[3]["loss"])
    _, val = finetune.open_data(ours)
    for name, metrics in (("best", result), ("last", figures[2])):
        network = zoo.create_model("convmixer_tiny", tmp_path / f"run/{name}.pdparams", num_classes=3)
        samples = finetune.Samples(val, eval_transform(ours.input_spec()))
        assert evaluate(Dygraph(network), samples, 8, 0).metrics()["loss"] == pytest.approx(metrics["loss"])
    (file,) = (tmp_path / "run/visualdl").glob("vdlrecords*")
    drawn = [row.value for row in LogReader(file_path=str(file)).get_data("scalar", "eval_ema/loss")]
    assert drawn == pytest.approx([figures[1]["loss"], figures[3]["loss"]])


def test_the_moving_average_follows_the_masters_of_float16_weights():
    """What mixed precision O2 leaves in the network hides every step smaller than half a unit of float16."""
    from ppconvmixer import callbacks

    network, average = paddle.nn.Linear(2, 2), paddle.nn.Linear(2, 2)
    network.to(dtype="float16")
    weight, bias = network.weight, network.bias
    masters = {weight.name: paddle.to_tensor([[1.0001, 2.0], [3.0, 4.0]])}
    weight.set_value(masters[weight.name].astype("float16"))
    for parameter in average.parameters():
        parameter.set_value(paddle.zeros_like(parameter))
    callback = callbacks.Average(run_state.RunState(steps=1000), 0.75)
    callback.model = SimpleNamespace(
        network=network, average=average, _optimizer=SimpleNamespace(_master_weights=masters)
    )
    callback.on_train_batch_end(0)
    np.testing.assert_allclose(average.weight.numpy(), masters[weight.name].numpy() / 4, rtol=1e-6)
    np.testing.assert_allclose(average.bias.numpy(), bias.astype("float32").numpy() / 4, rtol=1e-6)


def test_a_moving_average_can_begin_later(class_folders, tmp_path):
    finetune.finetune(small(class_folders, "train.epochs=1"), tmp_path / "run")
    longer = small(class_folders, "train.epochs=2", "train.ema=0.9")
    finetune.finetune(longer, tmp_path / "run", resume=True, allow_changes=True)
    arrays = run_state.read(tmp_path / "run").arrays
    assert not np.array_equal(arrays["ema/head.weight"], arrays["model/head.weight"])


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(class_folders, tmp_path, monkeypatch):
    from ppconvmixer import callbacks

    original = callbacks.Tell.on_epoch_begin

    def poison(self, epoch, logs=None):
        original(self, epoch, logs)
        if self.state.epochs:
            self.model.network.head.bias.set_value(np.full(3, np.nan, np.float32))

    monkeypatch.setattr(callbacks.Tell, "on_epoch_begin", poison)
    with pytest.raises(UserError, match=r"the loss is nan in epoch 2, step 1; the batch held train/.*\.png and 5 more"):
        finetune.finetune(small(class_folders), tmp_path / "run")
    names = (tmp_path / "run/not_finite.txt").read_text().splitlines()
    assert len(names) == 8 and set(names) <= {p.relative_to(class_folders).as_posix() for p in class_folders.rglob("*")}
    assert all(np.isfinite(v).all() for v in checkpoint.read(tmp_path / "run/last.pdparams").values())


@pytest.mark.parametrize(("monitor", "better", "worse"), [("loss", 0.5, 2.3), ("top1", 0.9, 0.1)])
def test_a_figure_that_is_no_number_is_no_better_than_any(monitor, better, worse):
    assert run_state.RunState().improves(math.nan, monitor)  # the first epoch is the best so far, whatever it is
    assert run_state.RunState(best=worse).improves(better, monitor)
    assert not run_state.RunState(best=better).improves(worse, monitor)
    assert not run_state.RunState(best=better).improves(better, monitor)
    for nothing in (math.nan, math.inf, -math.inf):
        assert run_state.RunState(best=nothing).improves(worse, monitor)
        assert not run_state.RunState(best=worse).improves(nothing, monitor)


def test_the_head_of_a_checkpoint_stays_only_for_the_same_classes(class_folders, tmp_path, caplog):
    state = random_state(dim=64, depth=4, kernel_size=5, patch_size=4, num_classes=3)
    for classes, kept in ((None, True), (("cat", "dog", "owl"), True), (("a", "b", "c"), False)):
        path = write_layout(tmp_path / "w.pdparams", state)
        card.write(path, card.Card("convmixer_tiny", classes=classes))
        network = finetune._network(small(class_folders, f"model.weights={path}"), ("cat", "dog", "owl"), 3)
        np.testing.assert_array_equal(network.stem[0].weight.numpy(), state["stem.0.weight"])
        assert np.array_equal(network.head.weight.numpy(), state["head.weight"]) == kept
    network = finetune._network(small(class_folders, f"model.weights={path}"), ("x", "y"), 2)
    assert network.num_classes == 2


def test_the_card_of_the_weights_is_compared_with_the_recipe(class_folders, tmp_path, caplog):
    path = write_layout(
        tmp_path / "w.pdparams", random_state(dim=64, depth=4, kernel_size=5, patch_size=4, num_classes=3)
    )
    card.write(path, card.Card("convmixer_tiny", {"mean": [0.5, 0.5, 0.5]}))
    with caplog.at_level("WARNING", "ppconvmixer"):
        finetune._network(small(class_folders, f"model.weights={path}"), None, 3)
    assert "was trained with input.mean=[0.5, 0.5, 0.5]" in caplog.text and "input.std" not in caplog.text
    card.write(path, card.Card("convmixer_64_4_ks5_p4_relu"))
    with pytest.raises(UserError, match="by its card, with relu; convmixer_tiny has gelu. Set model.name="):
        finetune._network(small(class_folders, f"model.weights={path}"), None, 3)


@pytest.mark.parametrize("kind", ["list", "csv"])
def test_tables_as_data(class_folders, tmp_path, kind):
    for part, count in (("train", 8), ("val", 4)):
        rows = [
            (f"{part}/{name}/{name} {i}.png", name, k)
            for k, name in enumerate(("cat", "dog", "owl"))
            for i in range(count)
        ]
        if kind == "list":
            text = "".join(f"{path} {number}\n" for path, _, number in rows)
        else:
            text = "path,label\n" + "".join(f"{path},{name}\n" for path, name, _ in rows)
        (tmp_path / part).write_text(text)
    ours = small(
        class_folders, f"data.dataset={kind}", f"data.train={tmp_path / 'train'}", f"data.val={tmp_path / 'val'}"
    )
    result = finetune.finetune(
        dataclasses.replace(ours, train=dataclasses.replace(ours.train, epochs=1)), tmp_path / "run"
    )
    assert result["samples"] == 12
    classes = card.read(tmp_path / "run/best.pdparams").classes
    assert classes == (("cat", "dog", "owl") if kind == "csv" else None)


def test_amp_without_a_gpu_is_said(class_folders, tmp_path, caplog):
    if paddle.get_device() != "cpu":
        pytest.skip("there is a GPU")
    with caplog.at_level("WARNING", logger="ppconvmixer"):
        finetune.finetune(small(class_folders, "train.amp=O1", "train.epochs=1"), tmp_path / "run")
    assert "needs a GPU; this run trains in float32" in caplog.text


def scaled_down(ours, class_folders, folder):
    """Overrides that make a recipe one of seconds: other pictures, the smallest network, the fewest epochs."""
    depth = zoo.variant(ours.model.name).depth
    overrides = ["model.name=convmixer_tiny", "train.batch_size=8", "data.workers=0", "input.size=32"]
    overrides += ["data.dataset=folder", f"data.path={class_folders}", "data.train=train", "data.val=val"]
    overrides += ["data.val_fraction=null"]
    if ours.train.phases:
        phases = [f"{{epochs: 1, size: {16 + 4 * i}, batch_size: {4 + i}}}" for i in range(len(ours.train.phases))]
        overrides += [f"train.phases=[{', '.join(phases)}]", "train.batch_size=null"]
    else:
        overrides.append(f"train.epochs={1 + max(1, len(ours.finetune.unfreeze), len(ours.schedule.milestones))}")
    if ours.schedule.milestones:
        overrides.append(f"schedule.milestones={[i + 1 for i in range(len(ours.schedule.milestones))]}")
    overrides += [f"schedule.warmup_epochs={min(ours.schedule.warmup_epochs, 1)}"]
    overrides += [f"train.accumulate={min(ours.train.accumulate, 2)}"]
    if ours.finetune.unfreeze:
        thaws = [
            {"epoch": i + bool(thaw.epoch), "blocks": -(-thaw.blocks * 4 // depth), "stem": thaw.stem}
            for i, thaw in enumerate(ours.finetune.unfreeze)
        ]
        overrides.append(f"finetune.unfreeze={json.dumps(thaws)}")
    shape = {"dim": 64, "depth": 4, "kernel_size": 5, "patch_size": 4}
    if ours.model.weights:
        weights = write_layout(folder / "w.pdparams", random_state(**shape, num_classes=1000), "paddle-toolbox")
        overrides.append(f"model.weights={weights}")
    if ours.distill:
        weights = write_layout(folder / "teacher.pdparams", random_state(**shape, num_classes=3))
        overrides += ["distill.teacher=convmixer_tiny", f"distill.weights={weights}"]
    return overrides


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_recipe_from_end_to_end(path, class_folders, tmp_path):
    """Scaled down, it keeps every key that it has, and makes a run folder whose weights are what its result says."""
    ours = recipe.load(path)
    tiny = recipe.load(path, scaled_down(ours, class_folders, tmp_path))
    kept, now = ({key for key, value in r.settings().items() if value not in (None, (), [])} for r in (ours, tiny))
    assert kept - now <= {"data.val_fraction", "train.batch_size"}
    result = finetune.finetune(tiny, tmp_path / "run")
    assert (
        result["epochs"] == tiny.epochs and 1 <= result["best_epoch"] <= tiny.epochs and result["ema"] == ours.train.ema
    )
    names = {"best.pdparams", "last.pdparams", "best.json", "last.json", "recipe.yaml", "result.json", "log.txt"}
    assert names <= {p.name for p in (tmp_path / "run").iterdir()}
    network = Trained(tmp_path / "run/best.pdparams").create()
    _, val = finetune.open_data(tiny)
    spec = tiny.input_spec()
    found = evaluate(Dygraph(network), finetune.Samples(val, eval_transform(spec)), 8, 0).metrics()
    assert found["samples"] == result["samples"] == len(val)
    assert 0 < result["loss"] < 10 and found["loss"] == pytest.approx(result["loss"], rel=1e-4)
    assert found["top1"] == result["top1"]


def test_contact_sheet(class_folders):
    ours = small(class_folders)
    train, _ = finetune.open_data(ours)
    spec = ours.input_spec()
    samples = finetune.Samples(train, finetune.train_transform(spec, recipe.Augment()), seed=0)
    sheet = finetune._sheet(samples)
    assert sheet.shape == (4 * 32, 8 * 32, 3) and sheet.dtype == np.uint8
    from PIL import Image

    from ppconvmixer.transforms import eval_crop

    first = eval_crop(spec)(Image.open(class_folders / train.names[0]).convert("RGB"))
    np.testing.assert_array_equal(sheet[:32, :32], first)
    assert (sheet[3 * 32 :] == 255).all()  # 24 pictures fill three rows


def test_the_parts_of_a_data_set_are_no_classes(class_folders):
    told = (
        "the folders train, val of .* are parts of a data set .* set data.train=train data.val=val data.val_fraction=n"
    )
    with pytest.raises(UserError, match=told):
        finetune.open_data(small(class_folders, "data.train=null", "data.val=null", "data.val_fraction=0.2"))


def test_a_broken_picture_costs_nothing_of_the_epoch(class_folders, tmp_path, caplog):
    shutil.copytree(class_folders, tmp_path / "data")
    broken = tmp_path / "data/val/dog/dog 1.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    settings = small(tmp_path / "data", "train.epochs=1")
    with caplog.at_level("INFO"), pytest.raises(UserError, match="1 of 12 pictures cannot be read: val/dog/dog 1.png"):
        finetune.finetune(settings, tmp_path / "run")
    assert "after 3 steps; add --resume to the command to go on" in caplog.text
    broken.write_bytes(whole)
    found = finetune.finetune(settings, tmp_path / "run", resume=True)
    other = finetune.finetune(settings, tmp_path / "unbroken")
    assert found["loss"] == other["loss"] and found["samples"] == 12


def test_pictures_of_one_class_are_refused(class_folders, tmp_path):
    """As where data.path is one folder too high: everything in train is of the class "train"."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/all").symlink_to(class_folders / "train/cat")
    ours = ["data.dataset=folder", f"data.path={tmp_path / 'pictures'}", "data.val_fraction=0.5"]
    with pytest.raises(UserError, match="are of one class; data.path must hold one folder a class"):
        finetune.finetune(recipe.load("digits", ours), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tables_of_numbers_and_of_names_do_not_go_together(class_folders, tmp_path):
    for part, labels in (("train", ("0", "1")), ("val", ("0.0", "1.0"))):
        rows = [f"{part}/{name}/{name} 0.png,{label}\n" for name, label in zip(("cat", "dog"), labels)]
        (tmp_path / f"{part}.csv").write_text("path,label\n" + "".join(rows))
    ours = ["data.dataset=csv", f"data.path={class_folders}", "data.val_fraction=null"]
    ours += [f"data.{part}={tmp_path / part}.csv" for part in ("train", "val")]
    with pytest.raises(UserError, match=r"val.csv has names of classes where .*train.csv has numbers"):
        finetune.open_data(recipe.load("digits", ours))


def test_a_log_that_cannot_grow_hides_nothing(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    with finetune._logged() as write_to:
        write_to(tmp_path / "log.txt")
        (handler,) = (h.target for h in finetune.logger.handlers if isinstance(h, logging.handlers.MemoryHandler))
        assert isinstance(handler, finetune._Log)
        monkeypatch.setattr(handler, "flush", full)
        handler.handle(logging.makeLogRecord({"msg": "a line"}))
    assert capsys.readouterr().err == ""
