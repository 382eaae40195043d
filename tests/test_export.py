"""An export is read back as the network it was."""

import importlib.metadata
import json
import os
import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT, random_state, refused, run
from PIL import Image

from ppconvmixer import card, checkpoint, engines, export, onnx_file, zoo
from ppconvmixer.errors import UserError
from ppconvmixer.exported import Exported
from ppconvmixer.files import sha256
from ppconvmixer.trained import Trained

OWN = ".pdmodel" if paddle.__version__.startswith("2.") else ".json"
PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}
SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "paddle": OWN}


@pytest.fixture(params=SUFFIX)
def form(request):
    for package in PACKAGES.get(request.param, ()):
        pytest.importorskip(package)
    return request.param


def failure(capsys, *arguments):
    (line,) = refused(capsys, *arguments).splitlines()
    return line


def logits(folder, pictures, *network):
    assert run("eval", *network, "--data", pictures / "val", "--logits", folder / "l.npy", "--workers", 0) == 0
    return np.load(folder / "l.npy")


def log_softmax(values):
    return values - np.log(np.exp(values.astype(np.float64)).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("more", [(), ("--pixels",), ("--any-size",), ("--pixels", "--any-size")], ids=" ".join)
def test_eval_of_an_export_is_eval_of_the_checkpoint(form, more, tmp_path, tiny_weights, class_folders, capsys):
    target = tmp_path / f"made{SUFFIX[form]}"
    assert run("export", "--weights", tiny_weights, "--format", form, target, *more) == 0
    assert "verified with" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in export.files(target)}
    expected = logits(tmp_path, class_folders, "--weights", tiny_weights)
    for engine in engines.runners(target):
        found = logits(tmp_path, class_folders, "--model", target, "--engine", engine)
        if "--pixels" in more:
            found, expected = log_softmax(found), log_softmax(expected)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_predict_names_the_classes_of_an_export(tmp_path, tiny_weights, class_folders, capsys):
    pytest.importorskip("onnxruntime")
    run("export", "--weights", tiny_weights, "--format", "onnx", tmp_path / "a.onnx")
    picture = class_folders / "val/cat/cat 0.png"
    capsys.readouterr()
    told = []
    for network in (("--weights", tiny_weights), ("--model", tmp_path / "a.onnx")):
        assert run("predict", *network, picture) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] and "owl" in told[0]


def test_the_card_travels_with_the_file(form, tmp_path, tiny_weights):
    target = tmp_path / f"made{SUFFIX[form]}"
    run("export", "--weights", tiny_weights, "--format", form, "--pixels", target)
    found = Exported(target)
    assert found.checkpoint == sha256(tiny_weights)
    assert (found.name, found.classes, found.num_classes, found.pixels) == (
        *("convmixer_tiny", ("cat", "dog", "owl")),
        *(3, True),
    )
    assert found.input == zoo.CIFAR10


def test_what_a_file_says_of_its_origin(tmp_path, tiny_weights):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    run("export", "--weights", tiny_weights, "--format", "onnx", tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(model, full_check=True)
    about = json.loads({entry.key: entry.value for entry in model.metadata_props}[onnx_file.METADATA])
    assert about["sha256"] == sha256(tiny_weights)
    assert {"ppconvmixer", "paddle", "onnx"} <= set(about["facts"]["versions"])


def test_sizes_are_fixed_unless_left_open(tmp_path, tiny_weights):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    for more, sides in (((), [32, 32]), (("--any-size",), ["height", "width"])):
        run("export", "--weights", tiny_weights, "--format", "onnx", tmp_path / "a.onnx", "--overwrite", *more)
        (image,) = onnx.load(tmp_path / "a.onnx").graph.input
        shape = [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim]
        assert shape == ["n", 3, *sides]


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_half_the_bits(form, tmp_path, tiny_weights):
    for package in PACKAGES[form]:
        pytest.importorskip(package)
    sizes = []
    for more in ((), ("--half",)):
        target = tmp_path / f"made{len(more)}{SUFFIX[form]}"
        assert run("export", "--weights", tiny_weights, "--format", form, target, *more) == 0
        sizes.append(export.files(target)[0].stat().st_size)
    assert sizes[1] < 0.65 * sizes[0]  # the graph itself stays


def test_a_file_that_computes_something_else_is_not_written(tmp_path, tiny_weights, monkeypatch):
    pytest.importorskip("onnxruntime")
    original = export.to_onnx

    def wrong(model, *arguments):
        model.head.bias.set_value(model.head.bias + 0.1)
        content = original(model, *arguments)
        model.head.bias.set_value(model.head.bias - 0.1)
        return content

    monkeypatch.setattr(export, "to_onnx", wrong)
    target = tmp_path / "a.onnx"
    target.write_text("of yesterday")
    with pytest.raises(UserError, match="was not written: .* makes something else of it"):
        export.export(Trained(tiny_weights), target, export.Form("onnx"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"] and target.read_text() == "of yesterday"


@pytest.mark.parametrize("bits", [32, 16, 8])
@pytest.mark.parametrize("pixels", [False, True])
def test_a_file_that_always_says_the_same_is_not_written(bits, pixels, tmp_path, tiny_weights, monkeypatch):
    pytest.importorskip("onnxruntime")
    original = export.to_onnx

    def wrong(model, *arguments):
        weight = model.head.weight.numpy()
        model.head.weight.set_value(0 * weight)
        content = original(model, *arguments)
        model.head.weight.set_value(weight)
        return content

    monkeypatch.setattr(export, "to_onnx", wrong)
    with pytest.raises(UserError, match="was not written: .* makes something else of it"):
        export.export(Trained(tiny_weights), tmp_path / "a.onnx", export.Form("onnx", pixels=pixels, bits=bits))


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_missing_package_is_named(kind, tmp_path, tiny_weights, capsys, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    target = tmp_path / f"a{export.SUFFIXES[kind][0]}"
    assert "pip install onnx" in refused(capsys, "export", "--weights", tiny_weights, "--format", kind, target)


def test_mistakes(tmp_path, tiny_weights, class_folders, capsys):
    pytest.importorskip("onnxruntime")
    target = tmp_path / "a.onnx"
    good = ("export", "--weights", tiny_weights, "--format", "onnx", target)
    assert "file ending in .onnx" in failure(capsys, *good[:-1], tmp_path / "a.xml")
    assert "--weights is missing" in failure(capsys, "export", "--format", "onnx", target)
    assert run(*good) == 0
    capsys.readouterr()
    assert "exists" in failure(capsys, *good)
    assert run(*good, "--overwrite") == 0
    capsys.readouterr()
    other = tmp_path / ("b.json" if OWN == ".pdmodel" else "b.pdmodel")
    assert f"writes {OWN}" in failure(capsys, "export", "--weights", tiny_weights, "--format", "paddle", other)
    half = ("export", "--weights", tiny_weights, "--format", "paddle", "--half", tmp_path / f"c{OWN}")
    assert "keeps its weights in 32 bits" in failure(capsys, *half)
    read = ("eval", "--data", class_folders / "val", "--model")
    assert "leave --weights out" in failure(capsys, *read, target, "--weights", tiny_weights)
    assert "no file" in failure(capsys, *read, tmp_path / "no.onnx")
    assert "does not run" in failure(capsys, *read, target, "--engine", "inference")
    assert "does not take 40 x 40" in failure(capsys, *read, target, "--tta", "1,1.25")


def test_files_that_are_no_export(tmp_path, tiny_weights, class_folders, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    read = ("eval", "--data", class_folders / "val", "--model")
    path = tmp_path / "a.onnx"
    path.write_bytes(b"no graph")
    assert "cannot read the graph" in failure(capsys, *read, path)
    path.write_bytes(onnx_file.to_onnx(Trained(tiny_weights).create()))
    assert "was not made by ppconvmixer export" in failure(capsys, *read, path)
    card_of_it = {"model": "convmixer_tiny", "facts": {"classes": 3, "pixels": False}}
    for change, message in (
        ({"facts": {"classes": 3}}, "pixels"),
        ({"facts": {"classes": "3", "pixels": False}}, "a fact is of the wrong kind"),
        ({"model": "resnet"}, "unknown model"),
        ({"classes": ["a"]}, "3 classes, but 1 names"),
        ({"input": {"size": -1}}, "size -1"),
    ):
        text = json.dumps(card_of_it | change)
        path.write_bytes(onnx_file.to_onnx(Trained(tiny_weights).create(), card=text))
        assert message in failure(capsys, *read, path), message
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {onnx_file.METADATA: "[" * 10_000})
    onnx.save(model, path)
    assert "makes no sense" in failure(capsys, *read, path)
    (tmp_path / f"b{OWN}").write_text("{}")
    assert "cannot read the card" in failure(capsys, *read, tmp_path / f"b{OWN}")


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"facts": {"classes": 4, "pixels": False}},
            "makes float32 [1, 3] of 1 pictures, where its card says float32 [1, 4]",
        ),
        ({"facts": {"classes": 3, "pixels": True}}, "does not take 1 pictures of 32 pixels"),
    ],
)
def test_a_graph_that_does_not_compute_what_its_card_says(change, message, tmp_path, tiny_weights, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    text = json.dumps({"model": "convmixer_tiny", "facts": {"classes": 3, "pixels": False}} | change)
    path, picture = tmp_path / "a.onnx", tmp_path / "a.png"
    path.write_bytes(onnx_file.to_onnx(Trained(tiny_weights).create(), card=text))
    Image.new("RGB", (32, 32)).save(picture)
    assert message in failure(capsys, "predict", "--model", path, picture)


def test_a_graph_for_one_picture_alone_or_of_other_numbers_is_refused(tmp_path, tiny_weights, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    assert run("export", "--weights", tiny_weights, "--format", "onnx", tmp_path / "a.onnx") == 0
    capsys.readouterr()
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    fixed = onnx.load(tmp_path / "a.onnx")
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, tmp_path / "fixed.onnx")
    half = onnx.load(tmp_path / "a.onnx")
    (output,) = half.graph.output
    half.graph.node.append(onnx.helper.make_node("Cast", [output.name], ["as half"], to=onnx.TensorProto.FLOAT16))
    output.name, output.type.tensor_type.elem_type = "as half", onnx.TensorProto.FLOAT16
    onnx.save(half, tmp_path / "half.onnx")
    for name, message in (("fixed", "does not take 2 pictures of 32 pixels"), ("half", "makes float16 [1, 3] of 1")):
        said = failure(capsys, "predict", "--model", tmp_path / f"{name}.onnx", tmp_path / "a.png")
        assert message in said and len(said.splitlines()) == 1


def test_openvino_tells_nobody_of_its_use(tmp_path, tiny_weights):
    pytest.importorskip("openvino")
    arguments = ["export", "--weights", str(tiny_weights), "--format", "openvino", str(tmp_path / "a.xml")]
    script = (
        f"import sys; from ppconvmixer import cli; assert cli.main({arguments!r}) == 0\n"
        "import openvino.tools.ovc.telemetry_utils as used; print(used.tm.__name__)"
    )
    settings = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=settings, check=True)
    assert done.stdout.splitlines()[-1] == "openvino.tools.ovc.telemetry_stub"
    assert not (tmp_path / "intel").exists()


def test_a_program_without_its_weights_is_refused(tmp_path, tiny_weights, capsys):
    program, picture = tmp_path / f"a{OWN}", tmp_path / "a.png"
    assert run("export", "--weights", tiny_weights, "--format", "paddle", program) == 0
    Image.new("RGB", (32, 32)).save(picture)
    assert run("predict", "--model", program, picture) == 0
    capsys.readouterr()
    program.with_suffix(".pdiparams").unlink()
    assert "a.pdiparams, which holds the weights of" in failure(capsys, "predict", "--model", program, picture)


def test_photographs_are_pictures_of_the_size():
    found = export.photographs(zoo.CIFAR10, 5)
    assert found.shape == (5, 3, 32, 32) and found.dtype == np.float32
    assert len({part.tobytes() for part in found}) == 5 and np.all(found.std(axis=(1, 2, 3)) > 0.1)


def test_a_name_that_spells_out_its_shape(tmp_path):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "a.pdparams"
    checkpoint.write(path, random_state(dim=24, depth=2, kernel_size=3, patch_size=2, num_classes=4))
    card.write(path, card.Card(model="convmixer_24_2_ks3_p2"))
    assert run("export", "--weights", path, "--format", "onnx", tmp_path / "a.onnx") == 0
    assert Exported(tmp_path / "a.onnx").name == "convmixer_24_2_ks3_p2"
