"""Graphs in 8 bits."""

import re

import numpy as np
import pytest
from conftest import refused, run

from ppconvmixer import engines, export
from ppconvmixer.exported import Exported
from ppconvmixer.trained import Trained
from ppconvmixer.zoo import CIFAR10

pytest.importorskip("onnx")
SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}


@pytest.fixture(params=SUFFIX)
def form(request):
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[request.param])
    return request.param


def size(target):
    """Return the bytes of the file with the weights."""
    return export.files(target)[0].stat().st_size


def test_weights_in_8_bits(form, tmp_path, tiny_weights):
    """A quarter of the numbers; the logits are those of the rounded weights, computed in float32."""
    target = tmp_path / f"a{SUFFIX[form]}"
    assert run("export", "--weights", tiny_weights, "--format", form, "--int8", target) == 0
    model = Trained(tiny_weights).create()
    weights = 0
    for parameter in model.parameters():
        value = parameter.numpy()
        if value.ndim < 4:
            continue
        weights += value.size
        scale = np.abs(value).max(axis=(1, 2, 3), keepdims=True) / 127
        parameter.set_value(np.rint(value / scale) * scale)
    images = export.photographs(CIFAR10)
    expected = engines.Dygraph(model)(images)
    found = Exported(target).engine("auto")(images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    whole = tmp_path / f"b{SUFFIX[form]}"
    run("export", "--weights", tiny_weights, "--format", form, whole)
    assert size(whole) - size(target) > 2.5 * weights  # of the four bytes a weight, less scales


@pytest.mark.parametrize("pixels", [(), ("--pixels",)], ids=["input", "pixels"])
def test_maps_in_8_bits(form, pixels, tmp_path, tiny_weights, class_folders, capsys):
    pytest.importorskip("nncf")
    target = tmp_path / f"a{SUFFIX[form]}"
    command = ("export", "--weights", tiny_weights, "--format", form, "--int8", "--limit", 12, *pixels, target)
    assert run(*command, "--calibrate", class_folders / "train") == 0
    captured = capsys.readouterr()
    assert "verified with" in captured.out and len(captured.out.splitlines()) == 1
    same = int(re.search(r"; (\d) of 3 pictures have the same", captured.out)[1])  # every fourth of 12
    assert ("of 3 pictures held back" in captured.err) == (same < 3)
    quantised = Exported(target)
    assert quantised.pixels == bool(pixels) and quantised.classes == ("cat", "dog", "owl")
    images = export.photographs(CIFAR10)
    exact, found = Trained(tiny_weights).engine("dygraph")(images), quantised.engine("auto")(images)
    off = (found - found.mean(axis=1, keepdims=True)) - (exact - exact.mean(axis=1, keepdims=True))
    assert np.abs(off).max() > 1e-4 * np.abs(exact).max()  # it is not float32
    text = target.read_bytes()
    assert b"QuantizeLinear" in text or b"FakeQuantize" in text
    assert run("eval", "--model", target, "--data", class_folders / "val", "--workers", 0) == 0


def test_what_costs_too_much_goes_back(tmp_path, tiny_weights, class_folders, monkeypatch):
    """Of pictures whose classes nearly tie, 8 bits lose some; with no loss allowed, operations stay in float32 for them."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    nncf = pytest.importorskip("nncf")
    from ppconvmixer import onnx_file, quantize

    monkeypatch.setattr(quantize, "AGREEMENT", 1.0)
    model = Trained(tiny_weights).create()
    images = np.random.default_rng(0).standard_normal((24, 3, 32, 32)).astype(np.float32)
    logits = engines.Dygraph(model)(images)
    model.head.bias.set_value(model.head.bias.numpy() - logits.mean(axis=0))

    def open_graph(graph):
        session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"images": x})[0]

    graph = onnx.load_from_string(onnx_file.to_onnx(model, 32))
    wanted = open_graph(graph)(images).argmax(axis=1)
    assert len(set(wanted.tolist())) == 3
    known = nncf.Dataset([{"images": image[None]} for image in images])
    plain = nncf.quantize(graph, known, preset=nncf.QuantizationPreset.MIXED, subset_size=len(images))
    if (open_graph(plain)(images).argmax(axis=1) == wanted).all():
        pytest.skip("8 bits lose nothing here, by the arithmetic of this processor")
    found = quantize.quantize(graph, images, open_graph)
    assert (open_graph(found)(images).argmax(axis=1) == wanted).all()

    def in_8_bits(graph):
        return sum(node.op_type == "QuantizeLinear" for node in graph.graph.node)

    assert in_8_bits(found) < in_8_bits(plain)


def test_mistakes(tmp_path, tiny_weights, class_folders, capsys):
    pytest.importorskip("onnxruntime")
    good = ("export", "--weights", tiny_weights, "--format", "onnx", tmp_path / "a.onnx")
    assert "no effect without --int8" in refused(capsys, *good, "--calibrate", class_folders)
    assert "--limit has no effect without" in refused(capsys, *good, "--int8", "--limit", 8)
    assert "nothing at" in refused(capsys, *good, "--int8", "--calibrate", tmp_path / "nowhere")
    paddle = ("export", "--weights", tiny_weights, "--format", "paddle", "--int8", tmp_path / "a.json")
    assert "32 bits" in refused(capsys, *paddle)
    assert not list(tmp_path.iterdir())
