"""Published files: fetched once, verified, and kept in a cache.

Beside ``NAME`` in the cache stand, as needed: ``NAME.part``, what has come so far; ``NAME.part.from``, where
that came from and how much of it is safely on the disk; ``NAME.sha256``, the pin: the digest of the first file
where none is published; and ``NAME.lock``. A part is verified before it takes the name, in one step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import errno
import functools
import ipaddress
import itertools
import json
import logging
import os
import queue
import random
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Callable, Optional, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

from . import files
from .errors import UserError, said

if TYPE_CHECKING:  # requests takes a quarter of a second to import
    from requests import Response

logger = logging.getLogger("ppconvmixer")
T = TypeVar("T")

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
"""Without a single byte."""
ANSWER_SECONDS = 60.0
"""Until the header of the answer is here, redirects and all."""
RATE_SECONDS = 30.0
MIN_RATE = 1000.0
"""Bytes a second; slower over ``RATE_SECONDS`` is a stall."""
ATTEMPTS = 5
"""On one mirror, one after the other without ``PROGRESS_BYTES`` of progress."""
PROGRESS_BYTES = 1 << 20
BACKOFF_SECONDS = 1.0
"""Before the second attempt; doubles with every further one."""
MAX_WAIT_SECONDS = 60.0
MAX_REDIRECTS = 5
MAX_BYTES = 2 << 30
"""Of a file whose size is not published; the largest published one has 0.2 GB."""
BLOCK_BYTES = 1 << 18
SAVE_BYTES = 8 << 20
"""So often a growing part is made safe on the disk."""
LOCK_SECONDS = 2.0
"""Before it is said that another process is waited for."""


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """An entry of the manifest.

    Args:
        url: its last part names the file in the cache.
        layout: see ``layouts.LAYOUTS``; also the tag of the file.
        bytes: its size, where it is known.
        md5, sha256: published hexadecimal digests.
        sha256_prefix: the published beginning of one.

    Raises:
        ValueError: an entry is not of this form.
    """

    url: str
    layout: str
    bytes: Optional[int] = None
    md5: Optional[str] = None
    sha256: Optional[str] = None
    sha256_prefix: Optional[str] = None

    def __post_init__(self) -> None:
        digests = ((self.md5, "{32}"), (self.sha256, "{64}"), (self.sha256_prefix, "{8,63}"))
        right = [re.fullmatch("[0-9a-f]" + length, digest) for digest, length in digests if digest is not None]
        if not all([*right, re.fullmatch(r"\w[\w.+-]*", self.name), self.bytes is None or self.bytes > 0]):
            raise ValueError(f"not the form of a published file: {self}")

    @property
    def name(self) -> str:
        """The name in the cache."""
        return unquote(urlsplit(self.url).path.rpartition("/")[2])


def home() -> Path:
    """Return the cache folder: ``PPCONVMIXER_HOME``, or the platform's place for caches.

    Raises:
        UserError: it begins with ``~`` and nobody knows whose home that is.
    """
    chosen = os.environ.get("PPCONVMIXER_HOME")
    if chosen:
        try:
            return Path(chosen).expanduser().absolute()
        except RuntimeError as error:
            raise UserError(f"PPCONVMIXER_HOME={chosen}: {said(error)}") from error
    import platformdirs

    return platformdirs.user_cache_path("ppconvmixer", appauthor=False)


def offline() -> bool:
    """Tell whether ``PPCONVMIXER_OFFLINE`` forbids the network (anything but 0 and nothing does)."""
    return os.environ.get("PPCONVMIXER_OFFLINE", "") not in ("", "0")


def fetch(mirrors: Sequence[PublishedFile], folder: Path, check: Callable[[Path], object]) -> Path:
    """Return the path of the first of ``mirrors`` that is in ``folder``, else download the first that comes whole.

    A file is taken for whole when its digest is the published one. Where none is published, ``check`` must
    read the first file; its sha256 is then pinned, and decides from then on. A file that fails is never
    deleted: it stays, or is set aside when a whole one has come.

    Args:
        check: raises ``UserError`` for a file that is not what it should be.

    Raises:
        UserError: no mirror has the file whole, the switch is offline, or the folder cannot be written. The
            message ends with the address to download by hand and the path to put the file at.
    """
    places = [_Place(file, folder, check) for file in mirrors]
    reasons: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)  # for the user who puts a file there, too
        path = _cached(places, reasons) or _downloaded(places, reasons)
    except OSError as error:
        path = None
        reasons += [f"{error.filename or folder}: {error.strerror or error}"]
        reasons += ["set PPCONVMIXER_HOME to a folder with room that you may write to"]
    except UserError as error:
        path = None
        reasons.append(str(error))
    if path:
        return path
    by_hand = f"or download {mirrors[0].url} by hand and put the file here: {places[0].path}"
    raise UserError(f"cannot get {mirrors[0].name}: {'; '.join([*reasons, by_hand])}")


def _cached(places: Sequence[_Place], reasons: list[str]) -> Optional[Path]:
    """Return the first file that is in the cache and whole; add to ``reasons`` what is wrong with others."""
    for place in places:
        if place.path.exists():
            try:
                place.verify(place.path)
                return place.path
            except _Failure as error:
                reasons.append(f"{place.path} is not the published file: {error}")
                logger.warning("%s", reasons[-1])
    return None


def _downloaded(places: Sequence[_Place], reasons: list[str]) -> Optional[Path]:
    """Download the first file that comes whole; add to ``reasons`` why others do not."""
    if offline():
        reasons.append("PPCONVMIXER_OFFLINE is set, so nothing is downloaded")
        return None
    for place in places:
        try:
            with place.locked():
                _bring(place)
            return place.path
        except _Failure as error:
            reasons.append(f"{place.file.url}: {error}")
            if place is not places[-1]:
                logger.warning("%s; trying the next mirror", reasons[-1])
    return None


class _Failure(Exception):
    """Why a file is not to be had here.

    Args:
        again: another attempt may do better.
        wait: seconds the server asks to wait before it.
        spoilt: what has come so far is of no use.
    """

    def __init__(self, reason: str, again: bool = False, wait: float = 0.0, spoilt: bool = False):
        super().__init__("".join(c if c.isprintable() else "?" for c in reason)[:1000])  # servers have a say in it
        self.again, self.wait, self.spoilt = again, wait, spoilt


@dataclasses.dataclass(frozen=True)
class _Origin:
    """Where the bytes of a part come from; enough to go on with them."""

    url: str
    validator: Optional[str]
    """The strong ETag, else the Last-Modified, of the file on the server."""
    total: Optional[int]
    done: int = 0
    """So many bytes are on the disk, whatever happens to the machine."""


class _Place:
    """The place of one file in the cache, with what stands beside it."""

    def __init__(self, file: PublishedFile, folder: Path, check: Callable[[Path], object]):
        self.file, self.check = file, check
        self.path = folder / file.name
        self.part, self.origin, self.pin, self.lock = (
            folder / f"{file.name}{suffix}" for suffix in (".part", ".part.from", ".sha256", ".lock")
        )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes away from the file; a process that dies gives way."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.lock)
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except Timeout:
            logger.info("waiting for another process that is downloading %s", self.path)
            lock.acquire()
        except NotImplementedError as error:
            raise OSError(errno.ENOSYS, "the file system has no locks", str(self.lock)) from error
        try:
            yield
        finally:
            lock.release()

    def verify(self, candidate: Path) -> None:
        """Compare a file with what is published; where no digest is, with the pin, or check and pin it.

        Raises:
            _Failure: it is another file, or no whole one.
        """
        file = self.file
        if file.bytes is not None and candidate.stat().st_size != file.bytes:
            raise _Failure(f"it has {candidate.stat().st_size} bytes, the published one {file.bytes}")
        for algorithm, published in (("md5", file.md5), ("sha256", file.sha256 or file.sha256_prefix)):
            found = files.digest(candidate, algorithm) if published else ""
            if published and not found.startswith(published):
                raise _Failure(f"its {algorithm} is {found}, the published one {published}")
        if not file.md5 and not file.sha256:
            self._verify_pin(candidate)

    def _verify_pin(self, candidate: Path) -> None:
        found = files.sha256(candidate)
        if self.pin.exists():
            pinned = self.pin.read_text("ascii", "replace").split(" ")[0]
            if found != pinned:
                raise _Failure(
                    f"its sha256 is {found}, that of the first one was {pinned}; remove {self.pin} to accept another"
                )
            return
        try:
            self.check(candidate)
        except UserError as error:
            raise _Failure(str(error)) from error
        try:
            files.write_text(self.pin, f"{found}  {self.path.name}\n")  # as sha256sum writes it
        except UserError as error:  # of a file that was put there by hand, in a cache that is read-only
            if not self.path.exists():
                raise
            logger.warning("%s is good, but not pinned: %s", self.path, error)

    def resumable(self) -> Optional[_Origin]:
        """Return what is known of the part; None where there is nothing to go on with."""
        try:
            origin = _Origin(**json.loads(self.origin.read_text("utf-8")))
            kinds = [type(value) for value in dataclasses.astuple(origin)] == [str, str, int, int]
            fits = kinds and 0 < origin.done <= origin.total and origin.done <= self.part.stat().st_size
        except (OSError, ValueError, TypeError):
            return None
        return origin if fits and origin.url == self.file.url else None

    def discard(self) -> None:
        """Remove what has come so far."""
        self.origin.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)

    def arrive(self) -> None:
        """Give the verified part its name; a file that is not the published one is set aside."""
        if self.path.exists():
            names = (self.path.with_name(f"{self.path.name}.old{i or ''}") for i in itertools.count())
            aside = next(path for path in names if not path.exists())
            files.rename(self.path, aside)
            logger.warning("the file that was at %s is now %s", self.path, aside)
        files.rename(self.part, self.path)
        self.origin.unlink(missing_ok=True)


# --- attempts -------------------------------------------------------------------------------------


def _bring(place: _Place) -> None:
    """Download the file, attempt after attempt, unless another process just did."""
    if place.path.exists():
        with contextlib.suppress(_Failure):
            return place.verify(place.path)
    failures, furthest = 0, 0
    while True:
        try:
            resumed = _receive(place)
            try:
                place.verify(place.part)
            except _Failure as error:  # if the beginning was of an earlier day, a fresh start may do better
                raise _Failure(str(error), again=resumed, spoilt=True) from error
            return place.arrive()
        except _Failure as error:
            if error.spoilt:
                place.discard()
            size = place.part.stat().st_size if place.part.exists() else 0
            if size >= furthest + PROGRESS_BYTES:
                failures, furthest = 0, size
            failures += 1
            if not error.again or failures >= ATTEMPTS:
                raise
            backoff = BACKOFF_SECONDS * 2 ** (failures - 1) * random.uniform(0.5, 1.0)
            wait = min(max(error.wait, backoff), MAX_WAIT_SECONDS)
            logger.info("%s: %s; trying again in %.0f s", place.file.url, error, wait)
            time.sleep(wait)
        except (OSError, UserError):  # of the disk, which may be full of this very part
            with contextlib.suppress(OSError):
                place.discard()
            raise


def _receive(place: _Place) -> bool:
    """Make the part complete; tell whether it was begun earlier.

    Raises:
        _Failure: it is not complete; what has come can be gone on with, unless ``spoilt``.
        OSError: of the disk.
    """
    origin = place.resumable()
    if origin and origin.done == origin.total:  # all was there but for the name
        return True
    headers = {"Accept-Encoding": "identity"}
    if origin:
        headers |= {"Range": f"bytes={origin.done}-", "If-Range": origin.validator}
    else:
        logger.info("downloading %s to %s", place.file.url, place.path)
    request = functools.partial(_request, place.file.url, headers)
    with contextlib.closing(_within(ANSWER_SECONDS, request)) as response:
        if not origin or not _continues(response, origin):
            origin = _fresh(response, place.file)
            place.discard()
        _make_sure_of_room(place, origin)
        _store(response, place, origin)
    return origin.done > 0


def _continues(response: Response, origin: _Origin) -> bool:
    """Tell whether the answer to a Range is the rest of the very file that was begun; False for a whole file."""
    _check_status(response)
    if response.status_code == 200:
        return False
    part = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if not part or (int(part[1]), int(part[2]), _validator(response)) != (origin.done, origin.total, origin.validator):
        raise _Failure("the rest it sends is not of the file that was begun", again=True, spoilt=True)
    return True


def _fresh(response: Response, file: PublishedFile) -> _Origin:
    """Return what the answer says of the whole file it brings."""
    _check_status(response)
    if response.status_code != 200:
        raise _Failure(f"answers {response.status_code} to a request for the whole file")
    chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
    length = None if chunked else response.headers.get("Content-Length")
    if length is None and not chunked and not (file.md5 or file.sha256 or file.bytes):
        raise _Failure("does not say how long the file is, and no digest is published")
    if length is not None and not re.fullmatch("[0-9]{1,18}", length):
        raise _Failure(f"says the length is {length!r}")
    total = None if length is None else int(length)
    if total is not None and (total > MAX_BYTES or file.bytes not in (None, total)):
        raise _Failure(f"says the file has {total} bytes; the published one has {file.bytes or 'far less'}")
    return _Origin(file.url, _validator(response), total)


def _check_status(response: Response) -> None:
    """Raise for an answer that brings no file."""
    status = response.status_code
    if status == 416:
        raise _Failure("cannot go on where the download stopped", again=True, spoilt=True)
    if status in (408, 425, 429) or status >= 500:
        raise _Failure(f"answers {status} {response.reason}", again=True, wait=_retry_after(response))
    if status not in (200, 206):
        raise _Failure(f"answers {status} {response.reason}")
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise _Failure(f"sends the file as {encoding}, which was not asked for")


def _validator(response: Response) -> Optional[str]:
    """Return what If-Range may hold: a weak ETag does not promise the same bytes."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _retry_after(response: Response) -> float:
    text = response.headers.get("Retry-After", "0")
    try:
        return float(text) if text.isdigit() else email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _make_sure_of_room(place: _Place, origin: _Origin) -> None:
    """Find out before the download, not at its end, that the disk is too small."""
    wanted = (origin.total or place.file.bytes or 0) - origin.done
    free = shutil.disk_usage(place.part.parent).free
    if wanted > free:
        reason = f"{os.strerror(errno.ENOSPC)} ({wanted / 1e6:.1f} MB wanted, {free / 1e6:.1f} MB free)"
        raise OSError(errno.ENOSPC, reason, str(place.part.parent))


def _store(response: Response, place: _Place, origin: _Origin) -> None:
    """Write the body to the part, from ``origin.done`` on, and now and then what is safe on the disk."""
    from .progress import Progress

    done = saved = origin.done
    limit = origin.total or place.file.bytes or MAX_BYTES
    bar = Progress(origin.total, place.file.name, "B", done)
    with open(place.part, "r+b" if done else "wb") as stream, bar:
        stream.truncate(done)
        stream.seek(done)
        try:
            for block in _blocks(response):
                if done + len(block) > limit:
                    raise _Failure(f"sends more than {limit} bytes", again=origin.done > 0, spoilt=True)
                stream.write(block)
                done += len(block)
                bar.advance(len(block))
                if done - saved >= SAVE_BYTES:
                    saved = done
                    _save(stream, place, dataclasses.replace(origin, done=done))
        finally:
            _save(stream, place, dataclasses.replace(origin, done=done))
    if origin.total is not None and done != origin.total:
        raise _Failure(f"stopped after {done} of {origin.total} bytes", again=True)


def _save(stream: BinaryIO, place: _Place, origin: _Origin) -> None:
    """Make sure of the part's bytes, then write down that they are there."""
    stream.flush()
    os.fsync(stream.fileno())
    if origin.validator and origin.total and origin.done:  # otherwise nobody could go on with it
        files.write_text(place.origin, json.dumps(dataclasses.asdict(origin)))


# --- the network ----------------------------------------------------------------------------------


def _request(url: str, headers: dict[str, str]) -> Response:
    """Ask for ``url``, through the proxies of the environment; return the answer, its body still to be read.

    Redirects are followed here because a session reads their bodies, however long, and goes anywhere.

    Raises:
        _Failure: no answer, or an address that is not allowed.
    """
    import requests
    from urllib3.exceptions import HTTPError

    session = requests.Session()
    try:
        at_home = _is_loopback(url)
        for _ in range(MAX_REDIRECTS + 1):
            _check_address(url, at_home)
            settings = session.merge_environment_settings(url, {}, True, None, None)
            request = session.prepare_request(requests.Request("GET", url, headers))
            response = session.get_adapter(url).send(request, timeout=(CONNECT_SECONDS, READ_SECONDS), **settings)
            target = session.get_redirect_target(response)
            if target is None:
                return response
            response.close()
            url = urljoin(url, target)
    except (requests.Timeout, requests.ConnectionError) as error:
        again = not isinstance(error, requests.exceptions.SSLError)
        raise _Failure(_root(error), again) from error
    except (requests.RequestException, HTTPError, ValueError) as error:  # among them: addresses that are none
        raise _Failure(_root(error)) from error
    raise _Failure(f"redirects more than {MAX_REDIRECTS} times")


def _check_address(url: str, at_home: bool) -> None:
    """Admit https, and plain http from this machine to itself."""
    from urllib3.util import parse_url  # the parser that decides where the connection goes

    parsed = parse_url(url)
    if parsed.auth or not (parsed.scheme == "https" or parsed.scheme == "http" and at_home and _is_loopback(url)):
        raise _Failure(f"leads to {url}; only https is allowed, without a user's name")


def _is_loopback(url: str) -> bool:
    from urllib3.util import parse_url

    host = (parse_url(url).host or "").strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Return what ``call`` returns or raise what it raises, but give up after ``seconds``.

    The time-out of a socket begins anew with every byte: a server could drip its header for days.
    """
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((call(), None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise _Failure(f"no answer within {seconds:g} s", again=True) from None
    if error:
        raise error
    return answer


def _blocks(response: Response) -> Iterator[bytes]:
    """Yield the body as it comes; a server that all but stops is left."""
    from urllib3.exceptions import HTTPError

    since, count = time.monotonic(), 0
    while True:
        try:
            block = response.raw.read1(BLOCK_BYTES, decode_content=False)  # read() would wait for a whole block
        except HTTPError as error:
            raise _Failure(f"broke off: {_root(error)}", again=True) from error
        if not block:
            return
        yield block
        count += len(block)
        now = time.monotonic()
        if now - since >= RATE_SECONDS:
            if count < MIN_RATE * (now - since):
                raise _Failure(f"sends less than {MIN_RATE:.0f} bytes a second", again=True)
            since, count = now, 0


def _root(error: BaseException) -> str:
    """Say what is at the bottom of a stack of library exceptions."""
    while True:
        deeper = [e for e in (getattr(error, "reason", None), *error.args) if isinstance(e, Exception)]
        if not deeper:
            return re.sub(r"^(<.*?>|\w+\(.*?\)): ", "", str(error)) or type(error).__name__
        error = deeper[0]
