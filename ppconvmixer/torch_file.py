"""Read tensors from torch's files, without torch: the zip form (1.6 and later) and the legacy form."""

from __future__ import annotations

import dataclasses
import io
import mmap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import numpy as np

from . import safe_pickle
from .errors import UserError

LEGACY_PREFIX = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of torch.serialization.MAGIC_NUMBER
_STORAGES = {
    "torch.HalfStorage": "f2",
    "torch.FloatStorage": "f4",
    "torch.DoubleStorage": "f8",
    "torch.BFloat16Storage": "bfloat16",
    "torch.ByteStorage": "u1",
    "torch.CharStorage": "i1",
    "torch.ShortStorage": "i2",
    "torch.IntStorage": "i4",
    "torch.LongStorage": "i8",
    "torch.BoolStorage": "b1",
}


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A run of numbers in the file; a view is a stretch of a larger one."""

    kind: str
    key: str
    offset: int
    size: int


@dataclasses.dataclass
class Tensor(safe_pickle.Opaque):
    """A tensor as the file describes it; its numbers are fetched when asked for."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def array(self, storages: Callable[[str], np.ndarray]) -> np.ndarray:
        """Return the numbers; a view of the storage where NumPy has the type, so strides cost no memory.

        Raises:
            UserError: the tensor reaches outside its storage.
        """
        raw, dtype = storages(self.storage.key), _dtype(self.storage.kind)
        numbers = raw[: raw.size // dtype.itemsize * dtype.itemsize].view(dtype)
        numbers = numbers[self.storage.offset : self.storage.offset + self.storage.size]
        whole = all(isinstance(n, int) and n >= 0 for n in (self.offset, *self.shape, *self.stride))
        elements = int(np.prod([int(n) for n in self.shape], dtype=object)) if whole else 0
        reach = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride)) if elements else 0
        if (
            not whole
            or len(self.shape) != len(self.stride)
            or numbers.size != self.storage.size
            or elements > numbers.size
            or (elements and reach >= numbers.size)
        ):
            raise UserError(f"a tensor of shape {self.shape}, stride {self.stride} reaches outside its storage")
        strides = [s * numbers.itemsize for s in self.stride]
        view = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides, writeable=False)
        return from_bfloat16(view) if self.storage.kind == "bfloat16" else view


def _dtype(kind: str) -> np.dtype:
    return np.dtype("<u2" if kind == "bfloat16" else f"<{kind}")


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Widen bfloat16, given as uint16, to float32: the upper half of its bits, so nothing is rounded."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _rebuild_tensor(storage: Any, offset: int, shape: tuple, stride: tuple, *_: Any) -> Tensor:
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise UserError("the file is damaged: a tensor without storage, shape or stride")
    return Tensor(storage, offset, shape, stride)


def _storage(identity: Any) -> _Storage:
    """Make sense of torch's persistent id, ``("storage", type, key, device, size[, view])``."""
    tag, kind, key, _, size, *view = identity
    if tag != "storage" or kind not in _STORAGES or not isinstance(key, str) or not isinstance(size, int):
        raise UserError(f"the file is damaged: {identity!r} describes no storage")
    offset = 0
    if view and view[0] is not None:
        _, offset, size = view[0]
    if min(offset, size) < 0:
        raise UserError(f"the file is damaged: a storage of {size} numbers from {offset}")
    return _Storage(_STORAGES[kind], key, offset, size)


BUILDERS: Mapping[str, Callable[..., Any]] = {
    **safe_pickle.NUMPY,  # the training records beside the weights may hold arrays
    "collections.OrderedDict": lambda items=(): dict(items),
    "argparse.Namespace": safe_pickle.Opaque,
    "torch.Size": lambda items=(): tuple(items),
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    **dict.fromkeys(_STORAGES, safe_pickle.Opaque),
}


def read_zip(path: Path) -> tuple[Any, Callable[[str], np.ndarray]]:
    """Read a file of ``torch.save``'s zip form.

    Returns:
        What the file holds, tensors as ``Tensor``, and a function from a storage's key to its bytes.

    Raises:
        UserError: damaged, compressed (torch never does), or names something outside ``BUILDERS``.
    """
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is a damaged or cut off zip file: {error}") from error
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError(f"{path} is a zip file, but none of torch's: it holds {len(pickles)} data.pkl")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise UserError(f"{path} is compressed, which torch's files never are")
    if sum(entry.file_size for entry in entries.values()) > path.stat().st_size:
        raise UserError(f"{path} claims to hold more than its size")
    folder = pickles[0][: -len("data.pkl")]

    def member(name: str) -> bytes:
        if name not in entries:
            raise UserError(f"{path} is damaged: {name} is missing")
        try:
            return archive.read(name)
        except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError) as error:
            raise UserError(f"{path} is damaged: {error}") from error

    if f"{folder}byteorder" in entries and member(f"{folder}byteorder") != b"little":
        raise UserError(f"{path} was written on a big-endian machine; save it again on a little-endian one")
    pickled = member(pickles[0])
    tree = safe_pickle.load(io.BytesIO(pickled), len(pickled), BUILDERS, _storage)
    fetched: dict[str, np.ndarray] = {}

    def storages(key: str) -> np.ndarray:
        if key not in fetched:
            fetched[key] = np.frombuffer(member(f"{folder}data/{key}"), np.uint8)
        return fetched[key]

    return tree, storages


def read_legacy(stream: mmap.mmap) -> tuple[Any, Callable[[str], np.ndarray]]:
    """Read a file of torch before 1.6; returns as ``read_zip`` does.

    After the pickles of the magic number, the protocol, the machine, the tree and the storage keys
    come, for every key, the count of numbers (int64) and the numbers.
    """
    size = stream.size()
    stream.seek(len(LEGACY_PREFIX))
    kinds: dict[str, str] = {}

    def storage(identity: Any) -> _Storage:
        result = _storage(identity)
        kinds[result.key] = result.kind
        return result

    protocol = safe_pickle.load(stream, size)
    machine = safe_pickle.load(stream, size)
    if protocol != 1001 or machine.get("little_endian") is not True:
        raise UserError("a legacy torch file of another protocol or of a big-endian machine")
    tree = safe_pickle.load(stream, size, BUILDERS, storage)
    spans: dict[str, np.ndarray] = {}
    for key in safe_pickle.load(stream, size):
        width = _dtype(kinds[key]).itemsize
        count = int.from_bytes(stream.read(8), "little")
        raw = stream.read(count * width) if count * width <= size else b""
        if len(raw) != count * width:
            raise UserError("the file is cut off")
        spans[key] = np.frombuffer(raw, np.uint8)
    return tree, spans.__getitem__
