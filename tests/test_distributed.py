"""Two CPU processes must do what one does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from ppconvmixer import checkpoint, finetune, recipe, run_state
from ppconvmixer.records import FILE, Records


def command(script, arguments, log_dir):
    """Return what ``subprocess`` needs to run a script in two processes, as a user would."""
    launcher = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", log_dir]
    return {
        "args": [str(c) for c in [*launcher, ROOT / script, *arguments]],
        "env": {**os.environ, "PYTHONPATH": str(ROOT)},
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }


def launch(script, arguments, log_dir, timeout=240):
    done = subprocess.run(**command(script, arguments, log_dir), timeout=timeout)
    logs = "".join(p.read_text(errors="replace") for p in sorted(log_dir.glob("workerlog.*")))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:] + logs[-4000:]


@pytest.mark.parametrize("limit", [0, 7])
def test_two_processes_evaluate_like_one_to_the_last_sample(tmp_path, tiny_weights, class_folders, limit):
    arguments = ["--weights", tiny_weights, "--data", class_folders / "train", "--workers", 0, "--batch-size", 5]
    arguments += ["--limit", limit]

    def outputs(n):
        return [
            "--output",
            tmp_path / f"{n}.json",
            "--logits",
            tmp_path / f"{n}.npy",
            "--predictions",
            tmp_path / f"{n}.csv",
        ]

    one_process = [sys.executable, ROOT / "tools/eval.py", *arguments, *outputs(1)]
    subprocess.run([str(c) for c in one_process], check=True, capture_output=True)
    launch("tools/eval.py", [*arguments, *outputs(2)], tmp_path / "log")
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    assert one["samples"] == two["samples"] == (limit or 24)
    assert one["top1"] == two["top1"] and one["top5"] == two["top5"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    # Other batches, other roundings of the matrix products, in the last digits of float32.
    np.testing.assert_allclose(np.load(tmp_path / "2.npy"), np.load(tmp_path / "1.npy"), rtol=1e-4, atol=1e-4)
    paths = [[row.split(",")[0] for row in (tmp_path / f"{n}.csv").read_text().splitlines()] for n in (1, 2)]
    assert paths[0] == paths[1]


def test_two_processes_train_one_model(tmp_path, class_folders):
    settings = [
        *("data.dataset=folder", f"data.path={class_folders}", "data.train=train", "data.val=val"),
        *("data.val_fraction=null", "data.workers=0", "train.epochs=2", "train.batch_size=4"),
        *("augment.randaugment=n2-m12", "augment.mixup=0.5", "augment.cutmix=0.5"),
    ]
    launch("tools/finetune.py", ["-c", "digits", "-o", *settings, "--output", tmp_path / "run"], tmp_path / "log")
    trained = json.loads((tmp_path / "run/result.json").read_text())
    assert trained["samples"] == 12
    # What rank 0 saved is what both evaluated: batch-norm statistics were brought together first.
    one_process = [sys.executable, ROOT / "tools/eval.py", "-c", tmp_path / "run/recipe.yaml", "--workers", 0]
    one_process += ["--weights", tmp_path / "run/best.pdparams", "--output", tmp_path / "r.json"]
    subprocess.run([str(c) for c in one_process], check=True, capture_output=True)
    evaluated = json.loads((tmp_path / "r.json").read_text())
    assert evaluated["top1"] == trained["top1"] and evaluated["loss"] == pytest.approx(trained["loss"], rel=1e-5)
    assert all(np.isfinite(v).all() for v in checkpoint.read(tmp_path / "run/best.pdparams").values())


def frozen(class_folders, weights, *overrides):
    return [
        *("data.dataset=folder", f"data.path={class_folders}", "data.train=train", "data.val=val"),
        *("data.val_fraction=null", "data.workers=0", "train.epochs=2", "optimizer={name: sgd, lr: 0.1}"),
        *(f"model.weights={weights}", "finetune.freeze=true", *overrides),
    ]


def test_two_processes_train_what_is_not_frozen(tmp_path, class_folders, tiny_weights):
    more = ("train.batch_size=4", "finetune.unfreeze=[{epoch: 0, blocks: 2}]")
    arguments = ["-c", "digits", "-o", *frozen(class_folders, tiny_weights, *more), "--output", tmp_path / "run"]
    launch("tools/finetune.py", arguments, tmp_path / "log")
    before, after = checkpoint.read(tiny_weights), checkpoint.read(tmp_path / "run/last.pdparams")
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(("stem", "blocks.0", "blocks.1"))}


def test_two_processes_of_two_batches_a_step_do_what_one_large_batch_does(tmp_path, class_folders, tiny_weights):
    """With all norms frozen it makes no difference which pictures share a batch."""
    settings = frozen(class_folders, tiny_weights, "train.batch_size=3", "train.accumulate=2")
    launch("tools/finetune.py", ["-c", "digits", "-o", *settings, "--output", tmp_path / "two"], tmp_path / "log")
    one = recipe.load("digits", frozen(class_folders, tiny_weights, "train.batch_size=12"))
    finetune.finetune(one, tmp_path / "one")
    ours, theirs = (checkpoint.read(tmp_path / name / "last.pdparams") for name in ("two", "one"))
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=name)
    assert not np.array_equal(ours["head.weight"], checkpoint.read(tiny_weights)["head.weight"])
    assert [run_state.read(tmp_path / name).run["steps"] for name in ("one", "two")] == [4, 4]


WATCHED = """
import os, sys

FOLDER = {folder!r}

def writes(event, arguments):
    if event == "open":
        changes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    else:
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree")
    if changes and str(arguments[0]).startswith(FOLDER):
        print("rank 1 writes:", event, arguments, file=sys.stderr, flush=True)
        os._exit(77)

if os.environ["PADDLE_TRAINER_ID"] == "1":
    sys.addaudithook(writes)
from ppconvmixer.cli import main
sys.exit(main(["finetune", *sys.argv[1:]]))
"""


def test_two_processes_do_all_that_one_does_and_only_the_first_writes(tmp_path, class_folders, tiny_weights):
    """The same pictures, varied and mixed in the same way, in phases and several batches a step, and their average.

    With all norms frozen it makes no difference which pictures share a batch.
    """
    everything = [
        *("augment.randaugment=n2-m12", "augment.hflip=0.5", "augment.erasing=0.3", "augment.mixup=0.5"),
        *("augment.cutmix=0.5", "train.ema=0.8", "train.accumulate=2", "train.epochs=null", "schedule.name=cosine"),
        *("train.phases=[{epochs: 2, size: 16}, {epochs: 1}]", "train.label_smoothing=0.1"),
    ]
    script = tmp_path / "watched.py"
    script.write_text(WATCHED.format(folder=str(tmp_path / "two")))
    settings = frozen(class_folders, tiny_weights, *everything, "train.batch_size=4")
    launch(script, ["-c", "digits", "-o", *settings, "--output", tmp_path / "two"], tmp_path / "log")
    one = recipe.load("digits", frozen(class_folders, tiny_weights, *everything, "train.batch_size=8"))
    finetune.finetune(one, tmp_path / "one")
    ours, theirs = (run_state.read(tmp_path / name) for name in ("two", "one"))
    assert set(ours.arrays) == set(theirs.arrays) and any(name.startswith("ema/") for name in ours.arrays)
    for name, value in theirs.arrays.items():
        np.testing.assert_allclose(ours.arrays[name], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=name)
    assert ours.run["steps"] == theirs.run["steps"] == 6 and ours.run["epochs"] == 3
    for key in ("metrics", "ema_metrics"):
        assert ours.run[key]["loss"] == pytest.approx(theirs.run[key]["loss"], rel=1e-4)
    # The curves are of all pictures, not of those that the first process trained on.
    ours, theirs = (Records(tmp_path / name / "visualdl" / FILE).read().curves for name in ("two", "one"))
    for tag in ("train/loss", "train/top1"):
        assert ours[tag][0] == theirs[tag][0] and len(ours[tag][0]) == 6
        np.testing.assert_allclose(ours[tag][1], theirs[tag][1], rtol=1e-4, err_msg=tag)
    assert (
        "2 processes: train.batch_size is that of one, a step takes 2 x 4 x 2 = 16 pictures; optimizer.lr stays 0.1"
        in (tmp_path / "two/log.txt").read_text()
    )


def machines(master, log_dir, arguments):
    """Start the launchers of two machines, here both on this one, with a process each."""
    launchers = []
    for rank in (0, 1):
        one = command("tools/finetune.py", arguments, log_dir / str(rank))
        where = one["args"].index("--nproc_per_node")
        one["args"][where : where + 2] = [
            *("--master", master, "--nnodes", "2", "--rank", str(rank), "--nproc_per_node", "1"),
        ]
        launchers.append(subprocess.Popen(**{**one, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}))
    return launchers


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_two_machines_of_which_one_dies_go_on_where_they_were_saved(tmp_path, class_folders):
    settings = [
        *("data.dataset=folder", f"data.path={class_folders}", "data.train=train", "data.val=val"),
        *("data.val_fraction=null", "data.workers=0", "train.epochs=30", "train.batch_size=4"),
        *("train.save_minutes=0", "train.ema=0.9", "model.drop_rate=0.2", "augment.mixup=0.5"),
    ]
    arguments = ["-c", "digits", "-o", *settings, "--output"]
    launch("tools/finetune.py", [*arguments, tmp_path / "whole"], tmp_path / "log")
    launchers = machines(free_address(), tmp_path / "first", [*arguments, tmp_path / "run"])
    deadline = time.monotonic() + 120
    while len(run_state.files(tmp_path / "run")) < 2:
        assert all(process.poll() is None for process in launchers) and time.monotonic() < deadline
        time.sleep(0.01)
    pid = launchers[1].pid
    (worker,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    assert all(process.wait(60) for process in launchers)  # nobody waits for the dead one
    assert not (tmp_path / "run/result.json").exists()
    launchers = machines(free_address(), tmp_path / "second", [*arguments, tmp_path / "run", "--resume"])
    assert [process.wait(120) for process in launchers] == [0, 0]
    whole, run = (run_state.read(tmp_path / name) for name in ("whole", "run"))
    assert (run.run["epochs"], run.run["steps"]) == (whole.run["epochs"], whole.run["steps"]) == (30, 90)
    for name, value in whole.arrays.items():
        np.testing.assert_array_equal(run.arrays[name], value, err_msg=name)


def test_two_processes_stop_together_and_go_on(tmp_path, class_folders):
    """The launcher is told to end, tells both processes, and says so thrice."""
    settings = [
        *(
            "data.dataset=folder",
            f"data.path={class_folders}",
            "data.train=train",
            "data.val=val",
            "model.drop_rate=0.2",
        ),
        *("data.val_fraction=null", "data.workers=2", "train.epochs=40", "train.batch_size=4", "train.save_minutes=0"),
    ]
    arguments = ["-c", "digits", "-o", *settings, "--output"]
    launch("tools/finetune.py", [*arguments, tmp_path / "whole"], tmp_path / "log")
    process = subprocess.Popen(**command("tools/finetune.py", [*arguments, tmp_path / "run"], tmp_path / "log2"))
    deadline = time.monotonic() + 120
    while not run_state.files(tmp_path / "run"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    process.communicate(timeout=60)
    log = (tmp_path / "log2/workerlog.0").read_text()
    assert "saved in" in log and "Traceback" not in log, log
    assert 0 < run_state.read(tmp_path / "run").run["steps"] < 120
    launch("tools/finetune.py", [*arguments, tmp_path / "run", "--resume"], tmp_path / "log3")
    one, two = (run_state.read(tmp_path / name) for name in ("whole", "run"))
    for key in ("epochs", "steps", "best_epoch"):
        assert one.run[key] == two.run[key]
    # Batch-norm statistics are averaged at every save, in another order of roundings.
    for name, value in one.arrays.items():
        np.testing.assert_allclose(two.arrays[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
