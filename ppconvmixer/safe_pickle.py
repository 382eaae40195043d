"""Read a pickle as data.

A pickle is a program for a small stack machine whose ``REDUCE`` calls whatever the file names.
This reader runs that program on a machine of its own that knows containers, numbers, strings and
an explicit table of builders (functions of this package that make inert records). Nothing is
imported, nothing else is called, and an opcode or a name outside the tables ends the reading with
an error that names it.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Callable, Optional

import numpy as np

from .errors import UserError, brief, said, shown

# A batch of CIFAR-10 needs 50,000, the largest published ConvMixer with its optimiser 70,000. What one leaves
# in memory, such as an empty dictionary, takes up to 100 bytes, whatever the size of the file.
MAX_STEPS = 200_000
MAX_BITS = 128  # of a whole number; torch's magic number has 79
MAX_AXES = 32  # of an array; NumPy 1 has no more
_DTYPE = re.compile(r"[?bBhHiIlLqQefd]|b1|[iu][1248]|f[248]")


class Opaque:
    """Stands for an object whose content is not wanted, such as ``argparse.Namespace``."""

    def __init__(self, *args: Any):
        pass

    def set_state(self, state: Any) -> None:
        """Forget ``state``."""


class DType(Opaque):
    """A ``numpy.dtype`` of plain numbers."""

    def __init__(self, code: str, *_: Any):
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise UserError(f"the file holds an array of type {shown(code)}; only plain numbers are read")
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        _, order, *_ = state
        if order not in ("<", ">", "|", "="):
            raise UserError(f"the file holds an array of byte order {shown(order)}")
        self.dtype = self.dtype.newbyteorder(order)


@dataclasses.dataclass
class Array(Opaque):
    """A ``numpy.ndarray``; ``value`` is None until the file has given its state."""

    value: Optional[np.ndarray] = None

    def set_state(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        raw = data.encode("latin-1") if isinstance(data, str) else data  # Python 2 wrote bytes as str
        self.value = _array(raw, dtype, shape, "F" if fortran else "C").value


def _array(raw: Any, dtype: Any, shape: Any, order: str, axes: Any = None) -> Array:
    if not isinstance(raw, (bytes, bytearray)) or not isinstance(dtype, DType):
        raise UserError("the file holds an array of Python objects; only plain numbers are read")
    if not is_shape(shape) or math.prod(shape) * dtype.dtype.itemsize != len(raw):
        raise UserError(f"the file is damaged: an array of shape {shown(shape)} in {len(raw)} bytes")
    numbers = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
    if order != "K" or axes is None:
        return Array(numbers)
    if not is_shape(axes) or sorted(axes) != list(range(len(shape))):
        raise UserError(f"the file is damaged: an array of shape {shown(shape)} with the axes {shown(axes)}")
    return Array(numbers.transpose(axes))  # so does NumPy 2.3 keep an array whose axes are in another order


def is_shape(value: Any) -> bool:
    """Tell whether ``value`` is a tuple of whole numbers from 0 on, as shapes and strides are."""
    return isinstance(value, tuple) and len(value) <= MAX_AXES and all(type(n) is int and n >= 0 for n in value)


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise UserError(f"the file asks for the encoding {shown(encoding)}")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    """Build what protocol 2 has for bytes of which there are none."""
    return b""


def ordered_dict(items: Any = ()) -> dict[Any, Any]:
    """Build an ``OrderedDict``, which Python 2 gives its entries as a list of pairs."""
    result: dict[Any, Any] = {}
    for key, value in items:
        result[_key(key)] = value
    return result


def as_tuple(items: Any = ()) -> tuple[Any, ...]:
    """Build a tuple, or a kind of tuple, from a list or tuple."""
    if not isinstance(items, (list, tuple)):
        raise ValueError("a tuple of something else")
    return tuple(items)


def _key(key: Any) -> Any:
    """Let text and small numbers alone pass.

    Hashing a deeply nested tuple overflows the C stack, and the process dies; the hashes of large
    numbers can be made all the same, and a dictionary of them takes quadratic time.
    """
    if type(key) not in (str, bytes) and not (type(key) is int and 0 <= key < 2**31):
        raise ValueError(f"the key {shown(key)}")
    return key


NUMPY: Mapping[str, Callable[..., Any]] = {
    "numpy.ndarray": Opaque,  # only ever an argument of _reconstruct
    "numpy.dtype": DType,
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: Array() for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": Opaque for core in ("core", "_core")},  # a record beside the weights
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,
    "collections.Counter": Opaque,  # of a schedule's milestones
}
"""Builders for pickles of NumPy arrays, by NumPy 1 and 2, pickle protocols 2 to 5."""


class _Name(str):
    """A global the file named; only ever looked up in the table of builders."""


_MARK = object()
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KNOWN = {
    *(*_LITERALS, *_CONSTANTS, *_EMPTY, *_SHORT_TUPLES),
    *("BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "MARK", "TUPLE", "PROTO", "FRAME", "STOP"),
    *("APPEND", "APPENDS", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
}
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}


def load(
    stream: BinaryIO,
    size: int,
    builders: Mapping[str, Callable[..., Any]] = NUMPY,
    persistent_load: Optional[Callable[[Any], Any]] = None,
) -> Any:
    """Read one pickle of plain data and leave ``stream`` right behind it.

    Args:
        stream: a seekable binary stream that never returns more than it holds (``mmap``, ``BytesIO``).
        size: bytes of the file; the text that builders copy may add up to four times this.
        builders: what each name the file may use stands for.
        persistent_load: makes the value of a persistent id (torch's storages); None refuses them.

    Returns:
        dict, list, tuple, str, bytes, int, float, bool, None, and what the builders made.

    Raises:
        UserError: the file is damaged, or names something that is not in ``builders``.
    """
    machine = _Machine(builders, persistent_load, copies=4 * size)
    try:
        for name, argument in _steps(stream):
            machine.step(name, argument)
        (value,) = machine.stack
        return value
    except UserError:
        raise
    except Exception as error:  # a damaged program fails in more ways than can be listed
        raise UserError(f"the file is damaged: {said(error)}") from error


def _steps(stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    """Yield name and argument of every instruction up to STOP.

    ``pickletools.genops`` would read the argument of an instruction that is then refused, such as a
    whole number of a million digits.
    """
    name = None
    while name != "STOP":
        code = stream.read(1)
        if code not in _OPCODES:
            raise ValueError(f"the instruction {code!r} does not exist" if code else "it is cut off")
        opcode = _OPCODES[code]
        name = opcode.name
        if name not in _KNOWN:
            raise UserError(f"the file uses the pickle instruction {name}, which this reader refuses")
        yield name, opcode.arg.reader(stream) if opcode.arg else None


class _Machine:
    """The stack, the memo and the limits of one pickle."""

    def __init__(self, builders: Mapping[str, Callable[..., Any]], persistent_load: Any, copies: int):
        self.builders, self.persistent_load = builders, persistent_load
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.steps_left, self.copies_left = MAX_STEPS, copies

    def step(self, name: str, argument: Any) -> None:
        self._take(1)
        stack, push = self.stack, self.stack.append
        if name in _LITERALS:
            if type(argument) is int and argument.bit_length() > MAX_BITS:
                raise ValueError(f"a whole number of {argument.bit_length()} bits")
            push(argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _EMPTY:
            push(_EMPTY[name]())
        elif name in _SHORT_TUPLES:
            push(tuple(self._pop(_SHORT_TUPLES[name])))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            push(self.memo[argument])
        elif name == "MARK":
            push(_MARK)
        elif name == "TUPLE":
            push(tuple(self._pop_to_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = self._pop(1) if name == "APPEND" else self._pop_to_mark()
            self._top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if name == "SETITEM" else self._pop_to_mark()
            if len(items) % 2:
                raise ValueError("a key without a value")
            self._top(dict).update(zip(map(_key, items[::2]), items[1::2]))
        elif name == "GLOBAL":
            self._push_name(*argument.split(" ", 1))
        elif name == "STACK_GLOBAL":
            self._push_name(*self._pop(2))
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = self._pop(2)
            push(self._build(function, arguments))
        elif name == "BUILD":
            (state,) = self._pop(1)
            if isinstance(stack[-1], (Array, DType)) and not isinstance(state, tuple):
                raise ValueError("a state that is no tuple")  # nor charged for what it makes of it
            if isinstance(stack[-1], Opaque):
                self._charge(state)
                stack[-1].set_state(state)
            elif not isinstance(stack[-1], dict):  # torch hangs metadata on a state dict; it is not wanted
                raise ValueError("a state for something that has none")
        elif name == "BINPERSID":
            if self.persistent_load is None:
                raise UserError(f"the file uses the pickle instruction {name}, which belongs in torch's files alone")
            push(self.persistent_load(*self._pop(1)))

    def _push_name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        full = f"{module}.{name}"
        if full not in self.builders:
            raise UserError(f"the file names {brief(full)}, which this reader refuses: it is no part of a checkpoint")
        self.stack.append(_Name(full))

    def _build(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that is no name")
        self._charge(arguments)
        return self.builders[function](*arguments)

    def _charge(self, values: Any) -> None:
        """Count what a builder may copy of ``values``: a file can hand the same long one to it again and again.

        An item of a container counts as a step, which is what it took to make it.
        """
        if isinstance(values, tuple):
            self._take(len(values) + sum(len(v) for v in values if isinstance(v, (tuple, list, dict))))
            self.copies_left -= sum(len(v) for v in values if isinstance(v, (str, bytes)))
            if self.copies_left < 0:
                raise UserError("the file unpacks to far more than its size")

    def _take(self, steps: int) -> None:
        self.steps_left -= steps
        if self.steps_left < 0:
            raise UserError(f"the file takes more than {MAX_STEPS:,} steps to read; no checkpoint does")

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"no {kind.__name__} where one is filled")
        return self.stack[-1]

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count or any(v is _MARK for v in self.stack[-count:]):
            raise ValueError("the stack is too short")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        start = len(self.stack)
        while start and self.stack[start - 1] is not _MARK:
            start -= 1
        if not start:
            raise ValueError("a mark is missing")
        items = self.stack[start:]
        del self.stack[start - 1 :]
        return items
