"""Runs that are cut off in every way, and go on as if they had not been."""

import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import paddle
import pytest
from conftest import ROOT

from ppconvmixer import UserError, callbacks, card, checkpoint, finetune, recipe, run_folder, run_state, zoo
from ppconvmixer.optim import lr_factor
from ppconvmixer.stopping import Stopped, StopWish
from ppconvmixer.trainer import Trainer


def settings(class_folders, *overrides):
    """Three epochs of three steps that use all that could go wrong: dropout, augmentation, moments."""
    return [
        *("data.dataset=folder", f"data.path={class_folders}", "data.train=train", "data.val=val"),
        *("data.val_fraction=null", "train.epochs=3", "train.batch_size=8", "data.workers=0"),
        *("model.drop_rate=0.2", "augment.hflip=0.5", "train.save_minutes=0"),
        *("augment.randaugment=n2-m12", "augment.erasing=0.3", "augment.mixup=0.5", "augment.cutmix=0.5"),
        *overrides,
    ]


def train(overrides, folder, resume=False, **more):
    return finetune.finetune(recipe.load("digits", overrides), Path(folder), resume=resume, **more)


def curves(folder):
    """Return {tag: [(step, value), ...]} as VisualDL reads them."""
    from visualdl import LogReader

    (file,) = (folder / "visualdl").glob("vdlrecords*")
    reader = LogReader(file_path=str(file))
    return {tag: [(row.id, row.value) for row in reader.get_data("scalar", tag)] for tag in reader.get_tags()["scalar"]}


def assert_same_run(folder, whole):
    """Weights, optimiser and curves of ``folder`` are those of ``whole``, bit for bit."""
    ours, theirs = run_state.read(folder), run_state.read(whole)
    assert set(ours.arrays) == set(theirs.arrays)
    for name, value in theirs.arrays.items():
        np.testing.assert_array_equal(ours.arrays[name], value, err_msg=name)
    timing = ("seconds", "epoch_seconds", "waiting_seconds", "images_per_second")
    for key, value in theirs.run.items():
        if key in ("metrics", "ema_metrics", "best_metrics"):
            assert {k: v for k, v in ours.run[key].items() if k not in timing} == {
                k: v for k, v in value.items() if k not in timing
            }
        elif key not in timing:
            assert ours.run[key] == value, key
    for name in ("best", "last"):
        assert (folder / f"{name}.pdparams").read_bytes() == (whole / f"{name}.pdparams").read_bytes()
        ours_card, card = (json.loads((f / f"{name}.json").read_text()) for f in (folder, whole))
        assert ours_card["sha256"] == card["sha256"] and ours_card["facts"]["top1"] == card["facts"]["top1"]
    drawn, expected = curves(folder), curves(whole)
    assert set(drawn) == set(expected)
    for tag, points in expected.items():
        if "images_per_second" in tag or tag == "train/waiting":
            assert [step for step, _ in drawn[tag]] == [step for step, _ in points], tag
        else:
            assert drawn[tag] == points, tag
    assert [step for step, _ in drawn["train/loss"]] == list(range(1, theirs.run["steps"] + 1))
    assert [step for step, _ in drawn["eval/loss"]] == list(range(1, theirs.run["epochs"] + 1))
    assert not list(folder.glob(".*.tmp"))


@pytest.fixture(scope="module", params=["adamw", "sgd"])
def whole(request, class_folders, tiny_weights, tmp_path_factory):
    """The settings and the folder of an unbroken run; one kind has everything that adds to what a run must remember."""
    folder = tmp_path_factory.mktemp("whole") / request.param
    everything = [
        *(f"model.weights={tiny_weights}", "model.drop_path=0.3", "train.accumulate=2", "train.ema=0.9"),
        *("schedule={name: step, milestones: [1], warmup_epochs: 0.5}", "finetune.freeze=true"),
        "finetune.unfreeze=[{epoch: 0, blocks: 1}, {epoch: 1, blocks: 4}, {epoch: 2, blocks: 4, stem: true}]",
        *("finetune.layer_decay=0.8", "distill.teacher=convmixer_tiny", f"distill.weights={tiny_weights}"),
        *("train.epochs=null", "train.batch_size=4"),
        "train.phases=[{epochs: 1, size: 16}, {epochs: 1, size: 24, batch_size: 2}, {epochs: 1}]",
    ]
    more = everything if request.param == "everything" else [f"optimizer.name={request.param}"]
    overrides = settings(class_folders, *more)
    train(overrides, folder)
    return overrides, folder


all_kinds = pytest.mark.parametrize("whole", ["adamw", "sgd", "everything"], indirect=True)


def stop_at(monkeypatch, callback, method, count):
    """Wish to stop when ``callback.method`` is called for the ``count``-th time."""
    original, calls = getattr(callback, method), []

    def watch(self, *args):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args)

    monkeypatch.setattr(callback, method, watch)


@all_kinds
@pytest.mark.parametrize(
    ("method", "count", "steps"),
    [
        ("on_train_batch_begin", 1, 1),
        ("on_train_batch_begin", 5, 5),
        ("on_train_batch_end", 3, 3),
        ("on_epoch_begin", 2, 4),
    ],
)
def test_ctrl_c_saves_within_a_step_and_resume_goes_on_there(whole, tmp_path, monkeypatch, method, count, steps):
    overrides, folder = whole
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, callbacks.Count, method, count)
        train(overrides, tmp_path / "run")
    assert run_state.read(tmp_path / "run").run["steps"] == steps
    paddle.nn.Linear(2, 2)  # shifts Paddle's automatic names, as another program would
    result = train([*overrides, "data.workers=2"], tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", folder)
    expected = json.loads((folder / "result.json").read_text())
    for key in ("top1", "loss", "best_epoch", "samples", "epochs"):
        assert result[key] == expected[key]


@pytest.mark.parametrize(
    ("whole", "call", "epochs"),
    # Two batches an evaluation: in the second epoch's. Three, and the same again for the moving average: in that one's.
    [("adamw", 3, 1), ("sgd", 3, 1), ("everything", 5, 0)],
    indirect=["whole"],
)
def test_ctrl_c_during_the_evaluation_does_not_wait_for_its_end(whole, tmp_path, monkeypatch, call, epochs):
    overrides, folder = whole
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, callbacks._Interruptible, "__call__", call)
        train(overrides, tmp_path / "run")
    saved = run_state.read(tmp_path / "run").run
    assert (saved["epochs"], saved["step"]) == (epochs, 3)
    train(overrides, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", folder)


@pytest.mark.parametrize("whole", ["everything"], indirect=True)
@pytest.mark.parametrize("epoch", [1, 2])
def test_going_on_where_a_phase_begins(whole, tmp_path, monkeypatch, epoch):
    """From the state that an epoch ended with: more layers thaw, and pictures and batches change, at the very first step."""
    overrides, folder = whole
    original = callbacks.Save.on_epoch_end

    def end(self, number, logs=None):
        original(self, number, logs)
        if self.state.epochs == epoch:
            raise RuntimeError("the power is gone")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the power is gone"):
        patch.setattr(callbacks.Save, "on_epoch_end", end)
        train(overrides, tmp_path / "run")
    train(overrides, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", folder)


# --- killed -------------------------------------------------------------------------------------------


def run_and_die(overrides, folder, resume, at_operation):
    """In a process of its own: train, and at the given operation on a file die without a chance to clean up."""
    done = []

    def deadly(original):
        def operation(*args, **kwargs):
            done.append(1)
            if len(done) == at_operation:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return operation

    logging.getLogger("ppconvmixer").addHandler(logging.FileHandler(f"{folder}.log"))
    for name in ("replace", "fsync", "unlink", "truncate", "chmod"):
        setattr(os, name, deadly(getattr(os, name)))
    train(overrides, folder, resume)


@pytest.fixture(scope="module")
def forkserver():
    """Processes that have Paddle imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ppconvmixer.finetune", "ppconvmixer.callbacks", "test_resume"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    yield context
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def attempt(context, overrides, folder, at_operation=0, seconds=None):
    """Start or go on, and be killed at an operation or after ``seconds``; tells whether the run got to its end."""
    resume = (folder / "recipe.yaml").exists()
    process = context.Process(target=run_and_die, args=(overrides, folder, resume, at_operation))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), Path(f"{folder}.log").read_text()
    return process.exitcode == 0


@pytest.mark.parametrize(
    ("whole", "workers"),
    [("adamw", 0), ("adamw", 2), ("sgd", 0), ("sgd", 2), ("everything", 2)],
    indirect=["whole"],
)
def test_killed_at_twenty_random_moments(whole, tmp_path, forkserver, workers):
    """The state is saved after every step here, so many a kill falls into a save."""
    overrides, folder = whole
    overrides = [*overrides, f"data.workers={workers}"]
    for name in ("warm", "timed"):  # the first one waits for the imports
        began = time.monotonic()
        assert attempt(forkserver, overrides, tmp_path / name)
        whole_run = time.monotonic() - began
    rng = random.Random(workers)
    kills, run = 0, 0
    while kills < 20:
        run += 1
        while not attempt(forkserver, overrides, tmp_path / f"run{run}", seconds=rng.uniform(0, 0.9) * whole_run):
            kills += 1
        assert_same_run(tmp_path / f"run{run}", folder)
    print(f"{kills} kills in {run} runs with {workers} workers")


@pytest.mark.parametrize("whole", ["adamw"], indirect=True)
@pytest.mark.parametrize("share", [pytest.param(1, marks=pytest.mark.slow), 12])
def test_killed_at_operations_on_files(whole, tmp_path, forkserver, share):
    """Die before the first, second, third ... rename, sync, removal or truncation of a run, and before one of the next."""
    overrides, folder = whole
    rng = random.Random(0)
    kills = 0
    for number in range(1, 1000, share):
        run = tmp_path / str(number)
        if attempt(forkserver, overrides, run, at_operation=number):
            break
        kills += 1
        kills += not attempt(forkserver, overrides, run, at_operation=rng.randint(1, 30))
        attempt(forkserver, overrides, run)
        assert_same_run(run, folder)
    print(f"{kills} kills at operations on files")
    assert kills > 100 / share


# --- damaged, changed, refused ------------------------------------------------------------------------


@pytest.fixture
def stopped(whole, tmp_path, monkeypatch):
    """A run that was stopped after five of its nine steps."""
    overrides, folder = whole
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, callbacks.Count, "on_train_batch_begin", 5)
        train(overrides, tmp_path / "run")
    return overrides, tmp_path / "run", folder


@pytest.mark.parametrize("damage", ["empty", "cut", "bit", "header", "record"])
def test_a_damaged_newest_state_gives_way_to_the_one_before(stopped, damage, caplog):
    overrides, run, folder = stopped
    newest, before = run_state.files(run)
    content = bytearray(newest.read_bytes())
    if damage == "empty":
        content = b""
    elif damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "bit":
        content[-1000] ^= 1
    elif damage == "header":
        content[30] ^= 1
    else:
        content = content.replace(b'\\"steps\\": 5', b'\\"steps\\": 4')
        assert content != newest.read_bytes()
    newest.write_bytes(content)
    with caplog.at_level("WARNING", logger="ppconvmixer"):
        train(overrides, run, resume=True)
    assert f"damaged: {newest.name}" in caplog.text and f"the state before it, {before.name}" in caplog.text
    assert_same_run(run, folder)


def test_two_damaged_states_are_refused_and_kept(stopped):
    overrides, run, _ = stopped
    for path in run_state.files(run):
        path.write_bytes(path.read_bytes()[:1000])
    held = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file() and p.name != "log.txt"}
    with pytest.raises(UserError, match="every saved state .* is damaged .*--overwrite"):
        train(overrides, run, resume=True)
    assert {p.name: p.read_bytes() for p in run.iterdir() if p.is_file() and p.name != "log.txt"} == held


def test_a_state_of_another_optimiser_or_other_classes_is_refused_and_stays(stopped, class_folders, tmp_path):
    overrides, run, folder = stopped
    held = {name: (run / name).read_bytes() for name in ("recipe.yaml", "pictures.csv", "environment.json")}
    (ours,) = (word for word in overrides if word.startswith("optimizer.name="))
    other = "optimizer.name=sgd" if ours.endswith("adamw") else "optimizer.name=adamw"
    with pytest.raises(UserError, match="does not fit this recipe .*start again with --overwrite"):
        train([*overrides, other], run, resume=True, allow_changes=True)
    more = shutil.copytree(class_folders, tmp_path / "more")
    shutil.copytree(more / "train/owl", more / "train/swan")
    with pytest.raises(UserError, match=r"does not fit this recipe \(head.weight is \(64, 3\) and not \(64, 4\)\)"):
        train([*overrides, f"data.path={more}"], run, resume=True, allow_changes=True)
    assert {name: (run / name).read_bytes() for name in held} == held
    train(overrides, run, resume=True)
    assert_same_run(run, folder)


def test_a_state_that_lacks_an_entry_is_refused(stopped):
    overrides, run, _ = stopped
    saved = run_state.read(run)
    records = {k: getattr(saved, k) for k in ("run", "schedule", "scaler", "facts")}
    arrays = {name: value for name, value in saved.arrays.items() if name != "model/head.bias"}
    text = json.dumps(records)
    metadata = {"ppconvmixer": text, "sha256": run_state._digest(arrays, text)}
    checkpoint.write(run_state.files(run)[0], arrays, metadata)
    with pytest.raises(UserError, match=r"does not fit this recipe .*head\.bias"):
        train(overrides, run, resume=True)


def test_a_changed_recipe_is_refused_with_the_difference_unless_told_otherwise(stopped):
    overrides, run, _ = stopped
    changed = [*overrides, "optimizer.lr=0.03", "train.epochs=4"]
    with pytest.raises(UserError, match=r"optimizer.lr: 0.02 -> 0.03; train.epochs: 3 -> 4.*--allow-changes"):
        train(changed, run, resume=True)
    result = train(changed, run, resume=True, allow_changes=True)
    assert result["epochs"] == 4 and recipe.load(run / "recipe.yaml").train.epochs == 4
    train(changed, run, resume=True)  # from now on this is the recipe


def test_cards_say_what_changed_under_way_and_when(stopped):
    overrides, run, _ = stopped
    faster = [*overrides, "optimizer.lr=0.03"]
    train(faster, run, resume=True, allow_changes=True)
    once = card.read(run / "last.pdparams").facts["changed"]
    assert once == [{"epochs": 1, "steps": 5, "changes": ["optimizer.lr: 0.02 -> 0.03"]}]
    train([*faster, "train.epochs=4"], run, resume=True, allow_changes=True)
    twice = [*once, {"epochs": 3, "steps": 9, "changes": ["train.epochs: 3 -> 4"]}]
    assert card.read(run / "last.pdparams").facts["changed"] == twice
    assert run_state.read(run).facts["changed"] == twice


def test_a_changed_batch_leaves_the_schedule_in_its_place(class_folders, tmp_path):
    overrides = settings(class_folders, "train.batch_size=4", "schedule.name=cosine", "train.monitor=top1")
    train([*overrides, "train.epochs=1"], tmp_path)
    changed = [*overrides, "train.epochs=2", "train.batch_size=8", "train.monitor=loss"]
    result = train(changed, tmp_path, resume=True, allow_changes=True)
    rates = [rate for _, rate in curves(tmp_path)["train/learning_rate"]]
    schedule, counts = recipe.load("digits", changed).schedule, [3, 3]
    assert len(rates) == 6 + 3  # 24 pictures, by 4 and by 8
    np.testing.assert_allclose(rates[6:], [0.02 * lr_factor(schedule, step, counts) for step in (3, 4, 5)], rtol=1e-6)
    losses = [loss for _, loss in curves(tmp_path)["eval/loss"]]
    assert result["best_epoch"] == 1 + int(np.argmin(losses))  # by the new figure


@pytest.mark.parametrize(("batch", "begun"), [(4, 2), (24, 0)])
def test_a_changed_batch_goes_on_after_the_pictures_that_were_seen(class_folders, tmp_path, monkeypatch, batch, begun):
    """Of 24 pictures 8 were seen, in one step; that is two steps of four pictures, or none of all."""
    overrides = settings(class_folders, "schedule.name=constant", "train.epochs=1")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, callbacks.Count, "on_train_batch_begin", 1)
        train([*overrides, "train.batch_size=8"], tmp_path)
    seen = []
    original = callbacks.Count.on_train_batch_end

    def watch(self, step, logs=None):
        seen.append(self.data.current.tolist())
        original(self, step, logs)

    monkeypatch.setattr(callbacks.Count, "on_train_batch_end", watch)
    train([*overrides, f"train.batch_size={batch}"], tmp_path, resume=True, allow_changes=True)
    order = np.random.default_rng((0, 0)).permutation(24).tolist()
    assert seen == [order[i : i + batch] for i in range(begun * batch, 24, batch)]


def test_a_last_step_of_fewer_batches_is_not_taken_twice(class_folders, tmp_path, monkeypatch):
    """Three batches make a step of two and one of one."""
    overrides = settings(class_folders, "train.accumulate=2", "train.epochs=2")
    train(overrides, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, callbacks.Count, "on_train_batch_end", 2)
        train(overrides, tmp_path / "run")
    assert run_state.read(tmp_path / "run").run["step"] == 2
    train(overrides, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_the_best_of_an_average_stays_when_the_run_goes_on_without(class_folders, tmp_path):
    overrides = settings(class_folders, "train.epochs=1", "train.ema=0.5", "schedule.name=constant")
    train(overrides, tmp_path)
    best = [(tmp_path / name).read_bytes() for name in ("best.pdparams", "best.json")]
    train([*overrides, "train.ema=null"], tmp_path, resume=True, allow_changes=True)
    assert [(tmp_path / name).read_bytes() for name in ("best.pdparams", "best.json")] == best
    assert json.loads((tmp_path / "result.json").read_text())["ema"] == 0.5  # not what the recipe says now


def test_weights_of_before_keep_the_card_of_before(class_folders, tmp_path, monkeypatch):
    """Where a run goes on by another input, they were not trained for that."""
    overrides = settings(class_folders, "train.epochs=1", "schedule.name=constant")
    train(overrides, tmp_path)
    last = (tmp_path / "last.json").read_bytes()
    changed = [*overrides, "train.epochs=2", "input.mean=[0.1,0.1,0.1]"]
    stop_at(monkeypatch, callbacks.Count, "on_train_batch_begin", 1)
    with pytest.raises(Stopped):
        train(changed, tmp_path, resume=True, allow_changes=True)
    assert run_state.read(tmp_path).run["steps"] == 4
    assert (tmp_path / "last.json").read_bytes() == last


def test_classes_of_other_names_are_refused_and_do_not_rename_what_weights_knew(class_folders, tmp_path, monkeypatch):
    pictures, run = shutil.copytree(class_folders, tmp_path / "pictures"), tmp_path / "run"
    overrides = settings(pictures, "train.epochs=1", "schedule.name=constant")
    train(overrides, run)
    cards = [(run / name).read_bytes() for name in ("last.json", "best.json")]
    for part in ("train", "val"):
        (pictures / part / "cat").rename(pictures / part / "zebra")
    changed = [*overrides, "train.epochs=2"]
    with pytest.raises(UserError, match="classes: cat, dog, owl -> dog, owl, zebra; put it back"):
        train(changed, run, resume=True)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, callbacks.Count, "on_train_batch_begin", 1)
        train(changed, run, resume=True, allow_changes=True)
    assert [(run / name).read_bytes() for name in ("last.json", "best.json")] == cards
    train(changed, run, resume=True)
    assert card.read(run / "last.pdparams").classes == ("dog", "owl", "zebra")


def test_other_pictures_to_judge_by_begin_the_search_for_the_best_anew(class_folders, tmp_path, monkeypatch, caplog):
    pictures, run = shutil.copytree(class_folders, tmp_path / "pictures"), tmp_path / "run"
    overrides = settings(pictures, "train.epochs=1", "train.patience=1", "schedule.name=constant")
    train(overrides, run)
    monkeypatch.setattr(run_state.RunState, "improves", lambda self, *_: self.best is None)  # as after a flawless epoch
    (pictures / "val/cat/cat 0.png").unlink()
    with caplog.at_level("WARNING", logger="ppconvmixer"):
        result = train([*overrides, "train.epochs=2"], run, resume=True, allow_changes=True)
    assert "its best epoch is looked for anew" in caplog.text
    assert result["best_epoch"] == 2 and result["samples"] == 11
    assert card.read(run / "best.pdparams").facts["epoch"] == 2


def test_what_was_trained_on_and_judges_now_is_counted(tmp_path):
    file = tmp_path / "pictures.csv"
    file.write_text("part,label,path\ntrain,0,a\ntrain,0,b\nval,0,c\n")
    said = run_folder.changed_pictures(file, "part,label,path\ntrain,0,a\ntrain,0,c\nval,0,b\n")
    assert "1 were trained on and judge now (such as val b)" in said


def test_pictures_on_both_sides_are_named(class_folders, tmp_path, caplog):
    with caplog.at_level("WARNING", logger="ppconvmixer"):
        train(settings(class_folders, "data.val=train", "train.epochs=1"), tmp_path)
    assert "24 of the pictures to evaluate on are trained on as well, such as 'train/cat/cat 0.png'" in caplog.text


def test_a_change_that_came_to_nothing_leaves_no_trace(class_folders, tmp_path, monkeypatch):
    """It went wrong before it was saved; then the run goes on as it was."""
    overrides = settings(class_folders, "train.epochs=2", "schedule.name=constant")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, callbacks.Count, "on_train_batch_begin", 4)
        train(overrides, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Trainer, "fit", Mock(side_effect=MemoryError))
        train([*overrides, "optimizer.lr=9"], tmp_path, resume=True, allow_changes=True)
    train(overrides, tmp_path, resume=True)
    assert recipe.load(tmp_path / "recipe.yaml").optimizer.lr == 0.02


def test_a_complete_run_is_not_described_anew(class_folders, tmp_path):
    overrides = settings(class_folders, "train.epochs=1")
    train(overrides, tmp_path)
    before = (tmp_path / "recipe.yaml").read_bytes()
    train([*overrides, "optimizer.lr=9"], tmp_path, resume=True, allow_changes=True)
    assert (tmp_path / "recipe.yaml").read_bytes() == before


def test_the_state_of_a_very_deep_network_can_be_read(tmp_path):
    arrays = {f"optimizer/blocks.{i}.0.fn.0.weight/moment1_0": np.ones(1, np.float32) for i in range(20_000)}
    text = json.dumps({"run": {}, "schedule": {}, "scaler": {}, "facts": {}})
    metadata = {"ppconvmixer": text, "sha256": run_state._digest(arrays, text)}
    checkpoint.write(tmp_path / "state-0000000001.safetensors", arrays, metadata)
    assert len(run_state.read(tmp_path).arrays) == 20_000
    with pytest.raises(UserError, match="its header is of more than 1,048,576 bytes"):
        checkpoint.read(tmp_path / "state-0000000001.safetensors")  # what a stranger's weights may not have


def test_going_on_needs_no_weights_to_begin_with(class_folders, tiny_weights, tmp_path):
    begin = tmp_path / "begin.pdparams"
    begin.write_bytes(tiny_weights.read_bytes())
    overrides = settings(class_folders, f"model.weights={begin}", "schedule.name=constant")
    whole = tmp_path / "whole"
    train([*overrides, "train.epochs=2"], whole)
    train([*overrides, "train.epochs=1"], tmp_path / "run")
    begin.unlink()
    train([*overrides, "train.epochs=2"], tmp_path / "run", resume=True, allow_changes=True)
    assert (tmp_path / "run/last.pdparams").read_bytes() == (whole / "last.pdparams").read_bytes()


def test_a_state_of_16_bits_with_masters_of_32_comes_back(tmp_path):
    """As ``train.amp=O2`` has it on a GPU: parameters in float16, their counterparts and moments in float32."""

    def trainer():
        network = zoo.create_model("convmixer_16_1_ks3_p4", num_classes=3)
        network.to(dtype="float16")
        optimizer = paddle.optimizer.AdamW(0.1, parameters=network.parameters(), multi_precision=True)
        model = Trainer(network)
        model._optimizer = optimizer
        return model, optimizer

    model, optimizer = trainer()
    run_state._take_up(optimizer, list(model.network.parameters()))
    generator = np.random.default_rng(0)
    for tensors in (optimizer._master_weights, *optimizer._accumulators.values()):
        for tensor in tensors.values():
            tensor.set_value(generator.standard_normal(tensor.shape).astype(np.float32))
    run_state.save(tmp_path, model, run_state.RunState(steps=3), {})
    saved = run_state.read(tmp_path)
    assert {name.split("/")[0] for name in saved.arrays} == {"model", "master", "optimizer"}
    other, _ = trainer()
    assert run_state.restore(saved, other).steps == 3
    run_state.save(tmp_path, other, run_state.RunState(steps=4), {})
    again = run_state.read(tmp_path)
    assert again.arrays.keys() == saved.arrays.keys() and again.path != saved.path
    for name, value in saved.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], value, err_msg=name)
    assert all(parameter.dtype == paddle.float16 for parameter in other.network.parameters())


def test_changed_pictures_are_refused_with_the_difference_unless_told_otherwise(class_folders, tmp_path):
    pictures = tmp_path / "pictures"
    shutil.copytree(class_folders, pictures)
    overrides = settings(pictures, "train.epochs=1")
    train(overrides, tmp_path / "run")
    (pictures / "train/cat/cat 0.png").rename(pictures / "train/cat/new.png")
    (pictures / "val/owl/owl 1.png").unlink()
    longer = [*overrides, "train.epochs=2"]
    with pytest.raises(UserError) as error:
        train(longer, tmp_path / "run", resume=True)
    message = str(error.value)
    assert "1 added (such as train train/cat/new.png), 2 removed (such as train train/cat/cat 0.png)" in message
    assert "train.epochs: 1 -> 2" in message
    assert train(longer, tmp_path / "run", resume=True, allow_changes=True)["samples"] == 11


def test_another_teacher_under_the_same_name_is_refused_unless_told_otherwise(class_folders, tiny_weights, tmp_path):
    teacher = tmp_path / "teacher.pdparams"
    teacher.write_bytes(tiny_weights.read_bytes())
    overrides = settings(class_folders, "distill.teacher=convmixer_tiny", f"distill.weights={teacher}")
    train([*overrides, "train.epochs=1"], tmp_path / "run")
    assert train([*overrides, "train.epochs=1"], tmp_path / "run", resume=True)["epochs"] == 1
    state = checkpoint.read(teacher)
    state["head.bias"] = state["head.bias"] + 1
    checkpoint.write(teacher, state)
    with pytest.raises(
        UserError, match=r"distill.weights .*teacher.pdparams: sha256 \w{8}... -> \w{8}...; put it back"
    ):
        train([*overrides, "train.epochs=1"], tmp_path / "run", resume=True)
    longer = [*overrides, "train.epochs=2"]
    assert train(longer, tmp_path / "run", resume=True, allow_changes=True)["epochs"] == 2
    train(longer, tmp_path / "run", resume=True)  # from now on this is the teacher
    teacher.unlink()
    with pytest.raises(UserError, match="cannot read distill.weights .*teacher.pdparams: No such file"):
        train(longer, tmp_path / "run", resume=True)


def test_a_run_killed_before_its_first_state_begins_again(whole, tmp_path):
    overrides, folder = whole
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_bytes((folder / "recipe.yaml").read_bytes())
    (tmp_path / "run/.recipe.yaml.x.tmp").write_text("half")
    train(overrides, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", folder)


def test_resuming_a_complete_run_changes_nothing(whole):
    overrides, folder = whole
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".pdparams", ".safetensors")}
    expected = json.loads((folder / "result.json").read_text())
    again = train(overrides, folder, resume=True)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name in before} == before
    assert again == expected


def test_resume_refuses_a_folder_without_a_run(class_folders, tmp_path):
    with pytest.raises(UserError, match="nothing to resume"):
        train(settings(class_folders), tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()


def test_weights_without_a_state_are_not_overwritten(whole, tmp_path):
    overrides, folder = whole
    run = tmp_path / "run"
    run.mkdir()
    for kept in ("last.pdparams", "best.pdparams", "result.json"):  # somebody saved disk
        for name in ("recipe.yaml", kept):
            (run / name).write_bytes((folder / name).read_bytes())
        with pytest.raises(UserError, match=f"holds {kept}, but no saved state to go on from"):
            train(overrides, run, resume=True)
        assert (run / kept).read_bytes() == (folder / kept).read_bytes()
        (run / kept).unlink()


def test_copies_of_a_state_are_nobodys_but_the_users(stopped):
    overrides, run, folder = stopped
    states = run_state.files(run)
    copies = [run / "state-keep.safetensors", run / f"{states[1].stem} (copy).safetensors"]
    for copy in copies:
        copy.write_bytes(states[1].read_bytes())
    assert run_state.files(run) == states
    train(overrides, run, resume=True)
    assert_same_run(run, folder)
    assert all(copy.exists() for copy in copies) and len(run_state.files(run)) == run_state.KEPT


def test_weights_that_are_no_numbers_are_not_saved(stopped):
    overrides, run, _ = stopped
    before = {p: p.read_bytes() for p in run_state.files(run)}
    network = paddle.nn.Linear(2, 2)
    network.bias.set_value(np.array([1, np.inf], np.float32))
    model = Trainer(network)
    model.prepare(paddle.optimizer.Adam(parameters=network.parameters()), paddle.nn.CrossEntropyLoss(), None, "O0")
    with pytest.raises(UserError, match="model/bias holds numbers that are not finite after step 7"):
        run_state.save(run, model, run_state.RunState(steps=7), {})
    assert {p: p.read_bytes() for p in run_state.files(run)} == before


def test_two_processes_may_not_train_into_one_folder(whole, tmp_path, monkeypatch):
    from ppconvmixer import run_folder

    monkeypatch.setattr(run_folder, "_LOCK_SECONDS", 0.1)
    overrides, _ = whole
    with run_folder.locked(tmp_path / "run"), pytest.raises(UserError, match="another process is training into"):
        train(overrides, tmp_path / "run")


# --- signals and the disk, as a user meets them -------------------------------------------------------


def start(overrides, folder, *more):
    command = [sys.executable, ROOT / "tools/finetune.py", "-c", "digits", "-o", *overrides, "--output", folder, *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([str(c) for c in command], start_new_session=True, **pipes)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_the_command_saved_and_in_a_line(class_folders, tmp_path, number, code):
    overrides = settings(class_folders, "train.epochs=15")  # long enough for the signal to come in time
    run, folder = tmp_path / "run", tmp_path / "whole"
    train(overrides, folder)
    process = start([*overrides, "data.workers=2"], run)
    deadline = time.monotonic() + 120
    while not run_state.files(run):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    os.killpg(process.pid, number)  # as a terminal and many a scheduler do: the data workers too
    output = process.communicate(timeout=60)[0]
    assert process.returncode == code, output
    assert "Traceback" not in output and f"saved in {run} after" in output and "--resume" in output
    resumed = start(overrides, run, "--resume")
    output = resumed.communicate(timeout=120)[0]
    assert resumed.returncode == 0, output
    assert_same_run(run, folder)


def small_disk(folder):
    """Mount a disk of 1.8 MB at ``folder``."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1800k", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small disk needs root")


@pytest.mark.parametrize("whole", ["adamw"], indirect=True)
def test_a_full_disk_ends_the_run_and_leaves_the_state_before(whole, tmp_path):
    overrides, folder = whole
    run = tmp_path / "disk"
    small_disk(run)
    try:
        (run / "filler").write_bytes(bytes(1_000_000))  # room for two states of 360 kB, but not for a third
        process = start(overrides, run)
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 2 and "Traceback" not in output, output
        assert f"cannot write {run}" in output and f"the disk of {run} is full" in output
        assert run_state.read(run) is not None
        assert not list(run.glob(".*.tmp"))
        (run / "filler").unlink()
        resumed = start(overrides, run, "--resume")
        output = resumed.communicate(timeout=120)[0]
        assert resumed.returncode == 0, output
        assert_same_run(run, folder)
    finally:
        subprocess.run(["umount", run], check=True)


def test_a_second_ctrl_c_stops_at_once_and_a_second_sigterm_does_not(request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what is begun in the background ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with StopWish() as wish:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        assert wish.signal == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        with pytest.raises(Stopped):
            wish.grant(wish.signal)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)


def test_a_signal_that_comes_while_the_loop_looks_is_not_lost(tmp_path, monkeypatch):
    wish = StopWish()

    def gather(value):
        wish.signal = signal.SIGTERM
        return [value]

    monkeypatch.setattr(callbacks.distributed, "gather", gather)
    save = callbacks.Save(run_state.RunState(), tmp_path, {}, None, wish, 10.0)
    save.on_train_batch_end(0)
    with pytest.raises(Stopped):
        save.on_train_batch_end(1)


def test_a_wish_to_stop_is_heard_where_nobody_reads_what_is_said(monkeypatch):
    """As with `2>&1 | tee log`, where Ctrl-C ends tee first."""

    def broken(*_):
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", broken)
    wish = StopWish()
    wish._hear(signal.SIGTERM, None)
    assert wish.signal == signal.SIGTERM
