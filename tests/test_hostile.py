"""Every hostile file of ``hostile.py``, each read in a process of its own."""

import os
import pickle
import resource
import signal
import tempfile
from pathlib import Path

import pytest
from hostile import CASES, MIB, NAMELESS, READERS, bound, write

from ppconvmixer import UserError, transforms

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
        allowed = bound(case.reader, size)
        GROWTH[case.name] = growth, allowed
        assert growth <= allowed, f"it took {growth / MIB:.0f} MiB; {allowed / MIB:.0f} are allowed"


def test_there_are_at_least_200(capsys):
    assert len({case.name for case in CASES}) == len(CASES) >= 200
    kinds = {reader: sum(case.reader == reader for case in CASES) for reader in READERS}
    worst = sorted(((growth, name) for name, (growth, _) in GROWTH.items()), reverse=True)[:5]
    with capsys.disabled():
        print(f"\n{len(CASES)} hostile files: {kinds}")
        print("most memory:", *(f"{growth / MIB:.0f} MiB, {name};" for growth, name in worst))
