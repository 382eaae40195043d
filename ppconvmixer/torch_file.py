"""Read tensors from torch's files, without torch: the zip form (1.6 and later) and the legacy form."""

from __future__ import annotations

import dataclasses
import io
import math
import mmap
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO, Callable

import numpy as np

from . import safe_pickle
from .errors import UserError, said, shown

MAX_ENTRIES = 10_000  # of a zip; zipfile keeps some 700 bytes of each. The published files have under 1,000
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

    @property
    def size(self) -> int:
        """Count the numbers."""
        return math.prod(self.shape)

    def array(self, storages: Callable[[str], np.ndarray]) -> np.ndarray:
        """Return the numbers; a view of the storage where NumPy has the type, so strides cost no memory.

        Raises:
            UserError: the tensor reaches outside its storage.
        """
        raw, dtype = storages(self.storage.key), _dtype(self.storage.kind)
        numbers = raw[: raw.size // dtype.itemsize * dtype.itemsize].view(dtype)
        numbers = numbers[self.storage.offset : self.storage.offset + self.storage.size]
        reach = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride)) if self.size else 0
        if numbers.size != self.storage.size or self.size > numbers.size or (self.size and reach >= numbers.size):
            raise UserError(
                f"a tensor of shape {shown(self.shape)}, stride {shown(self.stride)} reaches outside its storage"
            )
        strides = [s * numbers.itemsize for s in self.stride]
        view = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides, writeable=False)
        return from_bfloat16(view) if self.storage.kind == "bfloat16" else view


def _dtype(kind: str) -> np.dtype:
    return np.dtype("<u2" if kind == "bfloat16" else f"<{kind}")


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Widen bfloat16, given as uint16, to float32: the upper half of its bits, so nothing is rounded."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _rebuild_tensor(storage: Any, offset: int, shape: tuple, stride: tuple, *_: Any) -> Tensor:
    fine = isinstance(storage, _Storage) and all(map(safe_pickle.is_shape, ((offset,), shape, stride)))
    if not fine or len(shape) != len(stride):
        raise UserError(f"the file is damaged: a tensor of shape {shown(shape)}, stride {shown(stride)}")
    return Tensor(storage, offset, shape, stride)


def _storage(identity: Any) -> _Storage:
    """Make sense of torch's persistent id, ``("storage", type, key, device, size[, view])``."""
    tag, kind, key, _, size, *view = identity
    offset = 0
    if view and view[0] is not None:
        _, offset, size = view[0]
    text = isinstance(tag, str) and isinstance(kind, str) and isinstance(key, str)
    if not text or tag != "storage" or kind not in _STORAGES or not safe_pickle.is_shape((offset, size)):
        raise UserError(f"the file is damaged: {shown(identity)} describes no storage")
    return _Storage(_STORAGES[kind], key, offset, size)


BUILDERS: Mapping[str, Callable[..., Any]] = {
    **safe_pickle.NUMPY,  # the training records beside the weights may hold arrays
    "collections.OrderedDict": safe_pickle.ordered_dict,
    "argparse.Namespace": safe_pickle.Opaque,
    "torch.Size": safe_pickle.as_tuple,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    **dict.fromkeys(_STORAGES, safe_pickle.Opaque),
}


def read_zip(stream: BinaryIO, content: mmap.mmap) -> tuple[Any, Callable[[str], np.ndarray]]:
    """Read a file of ``torch.save``'s zip form, given open and mapped.

    Returns:
        What the file holds, tensors as ``Tensor``, and a function from a storage's key to its bytes,
        which reads ``stream``.

    Raises:
        UserError: damaged, compressed (torch never does), or names something outside ``BUILDERS``.
    """
    place = -1
    for _ in range(MAX_ENTRIES + 1):
        place = content.find(b"PK\x01\x02", place + 1)  # what begins every entry of the index
        if place < 0:
            break
    else:
        raise UserError(f"a zip file of more than {MAX_ENTRIES:,} entries; torch's have under 1,000")
    try:
        archive = zipfile.ZipFile(stream)
    except Exception as error:  # zipfile fails on damaged files in more ways than it says
        raise UserError(f"a damaged or cut off zip file: {said(error)}") from error
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1 or len(entries) != len(archive.infolist()):
        raise UserError(f"a zip file, but none of torch's: it holds {len(pickles)} data.pkl, or a name twice")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise UserError("a compressed zip file, which torch's never are")
    if sum(entry.file_size for entry in entries.values()) > content.size():
        raise UserError("a zip file that claims to hold more than its size")
    folder = pickles[0][: -len("data.pkl")]

    def member(name: str) -> bytes:
        if name not in entries:
            raise UserError(f"the file is damaged: {shown(name)} is missing")
        try:
            content = archive.read(name)
        except Exception as error:
            raise UserError(f"the file is damaged: {said(error)}") from error
        if len(content) != entries[name].file_size:
            raise UserError(f"the file is damaged: {shown(name)} is not as long as it says")
        return content

    if f"{folder}byteorder" in entries and member(f"{folder}byteorder") != b"little":
        raise UserError("the file was written on a big-endian machine; save it again on a little-endian one")
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
    if protocol != 1001 or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise UserError("a legacy torch file of another protocol or of a big-endian machine")
    tree = safe_pickle.load(stream, size, BUILDERS, storage)
    spans: dict[str, np.ndarray] = {}
    keys = safe_pickle.load(stream, size)
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in kinds for key in keys):
        raise UserError("the file is damaged: its storages have no names")
    for key in keys:
        width = _dtype(kinds[key]).itemsize
        count = int.from_bytes(stream.read(8), "little")
        raw = stream.read(count * width) if count * width <= size else b""
        if len(raw) != count * width:
            raise UserError("the file is cut off")
        spans[key] = np.frombuffer(raw, np.uint8)

    def storages(key: str) -> np.ndarray:
        if key not in spans:
            raise UserError(f"the file is damaged: the storage {shown(key)} is missing")
        return spans[key]

    return tree, storages
