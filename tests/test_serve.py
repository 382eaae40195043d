"""The network behind HTTP."""

import contextlib
import io
import itertools
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import pytest
import requests
from conftest import picture

from ppconvmixer import cli, export, serve
from ppconvmixer.exported import Exported
from ppconvmixer.trained import Trained
from ppconvmixer.transforms import decode, eval_transform

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")


@contextlib.contextmanager
def running(app):
    """Run ``app`` on a free port of this machine; give its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def network(tiny_weights):
    return Trained(tiny_weights)


@pytest.fixture(scope="module")
def address(network):
    with running(serve.create_app(network, "dygraph")) as address:
        yield address


def png(seed):
    data = io.BytesIO()
    picture(seed).save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize("kind", ["dygraph", "auto", "exported"])
def test_under_load_every_answer_is_that_of_its_own_picture(network, kind, tmp_path):
    served = network
    if kind == "exported":
        pytest.importorskip("onnxruntime")
        export.export(network, tmp_path / "a.onnx", export.Form("onnx"))
        served = Exported(tmp_path / "a.onnx")
    engine, transform = network.engine("dygraph"), eval_transform(network.input)
    contents = [png(seed) for seed in range(16)]
    logits = engine(np.stack([transform(decode(content)) for content in contents]))
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)

    def ask(number):
        answer = requests.post(f"{address}/predict", data=contents[number % 16], timeout=60)
        return number % 16, answer.status_code, answer.json()

    app = serve.create_app(served, "auto" if kind == "exported" else kind)
    with running(app) as address, ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(ask, range(200)))
        assert requests.get(f"{address}/health", timeout=60).json()["status"] == "ok"
    assert len(answers) == 200
    for number, status, answer in answers:
        assert status == 200 and answer["model"] == "convmixer_tiny"
        found = {each["class"]: each["probability"] for each in answer["classes"]}
        np.testing.assert_allclose([found[i] for i in range(3)], expected[number], rtol=0, atol=1e-5)
        assert [each["name"] for each in answer["classes"]] == [
            network.classes[i] for i in np.argsort(-expected[number], kind="stable")
        ]


@pytest.mark.parametrize("content", [b"", b"no picture", png(0)[:-200]], ids=["empty", "text", "cut off"])
def test_what_is_no_picture_is_refused(address, content):
    answer = requests.post(f"{address}/predict", data=content, timeout=60)
    assert answer.status_code == 400 and answer.json()["error"]


def test_what_is_too_long_is_refused_whatever_it_says_of_its_length(address, monkeypatch):
    monkeypatch.setattr(serve, "MAX_BYTES", 10_000)
    assert requests.post(f"{address}/predict", data=bytes(10_001), timeout=60).status_code == 413
    chunks = (bytes(1000) for _ in range(11))
    assert requests.post(f"{address}/predict", data=chunks, timeout=60).status_code == 413
    assert requests.get(f"{address}/health", timeout=60).status_code == 200


def test_too_many_at_once_are_told_to_come_again(network, monkeypatch):
    monkeypatch.setattr(serve, "MAX_WAITING", 2)
    entered, go_on = threading.Event(), threading.Event()

    class Slow:
        name = "slow"

        def __call__(self, images):
            entered.set()
            go_on.wait(60)
            return np.zeros((1, 3), np.float32)

    monkeypatch.setattr(network, "engine", lambda name: Slow())
    with running(serve.create_app(network)) as address, ThreadPoolExecutor(6) as clients:

        def ask(_):
            return requests.post(f"{address}/predict", data=png(0), timeout=60)

        first = clients.submit(ask, 0)
        assert entered.wait(60)
        others = [clients.submit(ask, i) for i in range(5)]
        refused = [f.result() for f in itertools.islice(as_completed(others, timeout=60), 3)]
        assert [each.status_code for each in refused] == [503] * 3
        assert refused[0].headers["Retry-After"] == "1" and "wait already" in refused[0].json()["error"]
        go_on.set()
        codes = sorted(f.result().status_code for f in [first, *others])
    assert codes == [200, 200, 200, 503, 503, 503]


def test_a_picture_that_does_not_arrive_is_given_up(network, monkeypatch):
    monkeypatch.setattr(serve, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(serve, "MAX_WAITING", 0)  # one at a time
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    with running(serve.create_app(network, "dygraph")) as address:
        host, port = address.rsplit("/", 1)[1].split(":")
        with socket.create_connection((host, int(port)), 60) as slow:
            slow.sendall(head + b"a few bytes")
            assert b" 408 " in slow.recv(1000).split(b"\r\n")[0]
        monkeypatch.setattr(serve, "MAX_SECONDS", 60)
        after = requests.post(f"{address}/predict", data=png(0), timeout=60)
        assert after.status_code == 200  # its place is free again


def test_a_client_that_goes_away_is_no_error_of_the_server(network):
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    with running(serve.create_app(network, "dygraph")) as address:
        logging.getLogger("uvicorn.error").addHandler(handler)
        try:
            host, port = address.rsplit("/", 1)[1].split(":")
            with socket.create_connection((host, int(port)), 60) as gone:
                gone.sendall(head + b"a few bytes")
                time.sleep(0.2)  # they are being read
            assert requests.post(f"{address}/predict", data=png(0), timeout=60).status_code == 200
        finally:
            logging.getLogger("uvicorn.error").removeHandler(handler)
    assert said == []


def test_the_command_serves_until_ctrl_c(tiny_weights):
    command = [sys.executable, "-m", "ppconvmixer", "serve", "--weights", tiny_weights, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline()
            address = line.split()[0]
            assert "takes pictures; stop with Ctrl-C" in line
            answer = requests.post(address, data=png(0), timeout=60)
            assert answer.status_code == 200 and answer.json()["model"] == "convmixer_tiny"
        finally:
            server.send_signal(signal.SIGINT)
            _, told = server.communicate(timeout=60)
        assert "Traceback" not in told


def test_other_routes_and_methods(address):
    assert requests.get(f"{address}/predict", timeout=60).status_code == 405
    assert requests.get(f"{address}/nothing", timeout=60).status_code == 404


def test_mistakes_of_the_command(capsys, tiny_weights):
    with pytest.raises(SystemExit) as stop:
        cli.main(["serve", "--weights", str(tiny_weights), "--tta"])
    assert stop.value.code == 2 and "--tta" in capsys.readouterr().err
    assert (
        cli.main(["serve", "--weights", str(tiny_weights), "--engine", "dygraph", "--host", "no.such.host.invalid"])
        == 2
    )
    assert "cannot listen" in capsys.readouterr().err
    for host, message in (("ä..b", "cannot listen"), ("", "--host is empty")):
        assert cli.main(["serve", "--weights", str(tiny_weights), "--engine", "dygraph", "--host", host]) == 2
        assert message in capsys.readouterr().err
