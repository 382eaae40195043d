import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, random_state, refused, run, write_layout
from PIL import Image

from ppconvmixer import checkpoint, engines, layouts, recipe
from ppconvmixer.trained import Trained


def failure(capsys, *arguments):
    """Return the message of a command that must fail: the line with the error, or all where there are several."""
    said = refused(capsys, *arguments)
    return said.splitlines()[-1] if said.count("error") == 1 else said


def test_help_does_without_paddle():
    code = "import sys; from ppconvmixer.cli import main\ntry: main(['--help'])\nfinally: assert 'paddle' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "finetune" in done.stdout


def test_models(capsys):
    assert run("models", "*_32") == 0
    line = capsys.readouterr().out.splitlines()[1].split()
    assert line[:4] == ["convmixer_768_32", "224", "21.11M", "20.68"] and line[4] == "80.16"
    assert "no model matches" in failure(capsys, "models", "vit*")


def test_output_that_cannot_be_shown_or_written(tmp_path):
    command = [sys.executable, "-m", "ppconvmixer", "models", "*tiny"]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "PPCONVMIXER_HOME": str(tmp_path / "\u732b")}
    ascii_only = {**settings, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=ascii_only, check=True)
    assert done.stdout.splitlines()[-1].endswith("\\u732b")
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=settings)
        assert (done.returncode, done.stderr) == (2, "ppconvmixer: error: cannot print: No space left on device\n")
    reader, writer = os.pipe()
    os.close(reader)  # nobody reads
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=settings)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_not_there_is_said_before_a_download(tmp_path, capsys):
    for flag in ("--data", "--list", "--classes"):
        said = failure(capsys, "eval", "--model", "convmixer_768_32", "--weights", "pretrained", flag, tmp_path / "x")
        assert said == f"ppconvmixer: error: there is nothing at {tmp_path / 'x'}; see {flag}"


def test_what_was_meant_instead_is_said(tmp_path, tiny_weights, class_folders, capsys):
    picture = class_folders / "val/cat/cat 0.png"
    said = failure(capsys, "predict", "--wieghts", tiny_weights, picture)
    assert said.startswith("ppconvmixer predict: error: unrecognized arguments: --wieghts")
    assert said.endswith("see ppconvmixer predict --help")
    said = failure(capsys, "predict", "--weights", tiny_weights.parent, picture)
    assert "is a folder; give a checkpoint in it, such as the best.pdparams of a run" in said
    (tmp_path / "a.onnx").write_text("")
    said = failure(capsys, "predict", "--weights", tmp_path / "a.onnx", picture)
    assert "is an exported network; eval, predict and serve take it as --model" in said
    assert "; want a tar archive or a folder" in failure(capsys, "eval", "--weights", tiny_weights, "--data", picture)
    said = failure(capsys, "finetune", "-c", "digits", "--output", tiny_weights)
    assert said.endswith("is a file; name a folder for the run with --output")


def test_runs_side_by_side(tmp_path):
    command = [sys.executable, ROOT / "tools/compare.py", tmp_path]
    (tmp_path / "recipe.yaml").write_text(recipe.load("digits").to_yaml())
    for text, code, message in (
        (None, 2, "is no finished run: No such file or directory"),
        ("{", 2, "result.json is not what a training run writes"),
        ('{"top1": 1}', 2, "result.json is not what a training run writes"),
        ('{"model": "m", "top1": 0.5, "training_seconds": 3, "epochs": 1}', 0, "50.00 %"),
    ):
        if text:
            (tmp_path / "result.json").write_text(text)
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == code and message in done.stdout + done.stderr and "Traceback" not in done.stderr


def evaluate(tmp_path, tiny_weights, class_folders, *more):
    return run(
        "eval", "--weights", tiny_weights, "--data", class_folders / "val", "--output", tmp_path / "result.json", *more
    )


def test_eval_writes_what_the_contract_says(tmp_path, tiny_weights, class_folders, capsys):
    more = ("--model", "convmixer_tiny", "--predictions", tmp_path / "out.csv", "--logits", tmp_path / "out.npy")
    assert evaluate(tmp_path, tiny_weights, class_folders, *more, "--batch-size", 5, "--workers", 1) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["model"] == "convmixer_tiny" and result["engine"] == engines.fastest(Trained(tiny_weights).create())
    assert result["weights"]["path"] == str(tiny_weights) and len(result["weights"]["sha256"]) == 64
    assert result["samples"] == 12 and result["skipped"] == 0 and result["k"] == 3
    logits = np.load(tmp_path / "out.npy")
    assert logits.dtype == np.float32 and logits.shape == (12, 3)
    labels = np.repeat([0, 1, 2], 4)
    assert result["top1"] == np.mean(logits.argmax(1) == labels)
    rows = (tmp_path / "out.csv").read_text().splitlines()
    assert rows[0] == "path,label,class_1,class_2,class_3,probability_1,probability_2,probability_3"
    assert rows[5].startswith(f"dog/dog 0.png,1,{logits[4].argmax()},")
    captured = capsys.readouterr()
    assert "top-5 is top-3" in captured.err and "top-3 100.00 %" in captured.out


def test_eval_of_a_list_equals_eval_of_folders(tmp_path, tiny_weights, class_folders):
    evaluate(tmp_path, tiny_weights, class_folders)
    folders = json.loads((tmp_path / "result.json").read_text())
    names = [(f"{name}/{name} {i}.png", k) for k, name in enumerate(("cat", "dog", "owl")) for i in range(4)]
    (tmp_path / "list.txt").write_text("".join(f"{name}\t{label}\n" for name, label in names))
    evaluate(tmp_path, tiny_weights, class_folders, "--list", tmp_path / "list.txt", "--workers", 0)
    listed = json.loads((tmp_path / "result.json").read_text())
    assert {k: listed[k] for k in ("top1", "loss", "samples")} == {k: folders[k] for k in ("top1", "loss", "samples")}


def test_eval_with_either_backend(tmp_path, tiny_weights, class_folders):
    logits = []
    for backend in ("pil", "cv2"):
        evaluate(tmp_path, tiny_weights, class_folders, "--backend", backend, "--logits", tmp_path / "l.npy")
        logits.append(np.load(tmp_path / "l.npy"))
        assert json.loads((tmp_path / "result.json").read_text())["backend"] == backend
    assert 0 < np.abs(logits[0] - logits[1]).max() < 0.5 * np.abs(logits[0]).max()


def test_a_path_of_a_name_that_no_file_can_have(capsys, tiny_weights):
    name, network = "x" * 300, ("--weights", tiny_weights)
    for arguments in (
        ("inspect", "diagnose", name),
        ("inspect", "complexity", name),
        ("inspect", "schedule", "-c", name),
        ("inspect", "mixing", *network, "--data", name),
        ("inspect", "kernels", *network, "--output", f"{name}.png"),
        ("inspect", "features", *network, "a.png", "--output", f"{name}/a.png"),
    ):
        message = failure(capsys, *arguments)
        assert "x" * 200 in message and message.endswith("File name too long; give another path")
    assert "File name too long" in failure(capsys, "inspect", "kernels", "--weights", name)


def test_mistakes_of_eval(tmp_path, tiny_weights, class_folders, capsys):
    good = ("eval", "--weights", tiny_weights, "--data", class_folders / "val")
    (tmp_path / "list.txt").write_text("cat/cat 0.png 3\n")
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    bare = write_layout(
        tmp_path / "bare.pdparams", random_state(dim=64, depth=4, kernel_size=5, patch_size=4, num_classes=3)
    )
    for arguments, message in [
        (("eval", "--data", "x"), "--weights"),
        (("eval", "--weights", tmp_path / "no.pdparams", "--data", "x"), "No such file"),
        (("eval", "--weights", tiny_weights), "--data is missing"),
        (("eval", "--weights", tiny_weights, "--data", tmp_path / "nowhere"), "nothing at"),
        ((*good, "--model", "convmixer_tini"), "did you mean convmixer_tiny"),
        ((*good, "--model", "convmixer_768_32"), "is a convmixer_tiny by its card"),
        (("eval", "--weights", bare, "--data", "x"), "--model is missing"),
        ((*("eval", "--weights", bare, "--model", "convmixer_256_8"), *good[3:]), "the model is ConvMixer-256/8"),
        ((*good, "--list", tmp_path / "list.txt"), "has the label 3, but the model has 3 classes"),
        ((*good, "--list", tmp_path / "no.txt"), "no.txt"),
        ((*good, "--classes", tmp_path / "two.txt"), "2 classes, but the head"),
        ((*good, "--engine", "warp"), "--engine"),
        ((*good, "--batch-size", "0"), "--batch-size"),
        ((*good, "--limit", "-3"), "--limit"),
        ((*good, "--output", tiny_weights), "is an input of this command"),
        ((*good, "--output", tmp_path), "cannot write"),
        ((*good, "-c", "digits"), "either --data or -c"),
        (("eval", "--weights", tiny_weights, "-c", "digits"), "tells other classes apart"),
    ]:
        assert message in failure(capsys, *arguments), message


def test_a_class_folder_of_another_name_or_number(tmp_path, class_folders, tiny_weights, capsys):
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "cat/a.png")
    assert run("eval", "--weights", tiny_weights, "--data", tmp_path) == 0  # the card's names give the label
    capsys.readouterr()
    bare = write_layout(
        tmp_path / "bare.pdparams", random_state(dim=64, depth=4, kernel_size=5, patch_size=4, num_classes=3)
    )
    message = failure(capsys, "eval", "--weights", bare, "--model", "convmixer_tiny", "--data", tmp_path)
    assert "has 1 class folders, the model 3 classes" in message


def test_broken_pictures_in_eval(tmp_path, tiny_weights, class_folders, capsys):
    good = (class_folders / "val/cat/cat 0.png").read_bytes()
    (tmp_path / "p/cat").mkdir(parents=True)
    for i in range(6):
        (tmp_path / f"p/cat/{i}.png").write_bytes(good[:90] if i in (1, 4) else good)
    arguments = ("eval", "--weights", tiny_weights, "--data", tmp_path / "p", "--output", tmp_path / "r.json")
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert "2 of 6 pictures cannot be read" in error and "cat/1.png" in error and "cat/4.png" in error
    assert not (tmp_path / "r.json").exists()
    assert run(*arguments, "--skip-broken") == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["samples"], result["skipped"]) == (4, 2)


def test_predict_names_classes_and_broken_pictures(tmp_path, tiny_weights, class_folders, capsys):
    (tmp_path / "bad.png").write_bytes(b"no")
    picture = class_folders / "val/owl/owl 0.png"
    assert run("predict", "--weights", tiny_weights, tmp_path / "bad.png", picture, tmp_path / "gone.png") == 2
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == str(picture) and {line.split()[-1] for line in lines[1:]} == {"cat", "dog", "owl"}
    assert sum(float(line.split()[0]) for line in lines[1:]) == pytest.approx(100, abs=0.02)
    assert "2 of 3 pictures cannot be read" in captured.err and "gone.png: No such file" in captured.err
    (tmp_path / "names.txt").write_text("Katze\nHund\nEule\n", "utf-8")
    assert run("predict", "--weights", tiny_weights, "--classes", tmp_path / "names.txt", picture) == 0
    assert "Eule" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".pdparams", ".safetensors"])
def test_convert_through_every_layout_and_back(tmp_path, suffix, capsys):
    state = random_state(dim=6, depth=3, kernel_size=3, patch_size=2, num_classes=4)
    start = current = write_layout(tmp_path / "0.pdparams", state)
    for i, layout in enumerate([*layouts.LAYOUTS, "timm"]):
        target = tmp_path / f"{i + 1}{suffix if i % 2 else '.safetensors'}"
        assert run("convert", current, target, "--layout", layout) == 0
        assert layouts.to_ours(checkpoint.read(target)).layout == layout
        current = target
    assert run("convert", current, tmp_path / "end.pdparams") == 0
    assert (tmp_path / "end.pdparams").read_bytes() == start.read_bytes()
    assert "ConvMixer-6/3" in capsys.readouterr().out


def test_mistakes_of_convert(tmp_path, tiny_weights, capsys):
    assert "ending in" in failure(capsys, "convert", tiny_weights, tmp_path / "x.pth")
    assert "input of this command" in failure(capsys, "convert", tiny_weights, tiny_weights)
    (tmp_path / "x.pdparams").write_text("mine")
    assert "exists" in failure(capsys, "convert", tiny_weights, tmp_path / "x.pdparams")
    assert (tmp_path / "x.pdparams").read_text() == "mine"
    (tmp_path / "z.json").mkdir()
    said = failure(capsys, "convert", tiny_weights, tmp_path / "z.pdparams", "--overwrite")
    assert "cannot write" in said and not (tmp_path / "z.pdparams").exists()
    wrong = failure(capsys, "convert", tiny_weights, tmp_path / "y.pdparams", "--model", "convmixer_256_8")
    assert "the model is ConvMixer-256/8" in wrong and not (tmp_path / "y.pdparams").exists()
    assert "--layout" in failure(capsys, "convert", tiny_weights, tmp_path / "y.pdparams", "--layout", "keras")


def test_convert_leaves_the_cards_of_others_alone(tmp_path, tiny_weights, capsys):
    weights, other = tmp_path / "w.pdparams", tmp_path / "other.json"
    weights.write_bytes(tiny_weights.read_bytes())
    other.write_text('{"classes": ["a", "b", "c"]}')
    message = failure(capsys, "convert", weights, tmp_path / "other.safetensors")  # which has no card
    assert f"{other} would pass for the card of" in message and not (tmp_path / "other.safetensors").exists()
    assert "would pass" in failure(capsys, "convert", tiny_weights, tmp_path / "other.pdparams")
    assert other.read_text() == '{"classes": ["a", "b", "c"]}'
    assert run("convert", tiny_weights, tmp_path / "other.pdparams", "--overwrite") == 0
    assert json.loads(other.read_text())["classes"] == ["cat", "dog", "owl"]
    weights.with_suffix(".json").write_bytes(tiny_weights.with_suffix(".json").read_bytes())
    card = weights.with_suffix(".json").read_bytes()
    assert run("convert", weights, tmp_path / "w.safetensors") == 0  # two files, one card, which stays the first one's
    assert weights.with_suffix(".json").read_bytes() == card
    weights.with_suffix(".json").write_text("no card")
    capsys.readouterr()
    assert "cannot read the card" in failure(capsys, "convert", weights, tmp_path / "new.pdparams")
    assert not (tmp_path / "new.pdparams").exists()


def test_convert_takes_the_card_along(tmp_path, tiny_weights, class_folders, capsys):
    assert run("convert", tiny_weights, tmp_path / "t.safetensors", "--layout", "mmpretrain") == 0
    assert run("predict", "--weights", tmp_path / "t.safetensors", class_folders / "val/cat/cat 0.png") == 0
    assert "cat" in capsys.readouterr().out


def test_finetune_then_eval_then_predict(tmp_path, class_folders, capsys):
    settings = [
        *("data.dataset=folder", f"data.path={class_folders}", "data.train=train", "data.val=val"),
        *("data.val_fraction=null", "data.workers=0"),
    ]
    command = ("finetune", "-c", "digits", "-o", *settings, "-o", "train.epochs=2", "train.batch_size=8")
    assert run(*command, "--output", tmp_path / "run") == 0
    captured = capsys.readouterr()
    assert f"visualdl --logdir {tmp_path / 'run/visualdl'}" in captured.err and "best epoch" in captured.out
    best = tmp_path / "run/best.pdparams"
    assert run("eval", "-c", tmp_path / "run/recipe.yaml", "--weights", best, "--output", tmp_path / "r.json") == 0
    trained, evaluated = (json.loads(p.read_text()) for p in (tmp_path / "run/result.json", tmp_path / "r.json"))
    assert (evaluated["top1"], evaluated["samples"]) == (trained["top1"], trained["samples"])
    assert evaluated["loss"] == pytest.approx(trained["loss"], rel=1e-5)  # by another engine
    capsys.readouterr()
    assert run("predict", "--weights", best, class_folders / "val/dog/dog 1.png") == 0
    assert "dog" in capsys.readouterr().out
    assert "already holds a run" in failure(capsys, *command, "--output", tmp_path / "run")[-400:]
    assert "one of them" in failure(capsys, *command, "--resume", "--overwrite")


def test_mistakes_of_finetune(tmp_path, capsys):
    assert "no recipe nothing.yaml" in failure(capsys, "finetune", "-c", "nothing.yaml")
    assert "did you mean train.epochs" in failure(capsys, "finetune", "-c", "digits", "-o", "train.epoch=1")
    message = failure(capsys, "finetune", "-c", "cifar10_tiny", "-o", "data.path=/nowhere", "--output", tmp_path / "r")
    assert "nothing at /nowhere" in message
    assert not (tmp_path / "r").exists()


def test_the_tools_are_the_commands(tmp_path):
    """They work from a clone that is not installed, in any folder."""
    own = ("ablation", "cifar10_jpegs", "compare", "draw_augmentations", "ship")
    for name in sorted(path.stem for path in (ROOT / "tools").glob("*.py") if path.stem not in own):
        done = subprocess.run(
            [sys.executable, ROOT / f"tools/{name}.py", "--help"], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0 and done.stdout.startswith(f"usage: ppconvmixer {name}")


@pytest.mark.parametrize("arguments", [["predict", "a.png", "--weights"], ["eval", "--data", "d", "--weights"]])
def test_without_paddle_one_line_says_so(arguments, tmp_path, tiny_weights, class_folders):
    shutil.copytree(class_folders / "val", tmp_path / "d")
    shutil.copy(class_folders / "val/cat/cat 0.png", tmp_path / "a.png")
    code = "import sys; sys.modules['paddle'] = None\nfrom ppconvmixer.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *arguments, tiny_weights]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 2
    assert done.stderr.startswith("ppconvmixer: error: PaddlePaddle is not installed; pip install 'ppconvmixer[gpu]'")


def test_a_network_without_numbers_has_no_accuracy(tmp_path, tiny_weights, class_folders, capsys):
    state = checkpoint.read(tiny_weights)
    state["head.bias"] = np.full_like(state["head.bias"], np.nan)
    checkpoint.write(tmp_path / "w.pdparams", state)
    arguments = (
        "eval",
        "--model",
        "convmixer_tiny",
        "--weights",
        tmp_path / "w.pdparams",
        "--output",
        tmp_path / "r.json",
    )
    assert "gives what is no number for cat/cat 0.png" in failure(capsys, *arguments, "--data", class_folders / "val")
    assert not (tmp_path / "r.json").exists()
    picture = class_folders / "val/cat/cat 0.png"
    said = failure(capsys, "predict", "--model", "convmixer_tiny", "--weights", tmp_path / "w.pdparams", picture)
    assert said.splitlines()[-1].startswith("ppconvmixer: error: the network gives what is no number for")
    assert "Warning" not in said


def test_no_output_replaces_the_data(tmp_path, tiny_weights, class_folders, capsys):
    shutil.copytree(class_folders / "val", tmp_path / "val")
    table, picture = tmp_path / "val.csv", tmp_path / "val/cat/cat 0.png"
    table.write_text("path,label\ncat/cat 0.png,cat\ndog/dog 0.png,dog\nowl/owl 0.png,owl\n")
    before = table.read_bytes(), picture.read_bytes()
    settings = recipe.load("small_dataset").to_dict()
    settings["data"] = {"dataset": "csv", "path": str(tmp_path / "val"), "train": str(table), "val": str(table)}
    (tmp_path / "r.yaml").write_text(json.dumps(settings))  # JSON is YAML
    arguments = ("eval", "--weights", tiny_weights)
    assert "is an input" in failure(capsys, *arguments, "-c", tmp_path / "r.yaml", "--predictions", table)
    assert "may be a picture" in failure(capsys, *arguments, "--data", tmp_path / "val", "--predictions", picture)
    assert (table.read_bytes(), picture.read_bytes()) == before


def test_outputs_take_the_place_of_nothing_else(tmp_path, tiny_weights, class_folders, capsys):
    weights = tmp_path / "w.pdparams"
    weights.write_bytes(tiny_weights.read_bytes())
    weights.with_suffix(".json").write_bytes(tiny_weights.with_suffix(".json").read_bytes())
    arguments = ("eval", "--weights", weights, "--data", class_folders / "val")
    assert "is an input of this command" in failure(capsys, *arguments, "--output", weights.with_suffix(".json"))
    os.mkfifo(tmp_path / "pipe")
    for output in ("/dev/null", "/", tmp_path / "pipe", tmp_path):
        assert f"cannot write {output}; name a file" in failure(capsys, *arguments, "--output", output)
    assert Path("/dev/null").is_char_device()
    (tmp_path / "round").symlink_to(tmp_path / "round")
    assert "which is a link" in failure(capsys, *arguments, "--output", tmp_path / "round")
    assert (tmp_path / "round").is_symlink()


def test_no_output_replaces_what_a_training_run_wrote(tmp_path, tiny_weights, class_folders, capsys):
    arguments = ("eval", "--weights", tiny_weights, "--data", class_folders / "val")
    for name in ("recipe.yaml", "environment.json", "result.json", "log.txt"):
        (tmp_path / name).write_text("of the run")
    for flag, name in (("--output", "result.json"), ("--predictions", "log.txt")):
        assert f"{name} is of the training run in" in failure(capsys, *arguments, flag, tmp_path / name)
        assert (tmp_path / name).read_text() == "of the run"
    assert run(*arguments, "--output", tmp_path / "eval.json") == 0
    (tmp_path / "recipe.yaml").unlink()  # now the folder is none of a run
    assert run(*arguments, "--output", tmp_path / "result.json") == 0


def test_names_that_are_not_utf8_go_through(tmp_path, tiny_weights, class_folders, capsysbinary):
    pictures = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(class_folders / "val", pictures)
    result = tmp_path / "result.json"
    assert run("eval", "--weights", tiny_weights, "--data", pictures, "--output", result) == 0
    assert json.loads(result.read_text())["data"]["path"] == str(pictures)
    capsysbinary.readouterr()
    assert run("predict", "--weights", tiny_weights, pictures / "cat/cat 0.png") == 0
    assert b"caf\\udce9/cat/cat 0.png" in capsysbinary.readouterr().out


def test_a_recipe_of_other_classes_is_refused(tmp_path, class_folders, capsys):
    state = random_state(dim=64, depth=4, kernel_size=5, patch_size=4, num_classes=5)
    checkpoint.write(tmp_path / "five.pdparams", state)
    settings = ("data.dataset=folder", f"data.path={class_folders}", "data.train=train", "data.val=val")
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.load("digits", [*settings, "data.val_fraction=null"]).to_yaml())
    arguments = ("eval", "--model", "convmixer_tiny", "--weights", tmp_path / "five.pdparams", "-c", path)
    assert "has pictures of 3 classes" in failure(capsys, *arguments)


def test_the_first_picture_after_tta_is_a_picture(tiny_weights, class_folders, capsys):
    one, two = (class_folders / f"val/cat/cat {i}.png" for i in (0, 1))
    assert run("predict", "--weights", tiny_weights, one, two, "--tta") == 0
    expected = capsys.readouterr().out
    assert run("predict", "--weights", tiny_weights, "--tta", one, two) == 0
    assert capsys.readouterr().out == expected
    assert run("predict", "--weights", tiny_weights, "--tta", one) == 0
    assert capsys.readouterr().out == expected[: len(expected) // 2]
    assert "unknown view 'nothing.png'" in failure(capsys, "predict", "--weights", tiny_weights, "--tta", "nothing.png")
    assert "no picture is named" in failure(capsys, "predict", "--weights", tiny_weights)
