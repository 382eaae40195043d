"""Read and write checkpoints as ``{name: array}``, with NumPy alone and nothing executed.

Every checkpoint of the package comes and goes through this file.
"""

from __future__ import annotations

import mmap
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Callable, Optional

import numpy as np
import safetensors
import safetensors.numpy

from . import safe_pickle, torch_file
from .errors import UserError, said, shown
from .files import PathLike, atomic_write

State = dict[str, np.ndarray]

_WRAPPERS = ("state_dict", "model")  # where training programs keep the weights among their records
_SAFETENSORS_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "BF16": "<u2"}
MAX_HEADER = 1 << 20  # bytes of a .safetensors header, whose entries swell twentyfold; ConvMixer's take 50 kB
_PADDLE_NAMES = "StructuredToParameterName@@"  # paddle.save's table of automatic names


def read(path: PathLike, max_header: int = MAX_HEADER) -> State:
    """Read the weights of a checkpoint of any kind; the kind is told by the content.

    Read are ``.pdparams`` (pickle protocols 2 to 5), torch's ``.pth``, ``.pth.tar`` and ``.bin``
    (zip and legacy) and ``.safetensors``. A ``state_dict`` among training records is found, and the
    prefix ``module.`` of data-parallel training is taken off. bfloat16 is widened to float32; float16,
    float32 and float64 stay what they are. torch's ``num_batches_tracked``, the one entry of a
    ConvMixer that is no weight, is left out.

    Args:
        max_header: bytes that the header of a ``.safetensors`` file may have.

    Returns:
        Floating-point arrays by the names of the file, possibly views of it and not writable.

    Raises:
        UserError: no such file, damaged, not a checkpoint, or naming something no checkpoint holds.
    """
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            head = stream.read(16)
            if not head:
                raise UserError("it is empty; fetch it again")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _weights(_reader(head, content.size(), max_header)(stream, content))
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror or said(error)}") from error
    except UserError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error}") from error
    except Exception as error:  # parsers of damaged files fail in more ways than can be listed
        raise UserError(f"cannot read the checkpoint {path}: it is damaged ({said(error)})") from error


def read_metadata(path: PathLike, max_header: int = MAX_HEADER) -> dict[str, str]:
    """Return the strings in the header of a ``.safetensors`` file, of at most ``max_header`` bytes.

    Raises:
        UserError: no such file, or damaged.
    """
    try:
        with open(path, "rb") as stream:
            _check_header(stream.read(8), max_header)
        with safetensors.safe_open(path, framework="np") as content:
            return content.metadata() or {}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or said(error)}") from error
    except (UserError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot read {path}: {said(error)}") from error


def write(path: PathLike, state: Mapping[str, np.ndarray], metadata: Optional[Mapping[str, str]] = None) -> None:
    """Write ``state`` to a ``.pdparams`` or ``.safetensors`` file, atomically.

    Args:
        metadata: strings to keep in the header of a ``.safetensors`` file.

    Raises:
        UserError: another suffix, or the file cannot be written; an old file is then left as it was.
    """
    path = Path(path)
    arrays = {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in state.items()}
    if path.suffix == ".pdparams":
        with atomic_write(path) as stream:
            pickle.dump(arrays, stream, protocol=4)  # the protocol paddle.save writes
    elif path.suffix == ".safetensors":
        with atomic_write(path) as stream:
            stream.write(safetensors.numpy.save(arrays, dict(metadata) if metadata else None))
    else:
        raise UserError(f"cannot write {path}: name a file ending in .pdparams or .safetensors")


def _reader(head: bytes, size: int, max_header: int) -> Callable[[BinaryIO, mmap.mmap], State]:
    """Choose the reader by the first bytes and the size of the file."""
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:  # the length of a header of JSON
        return lambda _, content: _read_safetensors(content, max_header)
    if head.startswith(b"PK\x03\x04"):
        return lambda stream, content: _torch_state(content.size(), *torch_file.read_zip(stream, content))
    if head.startswith(torch_file.LEGACY_PREFIX):
        return lambda _, content: _torch_state(content.size(), *torch_file.read_legacy(content))
    if head[:1] == b"\x80":
        return _read_paddle
    raise UserError("neither Paddle's, torch's nor a safetensors file")


def _read_paddle(_: BinaryIO, content: mmap.mmap) -> State:
    tree = _unwrap(safe_pickle.load(content, content.size(), _PADDLE))
    arrays = {}
    for name, value in tree.items():
        if type(value) is tuple and len(value) == 2:  # a tensor in a nested structure: (automatic name, array)
            value = value[1]
        if not isinstance(value, safe_pickle.Array) or value.value is None:
            raise UserError(f"the entry {shown(name)} is no array")
        arrays[name] = value.value
    _check_total(arrays.values(), content.size())
    return {n: torch_file.from_bfloat16(value) if value.dtype == np.uint16 else value for n, value in arrays.items()}


_PADDLE = {
    **safe_pickle.NUMPY,
    "collections.OrderedDict": safe_pickle.ordered_dict,
    "builtins.tuple": safe_pickle.as_tuple,
    "__builtin__.tuple": safe_pickle.as_tuple,
}


def _read_safetensors(content: mmap.mmap, max_header: int) -> State:
    _check_header(content[:8], max_header)
    try:
        tensors = safetensors.deserialize(content[:])
    except safetensors.SafetensorError as error:
        raise UserError(f"damaged or cut off: {said(error)}") from error
    state = {}
    for name, tensor in tensors:
        kind = tensor["dtype"]
        if kind not in _SAFETENSORS_DTYPES:
            raise UserError(
                f"the entry {shown(name)} is of type {kind}; float16, bfloat16, float32 and float64 are read"
            )
        value = np.frombuffer(tensor["data"], _SAFETENSORS_DTYPES[kind]).reshape(tensor["shape"])
        state[name] = torch_file.from_bfloat16(value) if kind == "BF16" else value
    return state


def _check_header(start: bytes, most: int) -> None:
    if int.from_bytes(start, "little") > most:
        raise UserError(f"its header is of more than {most:,} bytes; that of a ConvMixer takes 50,000")


def _torch_state(size: int, tree: Any, storages: Callable[[str], np.ndarray]) -> State:
    tensors = _unwrap(tree)
    for name, value in tensors.items():
        if not isinstance(value, torch_file.Tensor):
            raise UserError(f"the entry {shown(name)} is no tensor")
    _check_total(tensors.values(), size)
    return {name: value.array(storages) for name, value in tensors.items()}


def _check_total(arrays: Iterable[Any], size: int) -> None:
    """Entries may share their numbers, but whoever copies them must not be flooded: every number takes a byte."""
    if sum(array.size for array in arrays) > size:
        raise UserError("its entries hold more numbers than the file has bytes")


def _unwrap(tree: Any) -> dict[str, Any]:
    """Find the weights among training records and take off the prefix of data-parallel training."""
    if not isinstance(tree, dict):
        raise UserError("it holds no dictionary of weights")
    for key in _WRAPPERS:
        if isinstance(tree.get(key), dict):
            tree = tree[key]
            break
    tree = {name: value for name, value in tree.items() if name != _PADDLE_NAMES}
    if not tree or not all(isinstance(name, str) for name in tree):
        raise UserError("it holds no named weights")
    if all(name.startswith("module.") for name in tree):
        tree = {name[len("module.") :]: value for name, value in tree.items()}
    return tree


def _weights(state: State) -> State:
    state = {name: value for name, value in state.items() if not name.endswith(".num_batches_tracked")}
    if not state:
        raise UserError("it holds no named weights")
    for name, value in state.items():
        if value.dtype.kind != "f":
            raise UserError(f"the entry {shown(name)} is {value.dtype}, not floating-point")
    return state
