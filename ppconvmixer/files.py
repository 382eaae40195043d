"""Files that arrive whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Union

from .errors import UserError

PathLike = Union[str, "os.PathLike[str]"]


def shipped(folder: str) -> Path:
    """Return ``configs`` or ``weights``, which come with the package: inside it, or in a clone beside it."""
    package = Path(__file__).resolve().parent
    installed = package / folder
    return installed if installed.is_dir() else package.parent / folder


@contextlib.contextmanager
def atomic_write(path: PathLike) -> Iterator[BinaryIO]:
    """Open a binary stream whose content becomes ``path`` when the block ends well.

    The bytes go to a temporary file in the same folder, reach the disk (fsync) and take the
    name in one step, so that a crash or a full disk leaves the old file as it was. A link is replaced, not followed.

    Raises:
        UserError: the file cannot be written; the message holds the system's reason.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's 0600 would keep colleagues from reading the result
        rename(temporary, path)
        temporary = None
    except OSError as error:
        reason = error.strerror or error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"the disk of {path.parent} is full ({reason})"
        raise UserError(f"cannot write {path}: {reason}; the file was left as it was") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def write_text(path: PathLike, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_write(path) as stream:
        stream.write(text.encode("utf-8"))


def table_path(name: str) -> str:
    """Return a path for a CSV table; before one that a spreadsheet would run as a formula goes ``./``."""
    return f"./{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def rename(path: PathLike, target: PathLike) -> None:
    """Give a file in the same folder the name ``target`` in one step, for good (OSError where that fails)."""
    os.replace(path, target)
    _sync_folder(Path(target).parent)


def read_text(path: PathLike, limit: int) -> str:
    """Return a UTF-8 text of at most ``limit`` bytes.

    Raises:
        UserError: no such file, longer, or no text; the message says which and leaves the name to the caller.
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read(limit + 1)
        if len(content) > limit:
            raise UserError(f"it is longer than {limit:,} bytes")
        return content.decode("utf-8-sig")  # some editors put a byte-order mark in front
    except OSError as error:
        raise UserError(error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise UserError("it is not UTF-8 text") from error


def sha256(path: PathLike) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    return digest(path, "sha256")


def digest(path: PathLike, algorithm: str) -> str:
    """Return a hexadecimal digest of a file's content by an algorithm of ``hashlib``."""
    found = hashlib.new(algorithm, usedforsecurity=False)  # a hardened OpenSSL refuses md5 otherwise
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; a platform that cannot open folders does without."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
