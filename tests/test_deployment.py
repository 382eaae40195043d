"""The report on a checkpoint in many forms."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from conftest import refused, run

from ppconvmixer import UserError, card, deployment, deployment_page, engines, export, recipe, zoo
from ppconvmixer.trained import Trained


def judged(weights, folders):
    """The command that judges by one part and fits on the other, without a recipe."""
    return ("report", "--weights", weights, "--data", folders / "val", "--calibrate", folders / "train")


@pytest.fixture(scope="module")
def reported(tiny_weights, class_folders, tmp_path_factory):
    """The folder of a report, with pruned networks trained on for an epoch."""
    folder = tmp_path_factory.mktemp("report")
    settings = folder / "recipe.yaml"
    settings.write_text(
        """
model: {name: convmixer_tiny}
data: {dataset: folder, path: to be said, train: train, val: val, workers: 0}
optimizer: {name: adamw, lr: 0.01}
train: {epochs: 3, batch_size: 8}
"""
    )
    command = ("report", "--weights", tiny_weights, "-c", settings, "--epochs", 1, "--rounds", 1, "--output", folder)
    command += ("-o", f"data.path={class_folders}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deployment, "WIDTHS", (0.5,))
        patch.setattr(deployment, "SPARSITIES", (0.3, 0.9))
        assert run(*command) == 0
    return folder


@pytest.fixture(scope="module")
def report(reported):
    return json.loads((reported / "report.json").read_text())


def test_every_form_is_there_with_its_figures(report):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    forms = {form["form"]: form for form in report["forms"]}
    for name in ("float32", "float32, ONNX Runtime", "float32, OpenVINO", "weights in 8 bits, OpenVINO", "30% zeros"):
        assert name in forms
    for form in forms.values():
        assert form["samples"] == 12 and 0 <= form["top1"] <= 1 and form["bytes"] > 10_000
        fast = form["kind"] != "sparse"
        assert bool(form["latency_ms"]) == bool(form["images_per_second"]) == bool(form["peak_mb"]) == fast
    whole, other = forms["float32"], forms["float32, ONNX Runtime"]
    assert 50 < other["peak_mb"] < whole["peak_mb"] - 50  # who needs no Paddle has none in its process
    exact = [form for form in forms.values() if form["kind"] == "float32"]
    assert all(form["agreement"] == 1 and form["top1"] == exact[0]["top1"] for form in exact)


def test_what_is_smaller_is_said_to_be(report):
    forms = {form["form"]: form for form in report["forms"]}
    whole, narrow = forms["float32"], forms["32 channels"]
    assert narrow["parameters"] < 0.5 * whole["parameters"] and narrow["macs"] < 0.5 * whole["macs"]
    assert narrow["bytes"] < 0.5 * whole["bytes"] and whole["parameters"] == 27_779
    for share in (30, 90):
        for name in (f"{share}% zeros", f"{share}% zeros, trained on"):
            assert forms[name]["sparsity"] == pytest.approx(share / 100, abs=1e-3)


def test_training_on_is_not_repeated(report, reported, tmp_path, class_folders):
    (folder,) = reported.glob("forms-*")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/last.pdparams")}
    assert len(before) == sum(form["tuned"] for form in report["forms"]) == 3

    def train(epochs, run):
        made = recipe.load(run / "recipe.yaml")
        data = [f"data.path={class_folders}"]
        how = deployment.trained_on(recipe.load(reported / "recipe.yaml", data), epochs)
        return how(Path(made.model.weights), made.model.name, made.finetune.keep_zeros, run)

    for path in before:
        assert train(1, path.parent) == path and path.stat().st_mtime_ns == before[path]
    other = shutil.copytree(path.parent, tmp_path / "run")
    train(2, other)
    assert json.loads((other / "result.json").read_text())["epochs"] == 2  # of other settings: another run
    (other / "pictures.csv").write_text("of other pictures")
    assert not deployment._is_run_of(other, recipe.load(other / "recipe.yaml"))


def test_a_checkpoint_without_a_card_is_known_by_the_name_given(tiny_weights, tmp_path):
    bare = tmp_path / "bare.pdparams"
    bare.write_bytes(tiny_weights.read_bytes())
    network = Trained(bare, "convmixer_tiny")
    form = next(deployment.make(deployment.Material(network, np.zeros((2, 3, 32, 32), np.float32), None), tmp_path))
    assert form.network().name == "convmixer_tiny" and deployment._size(form, form.network())["parameters"] == 27_779


def test_narrow_forms_have_whole_vectors_and_each_width_once(monkeypatch, tmp_path):
    monkeypatch.setattr(deployment.prune, "narrow", lambda model, dim, images: model)
    monkeypatch.setattr(deployment.prune, "write", lambda *_: None)
    for dim, widths in ((1536, [1344, 1152, 768]), (128, [112, 96, 64]), (96, [80, 64, 48]), (24, [16])):
        network = SimpleNamespace(name=f"convmixer_{dim}_2_ks3_p2", create=lambda: paddle.nn.Linear(1, 1))
        forms = deployment._narrow(deployment.Material(network, np.zeros((2, 3, 4, 4)), None), tmp_path)
        assert [zoo.variant(form.model).dim for form in forms] == widths


def test_what_nothing_here_runs_is_left_out(tiny_weights, tmp_path, monkeypatch, caplog):
    pytest.importorskip("openvino")
    installed = engines._installed
    monkeypatch.setattr(engines, "_installed", lambda package: package != "onnxruntime" and installed(package))
    material = deployment.Material(Trained(tiny_weights), np.zeros((2, 3, 32, 32), np.float32), None)
    monkeypatch.setattr(deployment, "_narrow", lambda *_: ())
    monkeypatch.setattr(deployment, "_sparse", lambda *_: ())
    monkeypatch.setattr(export, "quantize", lambda graph, *_: graph)
    forms = list(deployment.make(material, tmp_path))
    assert "openvino" in {form.engine for form in forms} and "onnxruntime" not in {form.engine for form in forms}
    assert "left out: what ONNX Runtime runs; pip install onnxruntime" in caplog.text


def test_pruned_networks_are_trained_for_the_input_they_are_judged_by(
    class_folders, tiny_weights, tmp_path, monkeypatch
):
    from ppconvmixer import finetune

    runs = []
    monkeypatch.setattr(finetune, "finetune", lambda tuned, folder, **_: runs.append(tuned))
    path = tmp_path / "a.pdparams"
    path.write_bytes(tiny_weights.read_bytes())
    card.write(path, card.Card("convmixer_tiny", {"size": 36, "crop_pct": 0.875}))
    data = ["data.dataset=folder", f"data.path={class_folders}", "data.train=train", "data.val=val"]
    train = deployment.trained_on(recipe.load("digits", [*data, "data.val_fraction=null", "input.size=32"]), 2)
    assert train(path, "convmixer_tiny", True, tmp_path / "run") == tmp_path / "run/last.pdparams"
    (tuned,) = runs
    assert (tuned.input_spec().size, tuned.input_spec().crop_pct) == (36, 0.875)
    assert tuned.train.epochs == 2 and tuned.finetune.keep_zeros and tuned.optimizer.lr == pytest.approx(0.002)


def test_some_are_judged_from_all_over(class_folders, tiny_weights, tmp_path, monkeypatch):
    seen = []

    def measure(material, folder, rounds):
        seen.append(material.samples.pictures.labels.tolist())
        raise UserError("enough")

    monkeypatch.setattr(deployment, "measure", measure)
    given = judged(tiny_weights, class_folders)
    assert run(*given, "--limit", 3, "--output", tmp_path / "r") == 2
    assert seen == [[0, 1, 2]]


def test_no_other_report_is_replaced(tmp_path, tiny_weights, class_folders, capsys):
    command = judged(tiny_weights, class_folders)
    (tmp_path / "latency.png").write_text("a picture of the user's")
    assert "is of something else" in refused(capsys, *command, "--output", tmp_path)
    (tmp_path / "report.html").write_text("of a training run")
    assert "is of something else" in refused(capsys, *command, "--output", tmp_path)
    (tmp_path / "report.json").write_text('{"weights": {"sha256": "0"}}')
    assert "is of something else" in refused(capsys, *command, "--output", tmp_path)
    assert (tmp_path / "latency.png").read_text() == "a picture of the user's"
    assert (tmp_path / "report.html").read_text() == "of a training run"


def test_the_pages_show_every_form(report, reported):
    text, page = ((reported / f"report.{suffix}").read_text() for suffix in ("md", "html"))
    for form in report["forms"]:
        assert f"| {form['form']} |" in text and f"<td>{form['form']}</td>" in page
    for name in re.findall(r"\]\((\w+\.png)\)", text):
        assert (reported / name).read_bytes().startswith(b"\x89PNG")
    assert page.count("data:image/png;base64,") == 2
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_the_fastest_form_is_named_for_each_loss():
    def form(name, ms, top1):
        return {"form": name, "latency_ms": ms, "top1": top1}

    forms = [form("whole", 10.0, 0.9), form("half", 5.0, 0.896), form("tenth", 1.0, 0.5), form("zeros", None, 0.9)]
    told = deployment_page._fastest(forms)
    assert ["whole, 1.00 times" in told[0], "half, 2.00 times" in told[1], "half, 2.00 times" in told[2]] == [True] * 3


def test_mistakes(tmp_path, tiny_weights, class_folders, capsys):
    good = ("report", "--weights", tiny_weights, "--output", tmp_path / "out")
    data = ("--data", class_folders / "val")
    assert "--calibrate is missing" in refused(capsys, *good, *data)
    assert "leave --data and --calibrate out" in refused(capsys, *good, "-c", "digits", *data)
    assert "--epochs needs a recipe" in refused(
        capsys, *good, *data, "--calibrate", class_folders / "train", "--epochs", 1
    )
    assert "-o needs a recipe" in refused(
        capsys, *good, *data, "--calibrate", class_folders / "train", "-o", "train.seed=1"
    )
    assert "--data is missing" in refused(capsys, *good, "--calibrate", class_folders)
    assert "fit on others" in refused(capsys, *good, *data, "--calibrate", class_folders)
    (tmp_path / "file").write_text("")
    into = (
        "report",
        "--weights",
        tiny_weights,
        *data,
        "--calibrate",
        class_folders / "train",
        "--output",
        tmp_path / "file/x",
    )
    assert "cannot write to" in refused(capsys, *into)
    assert not (tmp_path / "out").exists()


def test_photographs_and_shares_are_numbers(report):
    assert all(np.isfinite(form["loss"]) for form in report["forms"])
