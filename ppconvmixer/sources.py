"""Where the bytes of pictures come from: a folder, or a tar archive that is never unpacked to the disk."""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Optional, Union

from .errors import UserError, brief, said, shown
from .files import PathLike

logger = logging.getLogger("ppconvmixer")

MAX_UNPACKED = 16  # times its size that a compressed archive may unpack to; CIFAR-10 as JPEGs comes to 6
MAX_HEADER = 1 << 14  # bytes of a tar header, which Python may take quadratic time to parse; a path has 4,096
MAX_HEADERS = 1 << 16  # bytes of all headers of a member: Python makes twenty times as much of them
MAX_AGAIN = 1000  # times that links may lead to the same folder; seventy of them, well laid, lead to 2^36
_UNPACKED_AT_LEAST = 16 << 20  # bytes; a small archive of flat pictures may shrink by more
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}


class Folder:
    """The files below a folder, by their path relative to it."""

    def __init__(self, root: PathLike):
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"there is no folder {self.root}")

    def __str__(self) -> str:
        return str(self.root)

    def names(self) -> list[str]:
        """Return every file, sorted; folders that are links are gone into, but never into themselves.

        Raises:
            UserError: a folder cannot be read.
        """
        start, lost = len(os.path.join(self.root, "")), []
        found = _files(str(self.root), frozenset(), Counter(), lost)
        names = sorted(path[start:].replace(os.sep, "/") for path in found)
        if lost:
            logger.warning(
                "%s: %d links lead nowhere, such as %s, and are left out", self.root, len(lost), shown(lost[0][start:])
            )
        return names

    def find(self, name: str) -> Optional[str]:
        """Return the name of an existing file, or None.

        Raises:
            UserError: the name leads out of the folder. The user's own links may do so, a stranger's list not.
        """
        try:
            return name if self._path(name).is_file() else None
        except (OSError, ValueError) as error:  # a name longer than names may be, or with a zero byte
            if isinstance(error, UserError):
                raise
            return None

    def read(self, name: str) -> bytes:
        """Return a file's content; raises as ``find`` does."""
        return self._path(name).read_bytes()

    def _path(self, name: str) -> Path:
        root = os.path.abspath(self.root)
        path = os.path.normpath(os.path.join(root, name))
        if not path.startswith(os.path.join(root, "")):
            raise UserError(f"{shown(name)} leads out of the folder {self.root}, and is not read")
        return Path(path)


def _files(folder: str, above: frozenset[str], seen: Counter[str], lost: list[str]) -> Iterator[str]:
    """Yield the files below ``folder``, and add the links that lead nowhere to ``lost``.

    Args:
        above: the real paths of the folders that it lies in.
        seen: how often each was gone into before.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    seen[real] += 1
    if seen[real] > MAX_AGAIN:
        raise UserError(f"links lead to {brief(real)} more than {MAX_AGAIN:,} times; take some out")
    try:
        entries = [(entry.path, entry.is_dir(), entry.is_file()) for entry in os.scandir(folder)]
    except OSError as error:  # also a link that leads to itself
        what = brief(str(error.filename)) if error.filename not in (None, folder) else f"the folder {folder}"
        raise UserError(f"cannot read {what}: {error.strerror or error}") from error
    for path, is_folder, is_file in entries:
        if is_folder:
            yield from _files(path, above | {real}, seen, lost)
        elif is_file:
            yield path
        elif os.path.islink(path):
            lost.append(path)


class Tar:
    """The files in a tar archive, without unpacking it.

    An uncompressed archive is read in place: the index is made once, and every read opens the file
    anew, so workers share nothing. A compressed one is unpacked into memory, never to the disk, up to
    ``MAX_UNPACKED`` times its size.
    """

    def __init__(self, path: PathLike):
        self.path = Path(path)
        self._content: dict[str, bytes] = {}
        self._spans: dict[str, tuple[int, int]] = {}
        try:
            self._size = self.path.stat().st_size
            with open(self.path, "rb") as stream:
                self._index(stream)
        except Exception as error:  # tarfile and the decompressors fail in more ways than can be listed
            reason = said(error) if isinstance(error, UserError) else f"{said(error)}; want a tar archive or a folder"
            raise UserError(f"cannot read the archive {self.path}: {reason}") from error
        self._by_file_name: dict[str, list[str]] = {}
        for name in [*self._spans, *self._content]:
            self._by_file_name.setdefault(name.rsplit("/", 1)[-1], []).append(name)

    def _index(self, stream: BinaryIO) -> None:
        head = stream.read(6)
        stream.seek(0)
        unpack = next((unpack for magic, unpack in _COMPRESSED.items() if head.startswith(magic)), None)
        limit = max(_UNPACKED_AT_LEAST, MAX_UNPACKED * self._size) if unpack else self._size
        source = unpack(stream) if unpack else stream
        headers = _Limited(source, limit)
        with tarfile.open(fileobj=headers, mode="r:") as archive:
            end, links = -1, []
            while (member := archive.next()) is not None:
                archive.members.clear()  # tarfile would keep a kilobyte of each
                archive.pax_headers.clear()  # and copy what is said of all members for every one
                headers.left = MAX_HEADERS
                if member.offset_data <= end:  # a negative size leads back to what was read already
                    raise UserError(f"the member {shown(member.name)} reaches outside the archive")
                end = member.offset_data
                name = str(PurePosixPath(member.name))
                if member.issym() or (member.islnk() and not self._link(name, str(PurePosixPath(member.linkname)))):
                    links.append(name)
                if not member.isreg():
                    continue
                if not end <= end + member.size <= limit:
                    raise UserError(f"the member {shown(member.name)} reaches outside the archive; {_UNPACK}")
                if member.issparse():
                    raise UserError(f"the member {shown(member.name)} is sparse; pack it as it is")
                if unpack:
                    source.seek(end)
                    self._content[name] = source.read(member.size)
                    if len(self._content[name]) != member.size:
                        raise UserError("it is cut off")
                else:
                    self._spans[name] = end, member.size
            if headers.last.strip(b"\0"):  # zeros, where the archive has its end
                raise UserError(f"it is damaged at byte {archive.offset:,}")
            if not headers.last:
                logger.warning("%s has no end; what came behind %s members may be lost", self.path, len(self.names()))
            while unpack and source.read(1 << 20):  # to the checksum at its end
                headers.check(source.tell())
        if links:
            logger.warning(
                "%s: %d members are links, such as %s, and are left out; pack with tar's --dereference",
                *(self.path, len(links), shown(links[0])),
            )

    def _link(self, name: str, target: str) -> bool:
        """Give a file that came before another name, as tar does where it has several; tell whether there is one."""
        place = next((place for place in (self._content, self._spans) if target in place), None)
        if place is not None:
            place[name] = place[target]
        return place is not None

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        """Return every file, sorted."""
        return sorted([*self._spans, *self._content])

    def find(self, name: str) -> Optional[str]:
        """Return the member ``name``, or else the only one of that file name, if no folder speaks against it.

        A folder that only one of the two names has does not: the validation tar has none, and its lists often do.
        """
        name = str(PurePosixPath(name))
        if name in self._spans or name in self._content:
            return name
        alike = self._by_file_name.get(name.rsplit("/", 1)[-1], [])
        if len(alike) == 1 and (f"/{name}".endswith(f"/{alike[0]}") or alike[0].endswith(f"/{name}")):
            return alike[0]
        return None

    def read(self, name: str) -> bytes:
        """Return a member's content."""
        if name in self._content:
            return self._content[name]
        offset, size = self._spans[name]
        with open(self.path, "rb") as stream:
            stream.seek(offset)
            data = stream.read(min(size, self._size))
        if len(data) != size:
            raise UserError(f"{self.path} is cut off")
        return data


_UNPACK = f"a compressed one of more than {MAX_UNPACKED} times its size must be unpacked first"


class _Limited:
    """The stream that tarfile reads headers from: short ones, up to ``limit``, without room for what is not there."""

    def __init__(self, stream: Any, limit: int):
        self.stream, self.limit, self.left, self.last = stream, limit, MAX_HEADERS, b""
        self.tell = stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise UserError(f"it has a header of {shown(size)} bytes")
        self.left -= size
        if self.left < 0:
            raise UserError(f"it has headers of more than {MAX_HEADERS:,} bytes for a member")
        self.last = self.stream.read(size)
        self.check(self.tell())
        return self.last

    def seek(self, place: int) -> None:
        self.check(place)
        self.stream.seek(place)

    def check(self, place: int) -> None:
        if not 0 <= place <= self.limit:
            raise UserError(f"it is cut off, or too large; {_UNPACK}")


Source = Union[Folder, Tar]


def open_source(path: PathLike) -> Source:
    """Open a folder or a tar archive.

    Raises:
        UserError: neither is there.
    """
    path = Path(path)
    if path.is_file():
        return Tar(path)
    if not path.exists():
        raise UserError(f"there is nothing at {path}; give a folder or a tar archive of pictures")
    return Folder(path)
