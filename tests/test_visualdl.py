"""The curves, read back from the real VisualDL server through its HTTP interface."""

import json
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from ppconvmixer import checkpoint, curves, finetune, recipe, report
from ppconvmixer.records import Records


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def train(class_folders, folder, *more):
    """A run of three epochs of three steps."""
    own = [
        *("data.dataset=folder", f"data.path={class_folders}", "data.train=train", "data.val=val"),
        *("data.val_fraction=null", "train.epochs=3", "train.batch_size=8", "data.workers=0", *more),
    ]
    return finetune.finetune(recipe.load("digits", own), folder)


@pytest.fixture(scope="module")
def server(class_folders, tmp_path_factory):
    """A run behind a VisualDL server: (its result, a function that asks the server)."""
    folder = tmp_path_factory.mktemp("run") / "run"
    result = train(class_folders, folder, "train.histograms=2")
    port = free_port()
    command = "from visualdl.server.app import main; main()"
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            command,
            "--logdir",
            str(folder / "visualdl"),
            "--port",
            str(port),
            "--host",
            "127.0.0.1",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ask(path: str, **query: str):
        address = f"http://127.0.0.1:{port}/app/api/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.load(answer)["data"]

    deadline = time.monotonic() + 60
    while True:
        try:
            ask("scalar/tags")
            break
        except OSError:
            assert time.monotonic() < deadline and process.poll() is None, "the server does not answer"
            time.sleep(0.5)
    yield result, ask
    process.terminate()
    process.wait(10)


def test_every_curve_is_there_without_gap_or_double(server):
    result, ask = server
    answer = ask("scalar/tags")
    (run,), (tags,) = answer["runs"], answer["tags"]
    names = {
        *("train/loss", "train/top1", "train/learning_rate", "train/gradient_norm", "train/images_per_second"),
        *("eval/loss", "eval/top1", "eval/top5", "eval/images_per_second"),
        *("class accuracy/0 cat", "class accuracy/1 dog", "class accuracy/2 owl"),
    }
    assert names <= set(tags)
    for name in names:
        part, figure = name.split("/")
        steps = [row[1] for row in ask("scalar/list", run=run, tag=name)]
        by_epoch = part != "train" or figure == "images_per_second"
        assert steps == list(range(1, 4 if by_epoch else 10)), name
    evaluated = [row[2] for row in ask("scalar/list", run=run, tag="eval/top1")]
    assert max(evaluated) == pytest.approx(result["top1"], abs=1e-6)
    shares = [[row[2] for row in ask("scalar/list", run=run, tag=f"class accuracy/{name}")] for name in NAMES]
    assert np.mean(shares, axis=0) == pytest.approx(evaluated, abs=1e-6)  # four pictures of each


NAMES = ("0 cat", "1 dog", "2 owl")


def test_every_tag_is_of_one_kind(server):
    """VisualDL takes all records of a tag for what the first one is."""
    result, _ = server
    records = Records(Path(result["weights"]["path"]).parent / "visualdl" / curves.FILE).read()
    tags = [tag for kind in (records.curves, *records.others.values()) for tag in kind]
    assert len(tags) == len(set(tags)) > 30


def steps(ask, kind, run, tag):
    return [row["step"] for row in ask(f"{kind}/list", run=run, tag=tag)]


def test_pictures_and_texts(server):
    result, ask = server
    (run,), (tags,) = ask("image/tags").values()
    assert set(tags) == {"train/augmented pictures", "eval/confusion"}
    assert steps(ask, "image", run, "eval/confusion") == [1, 2, 3]
    (run,), (tags,) = ask("text/tags").values()
    assert set(tags) == {"recipe", report.CONFUSION}
    assert steps(ask, "text", run, report.CONFUSION)[-1] == result["best_epoch"]


def test_histograms_of_weights_and_activations(server):
    _, ask = server
    (run,), (tags,) = ask("histogram/tags").values()
    kernels = [f"blocks.{i}.{part}.weight" for i in range(4) for part in ("0.fn.0", "1")]
    blocks = [f"blocks.{i}" for i in range(4)]
    wanted = [f"weights/{n}" for n in ("stem.0.weight", *kernels, "head.weight")]
    assert set(tags) == {*wanted, *(f"activations/{n}" for n in ("stem", *blocks))}
    for tag in tags:
        rows = ask("histogram/list", run=run, tag=tag)
        assert [step for _, step, _ in rows] == [2, 3], tag  # every second epoch, and the last
        bins = rows[0][2]
        assert len(bins) == 30, tag
        count = sum(row[2] for row in bins)
        assert count == {"weights/stem.0.weight": 64 * 48, "activations/stem": 8 * 64 * 8 * 8}.get(tag, count)


def test_precision_and_recall(server):
    _, ask = server
    (run,), (tags,) = ask("pr-curve/tags").values()
    assert set(tags) == {f"precision and recall/{name}" for name in NAMES}
    rows = ask("pr-curve/list", run=run, tag="precision and recall/1 dog")
    assert [row[1] for row in rows] == [1, 2, 3]
    _, _, precision, recall, tp, fp, tn, fn, thresholds = rows[-1]
    assert {a + b + c + d for a, b, c, d in zip(tp, fp, tn, fn)} == {12}
    assert {a + d for a, d in zip(tp, fn)} == {4} and thresholds[0] == 0.02
    assert recall == pytest.approx([a / 4 for a in tp]) and all(0 <= p <= 1 for p in precision)


def test_hyper_parameters_with_the_last_metrics(server):
    _, ask = server
    ((run, found, metrics),) = [row.values() for row in ask("hparams/list")]
    assert found["optimizer/lr"] == pytest.approx(0.02) and found["train/batch_size"] == 8
    assert found["optimizer/name"] == "adamw" and "model/weights" not in found
    last = {name: ask("scalar/list", run=run, tag=name)[-1][2] for name in ("eval/top1", "eval/loss")}
    assert metrics == last


def test_the_graph_of_the_network(server):
    _, ask = server
    (run,) = ask("graph_runs")
    top = ask("graph/graph", run=run)
    assert [node["name"] for node in top["nodes"]] == ["/stem", "/blocks", "/mean", "/head"]
    chain = ["/images:out", *(node["outputs"][0]["arguments"][0]["name"] for node in top["nodes"])]
    for node, name in zip(top["nodes"], chain):
        assert name in [argument["name"] for argument in node["inputs"][0]["arguments"]]
    whole = ask("graph/graph", run=run, expand_all="true")["nodes"]
    kinds = [node["type"] for node in whole]
    assert kinds.count("Conv2D") == 9 and kinds.count("BatchNorm2D") == 9 and kinds.count("add") == 4
    made = {output["arguments"][0]["name"] for node in whole for output in node["outputs"]} | {"/images:out"}
    for node in whole:
        for part in node["inputs"]:
            assert all(a["name"] in made or a["initializer"] for a in part["arguments"])


def test_the_operator_is_used_again_after_the_activations(class_folders, tmp_path, monkeypatch):
    from ppconvmixer.ops import mixer

    found = []
    original = curves.Histograms.on_epoch_end

    def watch(self, epoch, logs=None):
        training = [layer.training for layer in self.model.network.sublayers()]
        original(self, epoch, logs)
        found.append(mixer.known(self.model.network) == (mixer.library() is not None))
        assert [layer.training for layer in self.model.network.sublayers()] == training

    monkeypatch.setattr(curves.Histograms, "on_epoch_end", watch)
    train(class_folders, tmp_path / "run", "train.epochs=1", "train.histograms=1")
    assert found == [True]


def test_histograms_change_nothing_of_the_result(class_folders, tmp_path):
    found = []
    for every in (0, 1):
        folder = tmp_path / str(every)
        train(class_folders, folder, f"train.histograms={every}")
        found.append(checkpoint.read(folder / "last.pdparams"))
        drawn = "histogram" in Records(folder / "visualdl" / curves.FILE).read().others
        assert drawn == bool(every)
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], value)
