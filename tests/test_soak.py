"""Long and large: 50,000 pictures in one archive, every one counted once, in memory that does not grow."""

import csv
import io
import json
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, picture
from test_distributed import launch

PICTURES = 50_000
GROWTH = 64 << 20  # bytes the processes together may gain after the first third: results, and lists no longer shared

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A tar of 50,000 JPEGs of three classes, and its list."""
    folder = tmp_path_factory.mktemp("soak")
    contents = []
    for seed in range(100):
        stream = io.BytesIO()
        picture(seed, 48, 40).save(stream, "JPEG")
        contents.append(stream.getvalue())
    with tarfile.open(folder / "pictures.tar", "w") as tar:
        for i in range(PICTURES):
            entry = tarfile.TarInfo(f"val_{i:08d}.JPEG")
            entry.size = len(contents[i % 100])
            tar.addfile(entry, io.BytesIO(contents[i % 100]))
    (folder / "list.txt").write_text("".join(f"val_{i:08d}.JPEG {i % 3}\n" for i in range(PICTURES)))
    return folder


def arguments(archive, weights, out):
    return [
        *("--weights", weights, "--data", archive / "pictures.tar", "--list", archive / "list.txt"),
        *("--batch-size", 64, "--workers", 2),
        *("--output", out / "result.json", "--predictions", out / "predictions.csv", "--logits", out / "logits.npy"),
    ]


def memory(pid: int) -> int:
    """Return the bytes a process and its children hold, what they share counted once (PSS)."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total = int(line.split()[1]) * 1024
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return total
    return total + sum(memory(int(child)) for child in children)


def test_fifty_thousand_pictures_in_flat_memory(archive, tiny_weights, tmp_path):
    command = [sys.executable, ROOT / "tools/eval.py", *arguments(archive, tiny_weights, tmp_path)]
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output: list[str] = []
    reader = threading.Thread(target=lambda: output.append(process.stdout.read()))
    reader.start()
    held = []
    while process.poll() is None:
        held.append(memory(process.pid))
        time.sleep(0.5)
    reader.join()
    assert process.returncode == 0, output
    held = [bytes_ for bytes_ in held if bytes_][:-2]  # the last ones see processes that are ending
    early, late = max(held[: len(held) // 3]), max(held[len(held) // 3 :])
    print(f"{len(held)} looks; at most {early / 2**20:.0f} MiB in the first third, {late / 2**20:.0f} MiB after it")
    assert late - early < GROWTH
    check(tmp_path)


def check(out):
    result = json.loads((out / "result.json").read_text())
    assert result["samples"] == PICTURES and result["skipped"] == 0
    with open(out / "predictions.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == [f"val_{i:08d}.JPEG" for i in range(PICTURES)]
    assert all(int(row["label"]) == i % 3 for i, row in enumerate(rows))
    logits = np.load(out / "logits.npy")
    assert logits.shape == (PICTURES, 3)
    # There are a hundred different pictures, so a sample that went to another's place would show.
    np.testing.assert_allclose(logits, np.tile(logits[:100], (PICTURES // 100, 1)), rtol=1e-4, atol=1e-4)
    assert len({tuple(row) for row in np.round(logits[:100], 3)}) == 100
    expected = Counter(int(row.argmax()) == i % 3 for i, row in enumerate(logits))[True] / PICTURES
    assert result["top1"] == pytest.approx(expected, abs=1e-9)
    return result


def test_two_processes_find_the_same(archive, tiny_weights, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    command = [sys.executable, ROOT / "tools/eval.py", *arguments(archive, tiny_weights, tmp_path / "one")]
    subprocess.run([str(c) for c in command], check=True, capture_output=True)
    launch("tools/eval.py", arguments(archive, tiny_weights, tmp_path / "two"), tmp_path / "log", timeout=3000)
    one, two = (check(tmp_path / n) for n in ("one", "two"))
    assert one["top1"] == two["top1"] and one["top5"] == two["top5"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
