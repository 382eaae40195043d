"""The curves, read back from the real VisualDL server through its HTTP interface."""

import json
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import pytest

from ppconvmixer import finetune, recipe


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def server(class_folders, tmp_path_factory):
    """A run of three epochs behind a VisualDL server: (its result, a function that asks the server)."""
    own = [
        *("data.dataset=folder", f"data.path={class_folders}", "data.train=train", "data.val=val"),
        *("data.val_fraction=null", "train.epochs=3", "train.batch_size=8", "data.workers=0"),
    ]
    folder = tmp_path_factory.mktemp("run") / "run"
    result = finetune.finetune(recipe.load("digits", own), folder)
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
        *("train/loss", "train/top1", "train/learning_rate", "train/images_per_second"),
        *("eval/loss", "eval/top1", "eval/top5", "eval/images_per_second"),
    }
    assert names <= set(tags)
    for name in names:
        part, figure = name.split("/")
        steps = [row[1] for row in ask("scalar/list", run=run, tag=name)]
        by_epoch = part == "eval" or figure == "images_per_second"
        assert steps == list(range(1, 4 if by_epoch else 10)), name
    evaluated = [row[2] for row in ask("scalar/list", run=run, tag="eval/top1")]
    assert max(evaluated) == pytest.approx(result["top1"], abs=1e-6)
