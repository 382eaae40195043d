"""Downloads from a server on 127.0.0.1 that does everything wrong."""

import contextlib
import hashlib
import http.server
import io
import json
import os
import random
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from email.utils import formatdate

import pytest
from conftest import ROOT, random_state, write_layout

import ppconvmixer
from ppconvmixer import UserError, cli, download, finetune, recipe, zoo
from ppconvmixer.download import PublishedFile

DATA = random.Random(1).randbytes(60_000) + b"THE END"
OTHER = random.Random(2).randbytes(50_000) + b"THE END"
MD5 = hashlib.md5(DATA).hexdigest()
SHA256 = hashlib.sha256(DATA).hexdigest()
DIGESTS = {"md5": {"md5": MD5}, "sha256": {"sha256": SHA256}, "prefix": {"sha256_prefix": SHA256[:8]}, "none": {}}


def check(path):
    """What reading a checkpoint does: refuse a file that is cut."""
    if not path.read_bytes().endswith(b"THE END"):
        raise UserError(f"{path} is damaged")


# --- the server -----------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.close_connection = True
        with self.server.lock:
            self.server.log.append(self)
            script = self.server.scripts[self.path.lower()]
            act = script.pop(0) if len(script) > 1 else script[0]
        with contextlib.suppress(OSError):
            act(self)

    do_CONNECT = do_GET

    def answer(self, body=b"", status=200, **headers):
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def raw(self, text):
        self.wfile.write(text if isinstance(text, bytes) else text.encode("latin1"))

    def stall(self):
        self.wfile.flush()
        self.server.over.wait(20)

    def drip(self, text):
        """Send a few bytes a second, so that no single read waits long."""
        for i in range(len(text)):
            self.raw(text[i : i + 1])
            if self.server.over.wait(0.02):
                return

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 32

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.over, self.log, self.scripts = threading.Lock(), threading.Event(), [], {}
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *_):
        pass  # clients that hang up are what this is about

    def file(self, *acts, name="w.bin", **entry):
        """Publish a file; the n-th request for it meets the n-th act, later ones the last."""
        path = f"/{len(self.scripts)}/{name}"
        self.scripts[path] = list(acts)
        return PublishedFile(f"http://127.0.0.1:{self.server_port}{path}", "timm", **entry)

    def requests(self, file):
        return [h for h in self.log if file.url.endswith(h.path)]


@pytest.fixture
def server():
    server = Server()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    monkeypatch.delenv("PPCONVMIXER_OFFLINE")
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)
    for name, seconds in {"READ": 10.0, "ANSWER": 10.0, "BACKOFF": 0.01, "MAX_WAIT": 0.1, "LOCK": 0.1}.items():
        monkeypatch.setattr(download, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    monkeypatch.setattr(download, "SAVE_BYTES", 5_000)
    monkeypatch.setattr(download, "BLOCK_BYTES", 4_096)
    monkeypatch.setattr(download, "MAX_BYTES", 200_000)


def fetch(folder, *mirrors):
    return download.fetch(mirrors, folder, check)


def refused(folder, *mirrors):
    """Fetch what must fail, with one line that ends with the way by hand and no file in the cache."""
    with pytest.raises(UserError) as caught:
        fetch(folder, *mirrors)
    message = str(caught.value)
    assert message.isprintable()
    assert message.endswith(f"or download {mirrors[0].url} by hand and put the file here: {folder / mirrors[0].name}")
    return message


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


# --- what the server does ---------------------------------------------------------------------------

ETAG = '"one"'
SIZE = len(DATA)
HALF = SIZE // 2


def good(h):
    """Serve DATA as servers should, Range and If-Range included."""
    start = h.headers.get("Range")
    if start is None or h.headers.get("If-Range") != ETAG:
        return h.answer(DATA, ETag=ETAG)
    start = int(start[len("bytes=") : -1])
    return h.answer(DATA[start:], 206, ETag=ETAG, Content_Range=f"bytes {start}-{SIZE - 1}/{SIZE}")


def head(length=SIZE, *more):
    return "\r\n".join(["HTTP/1.1 200 OK", f"ETag: {ETAG}", f"Content-Length: {length}", *more, "", ""])


CHUNKED = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def cut(h):
    h.raw(head())
    h.raw(DATA[:HALF])


def stalls(h):
    cut(h)
    h.stall()


def reset(h):
    cut(h)
    h.wfile.flush()
    h.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    h.connection.close()


def drips(h):
    h.raw(head())
    h.drip(DATA)


def lies_short(h):
    h.raw(head(HALF))
    h.raw(DATA)


def unavailable_for_a_day(h):
    h.answer(b"", 503, Retry_After=86_400)


def unavailable_until_tomorrow(h):
    h.answer(b"", 503, Retry_After=formatdate(time.time() + 86_400, usegmt=True))


def continues_for_ever(h):
    while not h.server.over.wait(0.02):
        h.raw("HTTP/1.1 100 Continue\r\n\r\n")


def endless(h):
    h.raw(CHUNKED)
    while True:
        h.raw(b"1000\r\n" + bytes(4096) + b"\r\n")


def redirect_of(status, to, **headers):
    return lambda h: h.answer(b"", status, Location=to, **headers)


def endless_redirect(h):
    h.send_response(302)
    h.send_header("Location", h.path)
    h.end_headers()
    while True:
        h.raw(bytes(4096))


PASSING = {  # what another attempt may mend
    "hangs up without an answer": lambda h: None,
    "answers in another protocol": lambda h: h.raw("SSH-2.0-OpenSSH_9\r\n"),
    "cuts in the middle": cut,
    "stalls in the middle": stalls,
    "stalls before the header": lambda h: h.stall(),
    "stalls in the header": lambda h: (h.raw("HTTP/1.1 200 OK\r\nETag: "), h.stall()),
    "drips the header": lambda h: h.drip(head().encode()),
    "drips the body": drips,
    "resets the connection": reset,
    "says more than it sends": lambda h: (h.raw(head(SIZE + 9)), h.raw(DATA)),
    "says more than it sends, and waits": lambda h: (h.raw(head(SIZE + 9)), h.raw(DATA), h.stall()),
    "answers 500": lambda h: h.answer(b"oops", 500),
    "answers 502": lambda h: h.answer(b"oops", 502),
    "answers 503 for a day": unavailable_for_a_day,
    "answers 503 until tomorrow": unavailable_until_tomorrow,
    "answers 503 until nonsense": lambda h: h.answer(b"", 503, Retry_After="soon"),
    "answers 429": lambda h: h.answer(b"", 429),
    "answers 408": lambda h: h.answer(b"", 408),
    "answers 416 to the whole": lambda h: h.answer(b"", 416),
    "cuts a chunk": lambda h: (h.raw(CHUNKED + "8000\r\n"), h.raw(DATA[:9000])),
    "leaves out the last chunk": lambda h: (h.raw(CHUNKED + "8000\r\n"), h.raw(DATA[:0x8000]), h.raw("\r\n")),
    "sends a chunk of no size": lambda h: h.raw(CHUNKED + "many\r\nabc"),
    "sends endless 100 Continue": continues_for_ever,
    "sends a thousand header lines": lambda h: h.raw("HTTP/1.1 200 OK\r\n" + "X: y\r\n" * 1000 + "\r\n"),
    "sends a header line without end": lambda h: h.raw("HTTP/1.1 200 OK\r\nX: " + "y" * 100_000),
}
SLOW = [fault for fault in PASSING if any(word in fault for word in ("stalls", "drips", "waits", "endless"))]
LASTING = {  # what is left for the next mirror
    "answers 404": lambda h: h.answer(b"gone", 404),
    "answers 403": lambda h: h.answer(b"", 403),
    "answers 410": lambda h: h.answer(b"", 410),
    "answers 401": lambda h: h.answer(b"", 401, WWW_Authenticate="Basic"),
    "answers 204": lambda h: h.answer(b"", 204),
    "answers 304": lambda h: h.answer(b"", 304, Content_Length=None),
    "answers 206 to the whole": lambda h: h.answer(DATA[:HALF], 206, Content_Range=f"bytes 0-{HALF - 1}/{SIZE}"),
    "answers 206 with all to the whole": lambda h: h.answer(DATA, 206, Content_Range=f"bytes 0-{SIZE - 1}/{SIZE}"),
    "redirects nowhere": lambda h: h.answer(b"", 302),
    "redirects in a loop": lambda h: h.answer(b"", 302, Location=h.path),
    "redirects in a loop, with endless bodies": endless_redirect,
    "redirects to http": redirect_of(301, "http://example.invalid/w.bin"),
    "redirects to http without a scheme": redirect_of(307, "//example.invalid/w.bin"),
    "redirects to a name like the loopback's": redirect_of(302, "http://127.0.0.1.example.invalid/w.bin"),
    "redirects around the parser": redirect_of(302, "http://example.invalid\\@127.0.0.1/w.bin"),
    "redirects to a user at the loopback": redirect_of(302, "http://me@127.0.0.1/w.bin"),
    "redirects to a file": redirect_of(302, "file:///etc/passwd"),
    "redirects to ftp": redirect_of(308, "ftp://127.0.0.1/w.bin"),
    "redirects to no address": redirect_of(302, "http://[/"),
    "redirects to an impossible port": redirect_of(302, "http://127.0.0.1:99999/"),
    "redirects to bytes": redirect_of(302, "http://\x80\xff\x01/"),
    "sends gzip": lambda h: h.answer(DATA, Content_Encoding="gzip"),
    "says a length of letters": lambda h: h.raw(head("many") + "x"),
    "says a negative length": lambda h: h.raw(head(-5) + "x"),
    "says two lengths": lambda h: (h.raw(head(5, f"Content-Length: {SIZE}")), h.raw(DATA)),
    "says an enormous length": lambda h: h.raw(head(10**15)),
    "says less than it sends": lies_short,
    "says that there is nothing": lambda h: h.raw(head(0)),
    "sends without end": endless,
    "sends a page instead": lambda h: h.answer(b"<html>Please log in to the network"),
    "sends zeros": lambda h: h.answer(bytes(SIZE)),
    "sends a half as if it were all": lambda h: h.answer(DATA[:HALF], ETag=ETAG),
    "sends a half as chunks": lambda h: (h.raw(CHUNKED + "100\r\n"), h.raw(DATA[:256]), h.raw("\r\n0\r\n\r\n")),
    "sends a half and closes, without a length": lambda h: h.answer(DATA[:HALF], Content_Length=None),
}


def impatient(monkeypatch):
    for name, seconds in {"READ": 0.25, "ANSWER": 0.4, "RATE": 0.25}.items():
        monkeypatch.setattr(download, f"{name}_SECONDS", seconds)


@pytest.mark.parametrize("fault", [*PASSING, *LASTING])
def test_nothing_half_written_is_taken_for_whole(server, tmp_path, fault, monkeypatch):
    """Whatever one mirror does for ever: without a next one there is no file, else the next one is taken."""
    if fault in SLOW:
        impatient(monkeypatch)
    act = {**PASSING, **LASTING}[fault]
    bad = server.file(act, name="bad.bin")
    message = refused(tmp_path / "alone", bad)
    assert bad.url in message and not (tmp_path / "alone/bad.bin").exists()
    assert len(server.requests(bad)) == (2 if fault in PASSING else 6 if "in a loop" in fault else 1)
    if fault not in SLOW:
        path = fetch(tmp_path / "two", server.file(act, name="bad.bin", md5=MD5), server.file(good, md5=MD5))
        assert path == tmp_path / "two/w.bin" and path.read_bytes() == DATA
        assert not (tmp_path / "two/bad.bin").exists()


@pytest.mark.parametrize(
    ("fault", "digest"), [(f, d) for f in PASSING for d in ("md5", "none") if d == "none" or f not in SLOW]
)
def test_a_passing_fault_costs_an_attempt(server, tmp_path, fault, digest, monkeypatch):
    if fault in SLOW:
        impatient(monkeypatch)
    monkeypatch.setattr(download, "ATTEMPTS", 10)
    file = server.file(PASSING[fault], good, **DIGESTS[digest])
    assert fetch(tmp_path, file).read_bytes() == DATA
    wanted = 3 if "says more" in fault else 2  # the length turns out to be a lie
    assert len(server.requests(file)) == wanted or fault in SLOW  # where a busy machine may be slow, too
    assert names(tmp_path) == ["w.bin"] if digest == "md5" else ["w.bin", "w.bin.sha256"]


# --- going on ---------------------------------------------------------------------------------------


def rest(shift=0, etag=ETAG, total=SIZE, content_range=None, body=lambda at: DATA[at:], **headers):
    """An answer to a Range that may be wrong in one respect."""

    def act(h):
        at = int(h.headers["Range"][len("bytes=") : -1])
        span = f"bytes {at + shift}-{SIZE - 1}/{total}" if content_range is None else content_range or None
        h.answer(body(at + shift), 206, ETag=etag, Content_Range=span, **headers)

    return act


RESUMING = {  # what a request for the rest may meet, and where the requests after it begin
    "sends the rest": (rest(), []),
    "sends a part of the rest": (rest(body=lambda at: DATA[at : at + 10_000]), [HALF + 10_000]),
    "cuts the rest": (rest(body=lambda at: DATA[at : at + 10_000], Content_Length=SIZE - HALF), [HALF + 10_000]),
    "sends from another place": (rest(shift=-5, body=lambda at: DATA[at:-12] + DATA[-7:]), [0]),
    "sends the rest of a longer file": (rest(total=SIZE + 1), [0]),
    "sends the rest of a file of unknown length": (rest(total="*"), [0]),
    "sends the rest of another file": (rest(etag='"two"', body=lambda at: OTHER[at:]), [0]),
    "sends a rest without its ETag": (rest(etag=None), [0]),
    "sends a rest without a Content-Range": (rest(content_range=""), [0]),
    "sends a rest with a Content-Range of words": (rest(content_range="bytes the rest"), [0]),
    "sends more than the rest": (rest(body=lambda at: DATA[at:] + b"more"), [0]),
    "sends zeros under the same ETag": (rest(body=lambda at: bytes(SIZE - at)), [0]),
    "sends the whole": (lambda h: h.answer(DATA, ETag=ETAG), []),
    "sends a whole that is cut earlier": (lambda h: (h.raw(head()), h.raw(DATA[:9_000])), [9_000]),
    "answers 416": (lambda h: h.answer(b"", 416, Content_Range=f"bytes */{SIZE}"), [0]),
    "answers 416 of a short file": (lambda h: h.answer(b"", 416, Content_Range="bytes */7"), [0]),
    "answers 503": (lambda h: h.answer(b"", 503), [HALF]),
    "hangs up": (lambda h: None, [HALF]),
}


def starts(server, file):
    return [int(h.headers.get("Range", "bytes=0-")[len("bytes=") : -1]) for h in server.requests(file)]


@pytest.mark.parametrize("digest", ["md5", "none"])
@pytest.mark.parametrize("fault", RESUMING)
def test_going_on_after_a_cut(server, tmp_path, fault, digest, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 5)
    act, later = RESUMING[fault]
    file = server.file(cut, act, good, **DIGESTS[digest])
    assert fetch(tmp_path, file).read_bytes() == DATA
    assert starts(server, file) == [0, HALF, *later]
    assert server.requests(file)[1].headers["If-Range"] == ETAG
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize("digest", DIGESTS)
def test_another_file_for_the_rest_is_taken_from_its_start(server, tmp_path, digest):
    """The server's file changed between two attempts: If-Range makes it send the new one whole."""
    digests = {"md5": {"md5": hashlib.md5(OTHER).hexdigest()}}.get(digest, {})
    file = server.file(cut, lambda h: h.answer(OTHER, ETag='"two"'), **digests)
    assert fetch(tmp_path, file).read_bytes() == OTHER


@pytest.mark.parametrize(
    ("headers", "if_range"),
    [
        ({"ETag": 'W/"weak"', "Last_Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, "Mon, 01 Jan 2024 00:00:00 GMT"),
        ({"Last_Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, "Mon, 01 Jan 2024 00:00:00 GMT"),
        ({"ETag": 'W/"weak"'}, None),
        ({}, None),
    ],
)
def test_only_a_strong_promise_lets_a_part_go_on(server, tmp_path, headers, if_range):
    def begin(h):
        h.answer(DATA[:HALF], Content_Length=SIZE, **headers)

    def go_on(h):
        if "Range" not in h.headers:
            return h.answer(DATA, **headers)
        return h.answer(DATA[HALF:], 206, Content_Range=f"bytes {HALF}-{SIZE - 1}/{SIZE}", **headers)

    file = server.file(begin, go_on)
    assert fetch(tmp_path, file).read_bytes() == DATA
    second = server.requests(file)[1].headers
    assert second["If-Range"] == if_range and ("Range" in second) == bool(if_range)


def test_a_later_call_goes_on_and_a_long_download_may_be_cut_often(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PROGRESS_BYTES", 3_000)
    file = server.file(cut, lambda h: h.answer(b"", 403), md5=MD5)
    refused(tmp_path, file)
    server.scripts[f"/0/{file.name}"] = [rest(body=lambda at: DATA[at : at + 4_000])]
    assert fetch(tmp_path, file).read_bytes() == DATA  # eight attempts, where two in vain would be the end
    assert starts(server, file) == [0, HALF, *range(HALF, SIZE, 4_000)]


@pytest.mark.parametrize(
    "harm", ["part gone", "part shorter", "note of nothing", "note of another", "note of words", "note of too much"]
)
def test_a_part_that_its_note_does_not_describe_is_begun_anew(server, tmp_path, harm):
    file = server.file(cut, lambda h: h.answer(b"", 403), good, md5=MD5)
    refused(tmp_path, file)
    part, note = tmp_path / "w.bin.part", tmp_path / "w.bin.part.from"
    content = json.loads(note.read_text())
    if harm == "part gone":
        part.unlink()
    elif harm == "part shorter":
        part.write_bytes(DATA[:100])
    else:
        change = {
            "note of nothing": None,
            "note of another": {"url": "https://x/y"},
            "note of words": {"done": "all"},
            "note of too much": {"total": 5},
        }
        note.write_text(json.dumps({**content, **change[harm]}) if change[harm] else "")
    assert fetch(tmp_path, file).read_bytes() == DATA
    assert starts(server, file)[2:] == [0]


@pytest.mark.parametrize("digest", DIGESTS)
def test_a_part_damaged_on_the_disk_is_found_out(server, tmp_path, digest):
    """Where no digest is published only what reads the file can tell; here its end is damaged."""
    file = server.file(cut, lambda h: h.answer(b"", 403), good, **DIGESTS[digest])
    refused(tmp_path, file)
    with open(tmp_path / "w.bin.part", "r+b") as stream:
        stream.write(bytes(50))
    if digest != "none":
        assert fetch(tmp_path, file).read_bytes() == DATA
        assert starts(server, file) == [0, HALF, HALF, 0]


CHILD = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from ppconvmixer import download
download.SAVE_BYTES = 5_000
file = download.PublishedFile(sys.argv[1], "timm", md5=sys.argv[3] or None)
print(download.fetch([file], Path(sys.argv[2]), lambda path: None), flush=True)
"""


def child(file, folder, **options):
    command = [sys.executable, "-c", CHILD.format(root=str(ROOT)), file.url, str(folder), file.md5 or ""]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("digest", ["md5", "none"])
def test_a_killed_download_goes_on(server, tmp_path, digest):
    file = server.file(stalls, good, **DIGESTS[digest])
    process, note = child(file, tmp_path), tmp_path / "w.bin.part.from"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not note.exists():
        time.sleep(0.01)
    process.kill()
    process.communicate()
    done = json.loads(note.read_text())["done"]
    with open(tmp_path / "w.bin.part", "r+b") as stream:  # bytes that were not yet known to be on the disk
        stream.seek(done)
        stream.write(bytes(SIZE))
    assert not (tmp_path / "w.bin").exists()
    assert fetch(tmp_path, file).read_bytes() == DATA
    assert starts(server, file) == [0, done] and done >= 5_000


def test_a_download_killed_before_its_arrival_needs_no_server(server, tmp_path):
    file = server.file(lambda h: h.answer(b"", 404), md5=MD5)
    (tmp_path / "w.bin.part").write_bytes(DATA)
    note = {"url": file.url, "validator": ETAG, "total": SIZE, "done": SIZE}
    (tmp_path / "w.bin.part.from").write_text(json.dumps(note))
    assert fetch(tmp_path, file).read_bytes() == DATA
    assert not server.requests(file)


# --- many processes ---------------------------------------------------------------------------------


def test_ten_processes_download_once(server, tmp_path):
    gate = threading.Barrier(2)

    def slow(h):
        gate.wait(60)
        good(h)

    file = server.file(slow, md5=MD5)
    processes = [child(file, tmp_path) for _ in range(10)]
    time.sleep(0.5)  # some wait for the lock, others come later
    gate.wait(60)
    for process in processes:
        output, error = process.communicate(timeout=60)
        assert output == f"{tmp_path / 'w.bin'}\n", error
    assert len(server.requests(file)) == 1
    assert (tmp_path / "w.bin").read_bytes() == DATA and names(tmp_path) == ["w.bin"]


def test_waiting_for_another_process_is_said(server, tmp_path, caplog):
    file = server.file(good, md5=MD5)
    first = download._Place(file, tmp_path, check)
    found = []
    with caplog.at_level("INFO", logger="ppconvmixer"):
        with first.locked():
            waiter = threading.Thread(target=lambda: found.append(fetch(tmp_path, file)))
            waiter.start()
            deadline = time.monotonic() + 30
            while "waiting for another process" not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not server.requests(file)
        waiter.join()
    assert found == [tmp_path / "w.bin"] and "waiting for another process" in caplog.text


def test_a_file_system_without_locks_is_named(server, tmp_path, monkeypatch):
    import filelock

    def no_locks(*_, **__):
        raise NotImplementedError("flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    assert "no locks; set PPCONVMIXER_HOME" in refused(tmp_path, server.file(good))


# --- digests, pins and files put there by hand ------------------------------------------------------


@pytest.mark.parametrize("digest", ["md5", "sha256", "prefix"])
def test_a_wrong_digest_is_named_and_the_next_mirror_taken(server, tmp_path, digest, caplog):
    wrong = server.file(lambda h: h.answer(OTHER, ETag='"other"'), name="wrong.bin", **DIGESTS[digest])
    right = server.file(good, name="right.bin", md5=MD5)
    message = refused(tmp_path, wrong)
    (published,) = DIGESTS[digest].values()
    found = (hashlib.md5 if digest == "md5" else hashlib.sha256)(OTHER).hexdigest()
    assert published in message and found in message and names(tmp_path) == []
    assert fetch(tmp_path, wrong, right).read_bytes() == DATA
    assert "trying the next mirror" in caplog.text and names(tmp_path) == ["right.bin"]


def test_a_wrong_size_is_refused_before_the_download(server, tmp_path):
    message = refused(tmp_path, server.file(good, bytes=SIZE + 1))
    assert f"{SIZE}" in message and f"{SIZE + 1}" in message and names(tmp_path) == []
    chunked = server.file(LASTING["sends a half as chunks"], bytes=SIZE)
    assert "it has 256 bytes" in refused(tmp_path, chunked)
    assert fetch(tmp_path, server.file(good, bytes=SIZE)).read_bytes() == DATA


def test_a_length_must_be_said_or_a_digest_published(server, tmp_path):
    def until_it_closes(h):
        h.answer(DATA, Content_Length=None)

    assert "does not say how long" in refused(tmp_path, server.file(until_it_closes))
    assert fetch(tmp_path, server.file(until_it_closes, md5=MD5)).read_bytes() == DATA


def test_every_mirror_is_named_in_the_one_line(server, tmp_path):
    files = [server.file(LASTING[f"answers {code}"], name=f"{code}.bin") for code in (404, 403, 410)]
    message = refused(tmp_path, *files)
    for file, code in zip(files, (404, 403, 410)):
        assert f"{file.url}: answers {code}" in message


def test_the_first_file_is_pinned_and_a_later_one_refused_until_the_user_says_so(server, tmp_path):
    file = server.file(good, lambda h: h.answer(OTHER, ETag='"two"'))
    pin = tmp_path / "w.bin.sha256"
    path = fetch(tmp_path, file)
    assert pin.read_text() == f"{SHA256}  w.bin\n"
    path.unlink()
    message = refused(tmp_path, file)
    assert SHA256 in message and hashlib.sha256(OTHER).hexdigest() in message and f"remove {pin}" in message
    assert names(tmp_path) == ["w.bin.sha256"]
    pin.unlink()
    assert fetch(tmp_path, file).read_bytes() == OTHER
    assert pin.read_text() == f"{hashlib.sha256(OTHER).hexdigest()}  w.bin\n"


def test_sha256sum_reads_a_pin(server, tmp_path):
    if not shutil.which("sha256sum"):
        pytest.skip("needs sha256sum")
    fetch(tmp_path, server.file(good))
    subprocess.run(["sha256sum", "-c", "w.bin.sha256"], cwd=tmp_path, check=True, capture_output=True)


def test_a_pin_that_is_none_pins_nothing_else(server, tmp_path):
    (tmp_path / "w.bin.sha256").write_bytes(b"\xff\n")
    assert f"remove {tmp_path / 'w.bin.sha256'}" in refused(tmp_path, server.file(good))


@pytest.mark.parametrize("digest", DIGESTS)
def test_a_file_damaged_in_the_cache_is_named_set_aside_and_fetched_again(
    server, tmp_path, digest, caplog, monkeypatch
):
    file = server.file(good, **DIGESTS[digest])
    path = fetch(tmp_path, file)
    assert fetch(tmp_path, file) == path and len(server.requests(file)) == 1
    path.write_bytes(DATA[:-1] + b"!")
    monkeypatch.setenv("PPCONVMIXER_OFFLINE", "1")
    assert f"{path} is not the published file" in refused(tmp_path, file)
    assert path.read_bytes() == DATA[:-1] + b"!"
    monkeypatch.setenv("PPCONVMIXER_OFFLINE", "0")
    for turn in ("w.bin.old", "w.bin.old1"):
        assert fetch(tmp_path, file).read_bytes() == DATA
        assert (tmp_path / turn).read_bytes() == DATA[:-1] + b"!" and turn in caplog.text
        path.write_bytes(DATA[:-1] + b"!")


@pytest.mark.parametrize("digest", DIGESTS)
def test_a_file_put_there_by_hand(server, tmp_path, digest, monkeypatch):
    """It is verified as a download is; offline, too."""
    file = server.file(good, **DIGESTS[digest])
    monkeypatch.setenv("PPCONVMIXER_OFFLINE", "1")
    message = refused(tmp_path, file)
    path = message.rpartition("put the file here: ")[2]
    with open(path, "wb") as stream:
        stream.write(DATA[:-1])
    assert f"{path} is not the published file" in refused(tmp_path, file)
    assert names(tmp_path) == ["w.bin"]
    with open(path, "wb") as stream:
        stream.write(DATA)
    assert str(fetch(tmp_path, file)) == path
    assert names(tmp_path) == ["w.bin"] + (["w.bin.sha256"] if digest in ("prefix", "none") else [])
    assert not server.requests(file)


def test_a_cached_file_of_a_later_mirror_needs_no_network(server, tmp_path):
    first, second = server.file(good, name="first.bin", md5=MD5), server.file(good, name="second.bin", md5=MD5)
    fetch(tmp_path, second)
    assert fetch(tmp_path, first, second) == tmp_path / "second.bin"
    assert not server.requests(first)


# --- addresses, proxies, TLS ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["http://example.invalid/w.bin", "ftp://127.0.0.1/w.bin", "file:///w.bin", "https://me:secret@127.0.0.1/w.bin",
     "http://127.0.0.1.example.invalid/w.bin", "http://127.1/w.bin", "http://[::ffff:7f00:1%x]:9/w.bin", "//127.0.0.1/w.bin"],
)  # fmt: skip
def test_only_https_and_the_loopback_are_asked(tmp_path, url, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("it connects"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("it looks for the address"))
    refused(tmp_path, PublishedFile(url, "timm"))


@pytest.mark.parametrize("host", ["localhost", "[::1]"])
def test_other_names_of_the_loopback(tmp_path, host, server):
    file = server.file(good, md5=MD5)
    url = file.url.replace("127.0.0.1", host)
    if host == "localhost":
        assert fetch(tmp_path, PublishedFile(url, "timm", md5=MD5)).read_bytes() == DATA
    else:  # nobody listens there, but it is asked
        assert "only https" not in refused(tmp_path, PublishedFile(url, "timm"))


def test_a_redirect_is_followed_and_the_manifest_names_the_file(server, tmp_path):
    target = server.file(good, name="signed")
    file = server.file(redirect_of(302, target.url + "?token=1"), md5=MD5)
    server.scripts["/0/signed?token=1"] = [good]
    assert fetch(tmp_path, file) == tmp_path / "w.bin"


def test_a_server_that_is_not_there(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        message = refused(tmp_path, PublishedFile(f"http://127.0.0.1:{unused.getsockname()[1]}/w.bin", "timm"))
    assert "refused" in message


def test_proxies_of_the_environment_are_used(server, tmp_path, monkeypatch):
    """The server is its own proxy here: it is asked for whole addresses, and to connect."""
    file = server.file(lambda h: h.answer(b"", 404), md5=MD5)
    server.scripts[file.url] = [good]
    server.scripts["weights.invalid:443"] = [lambda h: h.answer(b"", 403)]
    proxy = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert "answers 404" in refused(tmp_path, file)
    monkeypatch.delenv("NO_PROXY")
    assert fetch(tmp_path, file).read_bytes() == DATA
    assert [h.path for h in server.log] == ["/0/w.bin", file.url]
    message = refused(tmp_path, PublishedFile("https://weights.invalid/v.bin", "timm"))
    assert "403" in message and [h.path for h in server.log][2:] == ["weights.invalid:443"] * 2


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if not shutil.which("openssl"):
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    names = "subjectAltName=DNS:weights.invalid,IP:127.0.0.1"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=weights.invalid",
         "-addext", names, "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def tls(server, certificate, monkeypatch):
    """The server speaks TLS, and weights.invalid is this machine."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    genuine = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *a, **k: genuine("127.0.0.1" if host == "weights.invalid" else host, *a, **k),
    )
    return server


def test_an_unknown_certificate_is_refused_at_once(tls, tmp_path, certificate, monkeypatch, caplog):
    caplog.set_level("INFO", logger="ppconvmixer")
    file = tls.file(good, md5=MD5)
    file = PublishedFile(file.url.replace("http://127.0.0.1", "https://weights.invalid"), "timm", md5=MD5)
    assert "certificate verify failed" in refused(tmp_path, file) and not tls.log
    assert "trying again" not in caplog.text
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate / "cert.pem"))
    assert fetch(tmp_path, file).read_bytes() == DATA


def test_https_is_not_led_to_http_not_even_on_this_machine(tls, tmp_path, certificate, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate / "cert.pem"))
    plain = Server()
    target = plain.file(good)
    file = tls.file(redirect_of(302, target.url))
    file = PublishedFile(file.url.replace("http://127.0.0.1", "https://weights.invalid"), "timm")
    assert f"leads to {target.url}; only https" in refused(tmp_path, file)
    assert not plain.log and len(tls.log) == 1
    plain.shutdown()
    plain.server_close()


# --- the disk ---------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_found_out_before_the_download(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 500, 500))
    message = refused(tmp_path, server.file(good), server.file(good))
    assert "No space left on device (0.1 MB wanted, 0.0 MB free)" in message and str(tmp_path) in message
    assert len(server.log) == 1 and names(tmp_path) == []  # no other mirror helps


@pytest.mark.skipif(os.name != "posix", reason="limits on the size of files are a matter of POSIX")
def test_a_write_that_fails_in_the_middle_leaves_nothing(server, tmp_path):
    import resource

    file = server.file(good, md5=MD5)
    process = child(file, tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)))
    output, error = process.communicate(timeout=60)
    last = error.strip().splitlines()[-1]
    assert output == "" and "File too large" in last and last.endswith(f"put the file here: {tmp_path / 'w.bin'}")
    assert names(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the right to mount a small tmpfs: {error}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("known", [True, False])
def test_a_full_disk(server, small_disk, known):
    """With a length it is found out before, without one in the middle."""

    def large(h):
        if known:
            return h.raw(head(150_000)), h.raw(bytes(150_000))
        h.raw(CHUNKED)
        for _ in range(40):
            h.raw(b"1000\r\n" + bytes(4096) + b"\r\n")
        return h.raw(b"0\r\n\r\n")

    message = refused(small_disk, server.file(large, md5=MD5))
    assert "No space left on device" in message and str(small_disk) in message
    assert names(small_disk) == []
    assert shutil.disk_usage(small_disk).used < 20_000  # what came is not left to fill the disk


def test_a_cache_that_cannot_be_written(server, small_disk, tmp_path):
    (tmp_path / "file").write_text("mine")
    file = server.file(good, md5=MD5)
    message = refused(tmp_path / "file/cache", file)
    assert "Not a directory; set PPCONVMIXER_HOME" in message and (tmp_path / "file").read_text() == "mine"
    fetch(small_disk, small := server.file(lambda h: h.answer(b"THE END"), name="small.bin"))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert "Read-only file system" in refused(small_disk, file)
    assert fetch(small_disk, small).read_bytes() == b"THE END"  # a shared cache may be read-only


def test_a_folder_in_the_place_of_the_file(server, tmp_path):
    (tmp_path / "w.bin").mkdir()
    assert "Is a directory" in refused(tmp_path, server.file(good, md5=MD5))


# --- the entries, the folder, the bar ---------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [{"url": "https://x/"}, {"url": "https://x/.."}, {"url": "https://x/a%2fb"}, {"url": "https://x/.hidden"}, {"bytes": 0},
     {"md5": "0" * 31}, {"md5": ""}, {"sha256": SHA256.upper()}, {"sha256": SHA256[:8]}, {"sha256_prefix": "abc"}],
)  # fmt: skip
def test_an_entry_of_another_form_is_refused(entry):
    with pytest.raises(ValueError, match="not the form"):
        PublishedFile(**{"url": "https://x/y.bin", "layout": "timm", **entry})


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("PPCONVMIXER_HOME", str(tmp_path / "here"))
    assert download.home() == tmp_path / "here"
    monkeypatch.setenv("PPCONVMIXER_HOME", "relative")
    assert download.home().is_absolute()
    monkeypatch.setenv("PPCONVMIXER_HOME", "~nobody-of-that-name/x")
    with pytest.raises(UserError, match="PPCONVMIXER_HOME=~nobody-of-that-name/x"):
        download.home()
    monkeypatch.setenv("PPCONVMIXER_HOME", "")
    import platformdirs

    assert download.home() == platformdirs.user_cache_path("ppconvmixer", appauthor=False)


@pytest.mark.parametrize(("value", "off"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_the_offline_switch(server, tmp_path, monkeypatch, value, off):
    monkeypatch.setenv("PPCONVMIXER_OFFLINE", value)
    file = server.file(good, md5=MD5)
    if off:
        assert "PPCONVMIXER_OFFLINE is set" in refused(tmp_path, file) and not server.log
        (tmp_path / "w.bin").write_bytes(DATA)
    assert fetch(tmp_path, file).read_bytes() == DATA
    assert len(server.log) == (0 if off else 1)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal_and_lines_elsewhere(server, tmp_path, monkeypatch, caplog):
    from ppconvmixer import progress

    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level("INFO", logger="ppconvmixer"):
        fetch(tmp_path / "lines", server.file(cut, good, md5=MD5))
        fetch(tmp_path / "unknown", server.file(lambda h: h.answer(DATA, Content_Length=None), md5=MD5))
    assert "w.bin: 60.0kB of 60.0kB, " in caplog.text and "B/s, 00:00 left" in caplog.text
    assert "w.bin: 60.0kB, " in caplog.text
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("tqdm.tqdm.mininterval", 0, raising=False)
    fetch(tmp_path / "bar", server.file(good, md5=MD5))
    assert "w.bin: " in terminal.getvalue() and "60.0k" in terminal.getvalue()


def test_what_lists_models_imports_no_network():
    code = (
        "import sys; from ppconvmixer.cli import main; main(['models'])\n"
        "assert not {'requests', 'urllib3', 'filelock', 'paddle', 'tqdm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


# --- from the model to the file ---------------------------------------------------------------------

TINY = {"dim": 64, "depth": 4, "kernel_size": 5, "patch_size": 4, "num_classes": 10}


@pytest.fixture
def published(server, tmp_path, monkeypatch):
    """convmixer_tiny is published in four layouts, as the real ones are; its weights differ with the layout."""
    monkeypatch.setenv("PPCONVMIXER_HOME", str(tmp_path / "home"))
    entries = []
    for seed, layout in enumerate(("paddle-toolbox", "official", "timm", "mmpretrain")):
        name = f"{layout}.{'pdparams' if seed == 0 else 'safetensors'}"
        content = write_layout(tmp_path / name, random_state(seed, **TINY), layout).read_bytes()
        digests = [
            {"md5": hashlib.md5(content).hexdigest()},
            {},
            {},
            {"sha256_prefix": hashlib.sha256(content).hexdigest()[:8]},
        ]
        file = server.file(lambda h, content=content: h.answer(content), name=name)
        entries.append({"url": file.url, "layout": layout, **digests[seed]})
    manifest = {"convmixer_tiny": {"top1": 0.5, "top5": 0.9, "data": "a test", "source": "a test", "files": entries}}
    monkeypatch.setattr(zoo, "manifest", lambda: manifest)
    monkeypatch.setattr(download, "MAX_BYTES", 10**6)
    return entries


def is_filled(model, seed):
    return (model.state_dict()["stem.0.weight"].numpy() == random_state(seed, **TINY)["stem.0.weight"]).all()


def test_a_model_takes_its_published_weights(published, server, tmp_path):
    assert is_filled(ppconvmixer.create_model("convmixer_tiny", pretrained=True), 0)
    assert is_filled(ppconvmixer.convmixer_tiny(pretrained=True), 0) and len(server.log) == 1
    for seed, layout in enumerate(layouts_in_order(published)):
        assert is_filled(ppconvmixer.convmixer_tiny(pretrained=layout), seed)
    assert ppconvmixer.convmixer_tiny(pretrained=True, num_classes=3).num_classes == 3
    assert len(server.log) == 4
    folder = tmp_path / "home/convmixer_tiny"
    assert names(folder) == sorted(
        [f"{e['url'].rpartition('/')[2]}" for e in published]
        + [f"{n}.safetensors.sha256" for n in ("official", "timm", "mmpretrain")]
    )


def layouts_in_order(published):
    return [entry["layout"] for entry in published]


def test_the_next_mirror_serves_the_model(published, server):
    server.scripts["/0/paddle-toolbox.pdparams"] = [lambda h: h.answer(b"", 404)]
    server.scripts["/1/official.safetensors"] = [lambda h: h.answer(OTHER)]
    assert is_filled(ppconvmixer.convmixer_tiny(pretrained=True), 2)


def test_a_checkpoint_that_is_cut_or_another_is_never_pinned(published, server, tmp_path):
    """timm's file has no published digest: what reads it must tell."""
    whole = (tmp_path / "timm.safetensors").read_bytes()
    small = write_layout(tmp_path / "s.safetensors", random_state(**{**TINY, "depth": 3})).read_bytes()
    for content in (whole[:-1], whole[:1000], whole[:8], b"", whole + b"x", small):
        server.scripts["/2/timm.safetensors"] = [lambda h, content=content: h.answer(content)]
        with pytest.raises(UserError, match="put the file here: .*home/convmixer_tiny/timm.safetensors$"):
            ppconvmixer.convmixer_tiny(pretrained="timm")
        assert names(tmp_path / "home/convmixer_tiny") == []


def test_words_and_paths(published, tmp_path, monkeypatch):
    path = tmp_path / "timm.safetensors"
    assert zoo.find_weights("convmixer_tiny", path) == path
    assert zoo.find_weights(None, str(path)) == str(path)
    assert zoo.find_weights(None, "./timm") == "./timm"
    with pytest.raises(UserError, match="--model is missing"):
        zoo.find_weights(None, "pretrained")
    with pytest.raises(UserError, match="no weights of convmixer_256_8 are published; published: convmixer_tiny"):
        zoo.find_weights("convmixer_256_8", "timm")
    published.pop(1)
    with pytest.raises(UserError, match="no official weights of convmixer_tiny.*paddle-toolbox, timm, mmpretrain"):
        zoo.find_weights("convmixer_tiny", "official")


@pytest.fixture
def listed(class_folders, tmp_path):
    """Ten-class labels for the pictures, as a list."""
    (tmp_path / "list.txt").write_text("cat/cat 0.png 3\ndog/dog 1.png 9\n")
    return "--data", str(class_folders / "val"), "--list", str(tmp_path / "list.txt")


@pytest.mark.parametrize("weights", ["pretrained", "timm"])
def test_eval_and_predict_take_published_weights(published, tmp_path, listed, weights, capsys, class_folders):
    network = ("--model", "convmixer_tiny", "--weights", weights)
    assert cli.main(["eval", *network, *listed, "--output", str(tmp_path / "r.json"), "--workers", "0"]) == 0
    name = "timm.safetensors" if weights == "timm" else "paddle-toolbox.pdparams"
    path = tmp_path / "home/convmixer_tiny" / name
    found = json.loads((tmp_path / "r.json").read_text())["weights"]
    assert found == {"path": str(path), "sha256": hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}
    assert cli.main(["predict", *network, str(class_folders / "val/cat/cat 0.png")]) == 0
    capsys.readouterr()
    assert cli.main(["eval", *network, *listed, "--output", str(path)]) == 2
    assert "is an input of this command" in capsys.readouterr().err
    assert cli.main(["eval", "--weights", weights, *listed]) == 2
    assert "--model is missing" in capsys.readouterr().err


def test_a_failed_download_is_one_line(published, server, listed, capsys):
    server.scripts["/2/timm.safetensors"] = [LASTING["answers 404"]]
    assert cli.main(["eval", "--model", "convmixer_tiny", "--weights", "timm", *listed]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ppconvmixer: error: ")]
    assert line.endswith("put the file here: " + str(download.home() / "convmixer_tiny/timm.safetensors"))


def test_a_recipe_takes_published_weights(published):
    settings = recipe.load("digits", ["model.name=convmixer_tiny", "model.weights=timm"])
    assert is_filled(finetune._network(settings, None, 10), 2)


def test_models_says_what_is_published_and_what_is_in_the_cache(published, capsys, tmp_path):
    assert cli.main(["models", "*_tiny"]) == 0
    before = capsys.readouterr().out.splitlines()
    ppconvmixer.convmixer_tiny(pretrained="timm")
    ppconvmixer.convmixer_tiny(pretrained="official")
    (tmp_path / "home/convmixer_tiny/mmpretrain.safetensors.part").write_bytes(b"half")
    assert cli.main(["models", "*_tiny"]) == 0
    after = capsys.readouterr().out.splitlines()
    assert before[1].split()[-8:] == ["50.00", "%", "/", "90.00", "%,", "a", "test", "-"]
    assert after[1].endswith("official, timm")
    assert after[2].endswith("--weights pretrained, or one of paddle-toolbox, official, timm, mmpretrain")
    assert after[3] == f"cache: {tmp_path / 'home'}"
