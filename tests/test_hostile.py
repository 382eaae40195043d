"""Every hostile file of ``hostile.py``, each read in a process of its own."""

import csv
import dataclasses
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import random_state
from hostile import CASES, EPS, MIB, NAMELESS, READERS, bound, write

import ppconvmixer
from ppconvmixer import UserError, card, checkpoint, cli, datasets, layouts, sources, transforms, zoo
from ppconvmixer.commands import evaluate, models

SECONDS = 20  # for one file; the slowest takes about one
transforms._cv2()  # before any fork


def read_apart(case, folder):
    """Read a case's file in a forked process.

    Returns:
        Exit status as ``os.waitpid`` gives it, what came out (("fine", bool), ("refused", text) or ("crash",
        text)), bytes by which the process grew at most, what it wrote to stderr, and the size of the file.
    """
    path = write(case, folder, folder / "canary")
    size = path.stat().st_size
    out = folder / "out.pickle"
    child = os.fork()
    if not child:
        try:
            with open(folder / "stderr", "wb") as stderr:
                os.dup2(stderr.fileno(), 2)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # of pytest-timeout
            signal.alarm(SECONDS)
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + 3 * 1024 * MIB
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            before = peak()  # of a fresh fork, this is what it holds
            out.write_bytes(pickle.dumps((*outcome(case, path), peak() - before)))
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    kind, text, growth = pickle.loads(out.read_bytes()) if out.exists() else ("crash", "it died", 0)
    return status, kind, text, growth, (folder / "stderr").read_text("utf-8", "replace"), size


def outcome(case, path):
    try:
        found = READERS[case.reader](path)
    except UserError as error:
        return "refused", str(error)
    except BaseException as error:
        return "crash", repr(error)[:500]
    try:
        return "fine", str(bool(case.fine(found))) if case.fine else "it was read"
    except Exception as error:
        return "crash", repr(error)[:500]


def peak():
    """Return the most memory this process has held, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


GROWTH = {}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory as Linux tells it")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_file_is_refused_in_one_line_or_read_as_what_it_is(case):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        status, kind, text, growth, stderr, size = read_apart(case, folder)
        assert not (folder / "canary").exists(), "code in the file was run"
        assert status == 0, f"the process ended with {status}"
        assert stderr == ""
        if case.fine:
            assert (kind, text) == ("fine", "True"), (kind, text)
        else:
            assert kind == "refused", (kind, text)
            assert text and text.isprintable() and len(text) < 1000, text
            assert case.says in text
            # the file, the folder its picture should be in, or the picture
            assert case.reader in NAMELESS or str(folder) in text or "a.png" in text, text
        allowed = bound(case, size)
        GROWTH[case.name] = growth, allowed
        assert growth <= allowed, f"it took {growth / MIB:.0f} MiB; {allowed / MIB:.0f} are allowed"


def test_there_are_at_least_200(capsys):
    assert len({case.name for case in CASES}) == len(CASES) >= 200
    kinds = {reader: sum(case.reader == reader for case in CASES) for reader in READERS}
    worst = sorted(((growth, name) for name, (growth, _) in GROWTH.items()), reverse=True)[:5]
    with capsys.disabled():
        print(f"\n{len(CASES)} hostile files: {kinds}")
        print("most memory:", *(f"{growth / MIB:.0f} MiB, {name};" for growth, name in worst))


CARELESS = """
import pickle, sys, yaml
for path in sys.argv[1:]:
    with open(path, "rb") as stream:
        try:
            yaml.unsafe_load(stream) if path.endswith(".yaml") else pickle.load(stream)
        except Exception:
            pass
"""


def test_the_traps_are_real(tmp_path):
    """A careless reader runs the code: every canary that the readers of this package leave alone gets made."""
    traps = [case for case in CASES if case.trap and case.reader in ("checkpoint", "recipe")]
    paths = []
    for i, case in enumerate(traps):
        (tmp_path / str(i)).mkdir()
        paths.append(write(case, tmp_path / str(i), tmp_path / str(i) / "canary"))
    subprocess.run([sys.executable, "-c", CARELESS, *map(str, paths)], check=True, timeout=120)
    missed = [case.name for case, path in zip(traps, paths) if not (path.parent / "canary").exists()]
    assert len(traps) >= 25 and not missed


def test_pillow_would_hand_postscript_to_ghostscript(tmp_path):
    """A Ghostscript of ours, first on the path, makes the canary; Pillow calls it, ``decode`` does not."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch '{tmp_path}/canary'\nexit 1\n")
    (tmp_path / "gs").chmod(0o755)
    (tmp_path / "a.jpg").write_bytes(EPS)
    ours = "from ppconvmixer.transforms import decode\ntry: decode(data)\nexcept ValueError: pass"
    pillows = "import io\nfrom PIL import Image\ntry: Image.open(io.BytesIO(data)).load()\nexcept Exception: pass"
    made = []
    for code in (ours, pillows):
        code = f"data = open({str(tmp_path / 'a.jpg')!r}, 'rb').read()\n{code}"
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)
        made.append((tmp_path / "canary").exists())
    assert made == [False, True]


# --- weights that no training leaves behind --------------------------------------------------------

TINY = {"dim": 64, "depth": 4, "kernel_size": 5, "patch_size": 4, "num_classes": 10}


def warnings_of(tmp_path, caplog, changes, layout="official", framework="torch"):
    state = {n: v.astype(np.float64) for n, v in random_state(**TINY).items()}
    for name, value in changes.items():
        state[name].flat[-1] = value
    path = tmp_path / ("w.safetensors" if framework == "torch" else "w.pdparams")
    checkpoint.write(path, layouts.from_ours(state, layout, framework))
    caplog.clear()
    with caplog.at_level("WARNING", logger="ppconvmixer"), np.errstate(all="raise"):
        model = ppconvmixer.convmixer_tiny(pretrained=path)
    for name in changes:
        found, wanted = model.state_dict()[name].numpy().flat[-1], np.float64(state[name].flat[-1])
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(found, wanted.astype(np.float32))  # they load as they are
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(tmp_path, caplog, value):
    (message,) = warnings_of(tmp_path, caplog, {"stem.0.bias": value, "head.weight": value})
    assert message.startswith(f"{tmp_path / 'w.safetensors'} holds weights that no training leaves behind")
    assert "not finite: 0.bias, 9.weight" in message and "beyond" not in message and "\n" not in message


def test_absurd_weights_are_named(tmp_path, caplog):
    changes = {"stem.0.bias": 2e6, "stem.2._variance": -0.1, "blocks.1.3._mean": -1e300, "blocks.2.1.bias": np.nan}
    (message,) = warnings_of(tmp_path, caplog, changes)
    assert (
        "not finite: 5.1.bias; beyond 1,000,000: 0.bias, 4.3.running_mean; negative variances: 2.running_var" in message
    )


def test_many_absurd_weights_are_counted(tmp_path, caplog):
    changes = {name: np.inf for name in random_state(**TINY) if name.endswith(".bias")}
    (message,) = warnings_of(tmp_path, caplog, changes, "timm", "paddle")
    assert f"not finite: stem.0.bias, stem.2.bias, blocks.0.0.fn.0.bias and {len(changes) - 3} more" in message


def test_sound_weights_load_without_a_word(tmp_path, caplog):
    assert warnings_of(tmp_path, caplog, {"stem.2._variance": 0.0, "head.bias": 999_999.0}) == []


def test_a_huge_head_is_refused_before_a_network_is_made(tmp_path):
    """One number a class in the file would be 64 in the network."""
    state = random_state(dim=1, depth=1, kernel_size=3, patch_size=2, num_classes=2)
    state["head.weight"], state["head.bias"] = np.zeros((1, 10**6), np.float32), np.zeros(10**6, np.float32)
    checkpoint.write(tmp_path / "w.pdparams", state)
    from ppconvmixer.trained import Trained

    with pytest.raises(UserError, match="holds ConvMixer-1/1.*the model is ConvMixer-1536/20"):
        Trained(tmp_path / "w.pdparams", "convmixer_1536_20")


@pytest.mark.parametrize("mixers", [999, 0])
def test_shapes_of_few_numbers_do_not_ask_for_much_memory(tmp_path, mixers):
    """The name fits what the shapes claim, or they claim nothing; the network would take 791 GB."""
    state = {"stem.0.weight": np.ones((9999, 3, 1, 1), np.float32)}
    state |= {f"blocks.{i}.0.fn.0.weight": np.ones((1, 1, 1, 1), np.float32) for i in range(mixers)}
    if mixers:
        state["blocks.0.0.fn.0.weight"] = np.ones((1, 1, 99, 1), np.float32)
    state |= {"head.weight": np.ones((9999, 2), np.float32), "head.bias": np.ones(2, np.float32)}
    checkpoint.write(tmp_path / "w.pdparams", state)
    from ppconvmixer.trained import Trained

    with pytest.raises(UserError, match="it is not complete|holds no complete ConvMixer"):
        Trained(tmp_path / "w.pdparams", "convmixer_9999_999_ks99_p1")


@pytest.mark.parametrize(
    "change",
    [
        {"size": 10**6},
        {"size": 3},
        {"name": 1},
        {"crop_pct": 1e-9},
        {"mean": [0, np.nan, 0]},
        {"std": [1, np.nan, 1]},
        {"mean": [10**400, 0, 0]},
    ],
)
def test_an_input_that_a_card_must_not_ask_for(tmp_path, change):
    text = json.dumps({"input": change})
    (tmp_path / "w.json").write_text(text)
    found = card.read(tmp_path / "w.pdparams")
    with pytest.raises(UserError, match="input"):
        zoo.input_spec("convmixer_tiny", **found.input)


# --- names that mean harm ---------------------------------------------------------------------------

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "=cmd|'/c calc'!A1", "\t=1+1", "\r=1+1"]


def test_no_path_in_the_predictions_is_a_formula():
    names = [*FORMULAS, "a.png", 'b ",=1".png', "c\n=1.png"]
    pictures = datasets.Pictures(names, np.zeros(len(names), np.int64), None, lambda i: b"")
    n = len(names)
    found = SimpleNamespace(k=1, indices=range(n), labels=[0] * n, classes=[[0]] * n, probabilities=[[1.0]] * n)
    text = evaluate._predictions(found, pictures.names)
    rows = list(csv.reader(text.splitlines()))
    paths = [row[0] for row in rows[1:]]
    assert len(rows) == n + 1 and all(len(row) == 4 for row in rows)
    assert not [path for path in paths if path[0] in "=+-@\t\r\n"]
    assert paths[0] == "./=1+1" and paths[-3] == "a.png" and paths[-2] == names[-2]


def test_messages_cannot_drive_the_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "_run", lambda options: cli.logger.warning("\x1b[2J%s", "\x1b]0;x\x07\u202e") or fail())

    def fail():
        raise UserError("2 pictures cannot be read:\n  \x1b[2Ja.png: \r\x07\n  b.png: no")

    assert cli.main(["models"]) == 2
    error = capsys.readouterr().err
    assert error == (
        "\\x1b[2J\\x1b]0;x\\x07\\u202e\nppconvmixer: error: 2 pictures cannot be read:\n  \\x1b[2Ja.png: \\r\\x07\n  b.png: no\n"
    )


def test_the_name_of_a_picture_cannot_forge_a_line(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/a\nppconvmixer: all is well.png").write_bytes(b"no picture")
    found = datasets.from_folders(sources.Folder(tmp_path))
    assert found.names == ["cat/a\\nppconvmixer: all is well.png"] and found.fetch(0) == b"no picture"


def test_links_of_the_users_own_may_leave_the_folder(tmp_path):
    (tmp_path / "outside.png").write_bytes(b"mine")
    (tmp_path / "pictures/deep").mkdir(parents=True)
    (tmp_path / "pictures/link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "pictures/up").symlink_to(tmp_path)
    folder = sources.Folder(tmp_path / "pictures")
    assert folder.read("link.png") == folder.read("up/outside.png") == folder.read("deep/../link.png") == b"mine"
    assert folder.find(str(tmp_path / "pictures/link.png")) is not None
    for name in ("../outside.png", "deep/../../outside.png", str(tmp_path / "outside.png"), "up/../../outside.png"):
        with pytest.raises(UserError, match="leads out of the folder"):
            folder.read(name)
    assert folder.find("up/../outside.png") is None  # not what the link's parent holds


def test_a_picture_larger_than_the_limit_is_not_decoded(monkeypatch):
    case = next(case for case in CASES if case.name == "picture: PNG of 10,000 pixels square")
    with pytest.raises(UserError, match="10000 x 10000 pixels are more than 89,478,485"):
        transforms.decode(case.build(""))


def test_messages_of_pillow_stay_away_from_the_terminal(tmp_path):
    case = next(case for case in CASES if case.name == "picture: PNG of 10,000 pixels square")
    path = write(dataclasses.replace(case), tmp_path, tmp_path / "canary")
    code = f"""
from ppconvmixer import cli, transforms
cli._configure_output()
try: transforms.decode(open({str(path)!r}, "rb").read())
except ValueError: pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
