"""What puts finished runs into weights/, tried in a copy of the project."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import ROOT, run, waves

from ppconvmixer import card, checkpoint, finetune, recipe, run_state
from ppconvmixer.average import average
from ppconvmixer.trained import Trained


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of what shipping reads and writes, with nothing in ``weights/``."""
    folder = tmp_path_factory.mktemp("project")
    for part in ("ppconvmixer", "tools"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "weights").mkdir()
    (folder / "tests/golden").mkdir(parents=True)
    return folder


def train(pictures, folder, *overrides, **more):
    """Two epochs; with ``more``, what goes on with such a run."""
    settings = [
        *("data.dataset=folder", f"data.path={pictures}", "data.train=train", "data.val=val", "data.val_fraction=null"),
        *("model.name=convmixer_tiny", "train.batch_size=8", "data.workers=0", "train.epochs=2", *overrides),
    ]
    finetune.finetune(recipe.load("digits", settings), Path(folder), **more)


def ship(project, *runs):
    command = [sys.executable, project / "tools/ship.py", "convmixer_tiny_made", "made pictures", *runs]
    return subprocess.run(command, capture_output=True, text=True)


def check_logits(project, target):
    """Those to be expected are the network's, on the pictures that ``test_weights`` judges by."""
    expected = np.load(project / "tests/golden/convmixer_tiny.npy")
    model = Trained(target).create()
    model.eval()
    with paddle.no_grad():
        found = model(paddle.to_tensor(waves())).numpy()
    assert expected.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_a_run_with_a_moving_average_ships_it_as_after_the_last_epoch(project, class_folders, tmp_path):
    moved, folder = tmp_path / "moved", tmp_path / "run"
    shutil.copytree(class_folders, moved)
    train(class_folders, folder, "train.ema=0.9")
    train(moved, folder, "train.ema=0.9", "train.epochs=3", resume=True, allow_changes=True)
    done = ship(project, folder)
    assert done.returncode == 0, done.stderr
    target, saved = project / "weights/convmixer_tiny_made.pdparams", run_state.read(folder)
    shipped = checkpoint.read(target)
    for name, value in shipped.items():
        np.testing.assert_array_equal(value, saved.arrays[f"ema/{name}"], err_msg=name)
    facts, metrics = card.read(target).facts, saved.run["ema_metrics"]
    assert facts["top1"] == metrics["top1"] and f"{100 * metrics['top1']:.2f} %" in done.stdout
    assert facts["epoch"] == 3 and facts["ema"] == 0.9 and facts["data"] == "made pictures"
    assert len(facts["curve"]["eval_ema/top1"]) == 3
    changes = [f"data.path: {class_folders.name} -> moved", "train.epochs: 2 -> 3"]
    assert facts["changed"] == [{"epochs": 2, "steps": 6, "changes": changes}]
    assert str(tmp_path.parent) not in json.dumps(facts)  # no folder of whoever trained it
    entry = json.loads((project / "ppconvmixer/manifest.json").read_text("utf-8"))["convmixer_tiny"]
    assert entry["shipped"] == target.name and entry["top1"] == metrics["top1"]
    assert "12 test pictures" in entry["source"]
    check_logits(project, target)


def test_of_several_runs_the_mean_is_shipped_and_measured(project, class_folders, tmp_path):
    runs = [tmp_path / "first", tmp_path / "second"]
    for seed, folder in enumerate(runs):
        train(class_folders, folder, f"train.seed={seed}")
    done = ship(project, *runs)
    assert done.returncode == 0, done.stderr
    target = project / "weights/convmixer_tiny_made.pdparams"
    shipped, mean = checkpoint.read(target), average([Trained(folder / "last.pdparams") for folder in runs])
    for name, value in mean.items():
        np.testing.assert_array_equal(shipped[name], value, err_msg=name)
    facts, result = card.read(target).facts, tmp_path / "result.json"
    assert [one["top1"] for one in facts["average_of"]] == [card.read(f / "last.pdparams").facts["top1"] for f in runs]
    assert run("eval", "--weights", target, "-c", runs[0] / "recipe.yaml", "--output", result) == 0
    assert facts["top1"] == json.loads(result.read_text())["top1"] and facts["samples"] == 12
    check_logits(project, target)


def test_a_run_under_way_is_refused(project, class_folders, tmp_path):
    train(class_folders, tmp_path)
    (tmp_path / "result.json").unlink()
    before = sorted(path.name for path in (project / "weights").iterdir())
    done = ship(project, tmp_path)
    assert done.returncode == 2 and "has not come to its end; go on with --resume" in done.stderr
    assert sorted(path.name for path in (project / "weights").iterdir()) == before
