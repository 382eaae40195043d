"""Files that attack a reader: every case is a name, a reader, and a function that makes the file.

``CASES`` holds them all. What a file with code in it does where the code is run is the same for all:
it makes the file whose path the builder is given (the canary).
"""

from __future__ import annotations

import bz2
import dataclasses
import functools
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import numpy as np
from PIL import Image

from ppconvmixer import card, checkpoint, datasets, recipe, sources, torch_file, transforms, zoo
from ppconvmixer.torch_file import LEGACY_PREFIX

MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Case:
    """One hostile file.

    Args:
        build: makes the content, given the path of the canary.
        fine: checks the result of a file that may be read after all; None where it must be refused.
        trap: a careless reader makes the canary of it; ``test_the_traps_are_real`` sees it do so.
        says: words of the message.
        pixels: of a picture that is decoded; it may take memory for them.
    """

    name: str
    reader: str
    build: Callable[[str], bytes]
    fine: Optional[Callable[[Any], bool]] = None
    trap: bool = False
    says: str = ""
    pixels: int = 0


CASES: list[Case] = []


def case(reader: str, name: str, content: Any, **kwargs: Any) -> None:
    build = content if callable(content) else lambda canary: content
    CASES.append(Case(f"{reader}: {name}", reader, build, **kwargs))


# --- readers: write the file, read it as the program does, return what came out --------------------


def _weights(path: Path) -> Any:
    """As ``zoo.fill`` does it: every entry becomes float32 at last."""
    with np.errstate(over="ignore"):
        return {n: np.ascontiguousarray(v, np.float32) for n, v in checkpoint.read(path).items()}


def _network(path: Path) -> Any:
    return zoo.translate(path)


def _cifar(path: Path) -> Any:
    folder = path.parent / "cifar"
    folder.mkdir(exist_ok=True)
    path.rename(folder / "test_batch")
    return datasets.cifar10(sources.Folder(folder), "test")


def _tar(path: Path) -> Any:
    archive = sources.open_source(path)
    return {name: archive.read(name) for name in archive.names()}


def _folder(path: Path) -> Path:
    root = path.parent / "pictures"
    root.mkdir(exist_ok=True)
    (root / "a.png").write_bytes(b"a")
    (root.parent / "secret.png").write_bytes(b"secret")
    return root


def _all(pictures: datasets.Pictures) -> Any:
    pictures.check_labels(10)
    return pictures, [pictures.fetch(i) for i in range(len(pictures))]


def _list(path: Path) -> Any:
    return _all(datasets.from_list(sources.Folder(_folder(path)), path))


def _csv(path: Path) -> Any:
    return _all(datasets.from_csv(sources.Folder(_folder(path)), path))


def _picture(path: Path, backend: str = "pil") -> Any:
    decoded = transforms.decode(path.read_bytes(), backend)
    return np.asarray(decoded), transforms.eval_crop(zoo.IMAGENET, backend)(decoded)


READERS: dict[str, Callable[[Path], Any]] = {
    "checkpoint": _weights,
    "network": _network,
    "metadata": checkpoint.read_metadata,
    "cifar10": _cifar,
    "tar": _tar,
    "list": _list,
    "csv": _csv,
    "classes": datasets.read_classes,
    "picture": _picture,
    "picture by cv2": functools.partial(_picture, backend="cv2"),
    "recipe": recipe.load,
    "card": lambda path: card.read(path.with_suffix(".pdparams")),
}
SUFFIXES = {"recipe": ".yaml", "card": ".json", "csv": ".csv", "list": ".txt", "classes": ".txt", "tar": ".tar"}
NAMELESS = ("picture", "picture by cv2")  # bytes are decoded; the loader adds the picture's name


def write(case: Case, folder: Path, canary: Path) -> Path:
    """Write the file of a case into a folder and return its path."""
    path = folder / f"hostile{SUFFIXES.get(case.reader, '')}"
    path.write_bytes(case.build(str(canary)))
    return path


def bound(case: Case, size: int) -> int:
    """Bytes that reading may add to the memory of the process, by the kind and the size of the file.

    32 MiB are the instructions, headers and texts of a file, which are limited in number, and the
    libraries themselves. Compressed archives may unpack to 16 times their size or 16 MiB, tables keep
    some 60 bytes of every row, a decoded picture takes up to 16 bytes a pixel, of which there are at most 89 million.
    """
    factor = {"tar": 32, "list": 32, "csv": 32}.get(case.reader, 8)
    return 32 * MIB + factor * size + 16 * case.pixels


def safe_names() -> list[str]:
    """The names that a pickle of ours or of torch's may use."""
    return sorted({*torch_file.BUILDERS, *checkpoint._PADDLE})


# --- pickles ---------------------------------------------------------------------------------------


class Raw(bytes):
    """Instructions that leave one value on the stack."""


def emit(value: Any) -> bytes:
    """Instructions of protocol 2 for a value."""
    if isinstance(value, Raw):
        return value
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(raw)]) + raw if len(raw) < 256 else b"\x8b" + struct.pack("<i", len(raw)) + raw
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        raw = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(raw)) + raw
    if isinstance(value, bytes):
        return b"B" + struct.pack("<I", len(value)) + value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(emit, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(emit, value)) + b"e"
    return b"}(" + b"".join(emit(k) + emit(v) for k, v in value.items()) + b"u"


def name(module: str, attribute: str) -> Raw:
    return Raw(f"c{module}\n{attribute}\n".encode())


def call(module: str, attribute: str, *arguments: Any) -> Raw:
    return Raw(name(module, attribute) + emit(arguments) + b"R")


def program(value: Any) -> bytes:
    return b"\x80\x02" + emit(value) + b"."


def dtype(code: Any = "f4", order: Any = "<") -> Raw:
    state = (3, order, None, None, None, -1, -1, 0)
    return Raw(call("numpy", "dtype", code, False, True) + emit(state) + b"b")


F4 = dtype()


def array(shape: Any = (2,), kind: Raw = F4, data: Any = bytes(8), fortran: Any = False, state: Any = None) -> Raw:
    start = call("numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), (0,), b"b")
    return Raw(start + emit((1, shape, kind, fortran, data) if state is None else state) + b"b")


def opened(canary: str) -> Raw:
    return call("builtins", "open", canary, "w")


def shell(canary: str) -> str:
    return f"touch '{canary}'"


CODE: dict[str, Callable[[str], Raw]] = {
    "REDUCE of a name": opened,
    "REDUCE of os.system": lambda c: call("os", "system", shell(c)),
    "REDUCE of posix.system": lambda c: call("posix", "system", shell(c)),
    "REDUCE of eval": lambda c: call("builtins", "eval", f"open({c!r}, 'w')"),
    "REDUCE of exec": lambda c: call("builtins", "exec", f"open({c!r}, 'w')"),
    "REDUCE of Python 2's eval": lambda c: call("__builtin__", "eval", f"open({c!r}, 'w')"),
    "REDUCE of Popen": lambda c: call("subprocess", "check_call", ["touch", c]),
    "REDUCE of getattr": lambda c: Raw(
        call("builtins", "getattr", call("importlib", "import_module", "os"), "system") + emit((shell(c),)) + b"R"
    ),
    "REDUCE of pickle.loads": lambda c: call("pickle", "loads", program(opened(c))),
    "REDUCE of numpy's own runner": lambda c: call(
        "numpy.testing._private.utils", "runstring", f"open({c!r}, 'w')", {}
    ),
    "REDUCE of pathlib": lambda c: call("shutil", "copyfile", "/etc/hostname", c),
    "STACK_GLOBAL": lambda c: Raw(emit("os") + emit("system") + b"\x93" + emit((shell(c),)) + b"R"),
    "STACK_GLOBAL through a dotted name": lambda c: Raw(
        b"\x80\x04" + emit("shutil") + emit("os.system") + b"\x93" + emit((shell(c),)) + b"R"
    ),
    "INST": lambda c: Raw(b"(" + emit(shell(c)) + b"ios\nsystem\n"),
    "OBJ": lambda c: Raw(b"(" + name("builtins", "open") + emit(c) + emit("w") + b"o"),
    "NEWOBJ": lambda c: Raw(name("types", "new_class") + b")\x81"),
    "NEWOBJ_EX": lambda c: Raw(b"\x80\x04" + name("builtins", "dict") + b")}\x92"),
    "BUILD that becomes a call by __setstate__": lambda c: Raw(
        call("types", "SimpleNamespace") + emit({"__setstate__": name("os", "system")}) + b"b" + emit(shell(c)) + b"b"
    ),
    "BUILD of attributes": lambda c: Raw(call("types", "SimpleNamespace") + emit((None, {"a": opened(c)})) + b"b"),
    "a call memoised and fetched": lambda c: Raw(name("builtins", "open") + b"q\x00" + emit((c, "w")) + b"R"),
    "a call popped again": lambda c: Raw(opened(c) + b"0N"),
    "a call under a mark": lambda c: Raw(b"(" + opened(c) + b"1N"),
}
NO_TRAP = ("NEWOBJ", "NEWOBJ_EX", "REDUCE of numpy's own runner", "REDUCE of Python 2's eval")  # stranger than Python 3


def zipped(tree: Any, storages: Optional[dict[str, bytes]] = None, **members: bytes) -> bytes:
    """A file of torch's zip form around a tree."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("w/data.pkl", tree if type(tree) is bytes else program(tree))
        for key, content in {**{f"data/{k}": v for k, v in (storages or {}).items()}, **members}.items():
            archive.writestr(f"w/{key}", content)
    return stream.getvalue()


def legacy(tree: Any, keys: Any = None, tail: bytes = b"", protocol: Any = 1001, machine: Any = None) -> bytes:
    """A file of torch before 1.6."""
    machine = {"little_endian": True} if machine is None else machine
    head = LEGACY_PREFIX + b"."[:0]
    return head + b"".join(map(program, (protocol, machine, tree, ["0"] if keys is None else keys))) + tail


for what, code in CODE.items():
    trap = what not in NO_TRAP
    case("checkpoint", f"Paddle, {what}", lambda c, code=code: program({"w": code(c)}), trap=trap)
for what in ("REDUCE of a name", "STACK_GLOBAL", "INST", "OBJ", "BUILD that becomes a call by __setstate__"):
    code = CODE[what]
    case("checkpoint", f"torch's zip, {what}", lambda c, code=code: zipped({"w": code(c)}))
    case("checkpoint", f"torch's legacy form, {what}", lambda c, code=code: legacy({"w": code(c)}))
    case("cifar10", what, lambda c, code=code: program({"data": code(c), "labels": []}))
PLACES: dict[str, Callable[[Raw], Any]] = {
    "a key": lambda trap: Raw(b"}" + trap + b"Ns"),
    "a list": lambda trap: {"w": [1, [trap]]},
    "arguments": lambda trap: call("collections", "OrderedDict", trap),
    "the state of an array": lambda trap: array(state=trap),
    "the type of an array": lambda trap: array(kind=trap),
    "what is forgotten": lambda trap: call("argparse", "Namespace", trap),
    "the tail after the weights": lambda trap: Raw(emit({"w": array()}) + trap + b"0"),
}
for where, place in PLACES.items():
    case("checkpoint", f"Paddle, code in {where}", lambda c, place=place: program(place(opened(c))), trap=True)
for protocol in range(6):
    if protocol < 2:
        case("checkpoint", f"protocol {protocol}", pickle.dumps({"w": [1.5]}, protocol=protocol))
    else:

        class _Open:
            def __init__(self, path):
                self.path = path

            def __reduce__(self):
                return open, (self.path, "w")

        dumped = functools.partial(pickle.dumps, protocol=protocol)
        case("checkpoint", f"protocol {protocol}, an object", lambda c, d=dumped: d({"w": _Open(c)}), trap=True)

case("checkpoint", "EXT1", program(Raw(b"\x82\x01")))
case("checkpoint", "EXT2", program(Raw(b"\x83\x01\x00")))
case("checkpoint", "EXT4", program(Raw(b"\x84\x01\x00\x00\x00")))
case("checkpoint", "PERSID", program(Raw(b"Pa\n")))
case("checkpoint", "BINPERSID in Paddle's file", program(Raw(emit("a") + b"Q")))
case("checkpoint", "NEXT_BUFFER", b"\x80\x05" + b"\x97\x98.")
case("checkpoint", "codecs that unpack", program({"w": call("_codecs", "encode", "x" * 100, "zip")}))
case("checkpoint", "codecs that decode", program({"w": call("_codecs", "decode", b"x" * 100, "zip")}))
case("checkpoint", "a subtype of an array", program(call("numpy.core.multiarray", "_reconstruct", opened("/x"), (0,))))

# Lengths, numbers, texts.
for what, code in {
    "BINUNICODE of 4 GiB": b"X\xff\xff\xff\xff",
    "BINUNICODE8 of 8 EiB": b"\x8d" + b"\xff" * 7 + b"\x7f",
    "BINBYTES of 4 GiB": b"B\xff\xff\xff\xff",
    "BINBYTES8 of 8 EiB": b"\x8e" + b"\xff" * 7 + b"\x7f",
    "BINBYTES8 of 16 EiB": b"\x8e" + b"\xff" * 8,
    "BYTEARRAY8 of 8 EiB": b"\x96" + b"\xff" * 7 + b"\x7f",
    "BINSTRING of a negative length": b"T\xff\xff\xff\xff",
    "LONG4 of a negative length": b"\x8b\xff\xff\xff\xff",
    "LONG4 of 2 GiB": b"\x8b\xff\xff\xff\x7f",
    "LONG4 of a million bytes": b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6,
    "LONG of a million digits": b"L" + b"9" * 10**6 + b"L\n",
    "INT of a million digits": b"I" + b"9" * 10**6 + b"\n",
    "FLOAT of a million digits": b"F" + b"9" * 10**6 + b"\n",
    "STRING": b"S'\\x41'\n",
    "UNICODE": b"V\\u0041\n",
    "PUT": b"Np123456789012345678901234567890\n",
    "GET": b"g123456789012345678901234567890\n",
    "LONG_BINPUT into nothing": b"r\xff\xff\xff\xff",
    "LONG_BINGET of nothing": b"j\xff\xff\xff\xff",
    "text that is no UTF-8": b"X\x02\x00\x00\x00\xff\xfe",
    "text of a lone surrogate": b"X\x03\x00\x00\x00\xed\xa0\x80",
    "FRAME of 8 EiB": b"\x95" + b"\xff" * 7 + b"\x7f" + b"N",
    "PROTO 255": b"\x80\xffN",
    "DUP": b"N2",
    "POP of nothing": b"0",
    "POP_MARK of nothing": b"1",
    "TUPLE2 over a mark": b"N(N\x86",
    "a mark as a value": b"}" + emit("w") + b"(s",
    "two values left": b"NN",
    "a name without a module": b"c\n\n",
    "a name without an end": b"cos",
    "a name of a million letters": b"c" + b"a" * 10**6 + b"\nb\n",
    "a name that drives the terminal": b"c\x1b]0;owned\x07\n\x1b[2J\n",
    "a name of two lists": b"]]\x93",
    "a name of a nest of lists": b"]" + b"q\x00" + b"](h\x00h\x00eq\x00" * 40 + b"N\x93",
    "a call of a number": b"K\x01)R",
    "a call with text for arguments": name("argparse", "Namespace") + emit("x" * 10**6) + b"R",
    "a call with a list for arguments": name("argparse", "Namespace") + emit([1, 2]) + b"R",
    "a state for a number": b"K\x01}b",
    "items for a number": b"K\x01(K\x02e",
    "items for a tuple": b")(K\x02u",
    "a key without a value": b"}(" + emit("w") + b"u",
    "a list as a key": b"}]Ns",
    "a dictionary as a key": b"}}Ns",
    "a tuple as a key": b"})Ns",
    "a number as a key": b"}" + emit(1.5) + b"Ns",
    "None as a key": b"}NNs",
    "a list of itself": b"]q\x00h\x00a",
    "a dictionary of itself": b"}q\x00" + emit("state_dict") + b"h\x00s",
}.items():
    case("checkpoint", f"pickle, {what}", b"\x80\x02" + code + b".")
    if what in ("LONG4 of 2 GiB", "a list of itself", "a dictionary of itself", "a tuple as a key"):
        case("cifar10", f"pickle, {what}", b"\x80\x02" + code + b".")
case("checkpoint", "pickle, no end", b"\x80\x02" + emit({"w": array()}))
case("checkpoint", "pickle, the protocol alone", b"\x80\x02")
case("checkpoint", "pickle, an instruction that does not exist", b"\x80\x02\xff.")

# Depth, number, repetition.
for what, code in {
    "tuples": b")" + b"\x85" * 150_000,
    "lists": b"]" * 60_000 + b"a" * 59_999,
    "dictionaries": b"".join(b"}K\x01" for _ in range(40_000)) + b"N" + b"s" * 40_000,
}.items():
    for where, around in {
        "the whole": lambda nest: nest,
        "an entry": lambda nest: b"}" + emit("w") + nest + b"s",
        "a wrapper": lambda nest: b"}" + emit("state_dict") + nest + b"s",
        "a key": lambda nest: b"}" + nest + b"Ns",
        "a shape": lambda nest: array(shape=Raw(nest)),
        "a name": lambda nest: nest + emit("x") + b"\x93",
    }.items():
        case("checkpoint", f"nest of {what} as {where}", b"\x80\x02" + around(code) + b".")
        if where == "a key":
            items = Raw(b"](" + emit((Raw(code), 1)) + b"e")
            case(
                "checkpoint",
                f"nest of {what} as a key of an OrderedDict",
                program(call("collections", "OrderedDict", items)),
            )
            case(
                "checkpoint",
                f"torch's zip, nest of {what} as a storage",
                zipped({"w": Raw(b"(" + emit("storage") + code + b"tQ")}),
            )
            case("checkpoint", f"torch's legacy form, nest of {what} as a storage's name", legacy({}, [Raw(code)]))
LAUGHS = b"(" + b"N" * 10 + b"tq\x00" + b"".join(b"(" + b"h\x00" * 10 + b"tq\x00" for _ in range(20))
case("checkpoint", "a billion laughs as an entry", program({"w": Raw(LAUGHS)}))
case("checkpoint", "a billion laughs as a shape", program({"w": array(shape=Raw(LAUGHS))}))
case("checkpoint", "a billion laughs as a type", program({"w": array(kind=dtype(code=Raw(LAUGHS)))}))
case("checkpoint", "a billion laughs as a byte order", program({"w": array(kind=dtype(order=Raw(LAUGHS)))}))
case("checkpoint", "a billion laughs as an encoding", program({"w": call("_codecs", "encode", "a", Raw(LAUGHS))}))
case("cifar10", "a billion laughs", program({"data": Raw(LAUGHS), "labels": []}))
for what, code, count in (
    ("NONE", b"N", 3 * MIB),
    ("MARK", b"(", 3 * MIB),
    ("EMPTY_DICT", b"}", MIB),
    ("EMPTY_LIST", b"]", MIB),
):
    case("checkpoint", f"{count:,} times {what}", b"\x80\x02" + code * count + b".")
case(
    "checkpoint",
    "a million memos",
    b"\x80\x02" + b"".join(b"Nr" + struct.pack("<I", i) + b"0" for i in range(300_000)) + b"N.",
)
case(
    "checkpoint",
    "a million objects",
    b"\x80\x02" + name("argparse", "Namespace") + b"q\x00" + b"h\x00)R" * 300_000 + b".",
)
case("checkpoint", "a long list copied again and again",
     b"\x80\x02" + b"](" + b"N" * 50_000 + b"eq\x00" + name("builtins", "tuple") + b"q\x01" + b"h\x01h\x00\x85R" * 10_000 + b".")  # fmt: skip
case("checkpoint", "a long tuple as arguments again and again",
     b"\x80\x02" + b"(" + b"N" * 50_000 + b"tq\x00" + name("argparse", "Namespace") + b"q\x01" + b"h\x01h\x00R" * 10_000 + b".")  # fmt: skip
case("checkpoint", "a long text made a tuple", program({"w": call("builtins", "tuple", "x" * MIB)}))
case("checkpoint", "a long text encoded again and again",
     b"\x80\x02" + emit("x" * MIB) + b"q\x00" + emit("latin1") + b"q\x01" + name("_codecs", "encode") + b"q\x02" + b"h\x02h\x00h\x01\x86R" * 1000 + b".")  # fmt: skip
case(
    "checkpoint",
    "keys that collide",
    program(Raw(b"}(" + b"".join(emit(i * (2**61 - 1)) + b"N" for i in range(30_000)) + b"u")),
)

# Arrays.
for what, code in {
    "objects": array(kind=dtype("O8")),
    "nothing": array(kind=dtype("V8")),
    "bytes": array(kind=dtype("S8")),
    "text": array(kind=dtype("U2")),
    "dates": array(kind=dtype("M8[s]")),
    "complex numbers": array(kind=dtype("c8"), shape=(1,)),
    "records": array(kind=dtype([("a", "f4")])),
    "a type with a shape": array(kind=dtype("(1000000000,)f4")),
    "a comma-separated type": array(kind=dtype("f4,f4")),
    "a type that is a number": array(kind=dtype(4)),
    "an unknown byte order": array(kind=dtype(order="!")),
    "shape -1": array(shape=(-1,)),
    "shape (-1, -2)": array(shape=(-1, -2)),
    "a shape too large": array(shape=(3,)),
    "a shape too small": array(shape=(1,)),
    "a shape of 2 ** 62": array(shape=(2**62,)),
    "a shape whose product wraps to 2": array(shape=(2**33 + 1, 2**32)),
    "a shape of 10 ** 30": array(shape=(10**30,)),
    "a shape of 10 ** 1000": array(shape=(10**1000,)),
    "33 axes": array(shape=(1,) * 32 + (2,)),
    "50,000 axes": array(shape=(2**60,) * 50_000),
    "a shape of truth": array(shape=(True, 2)),
    "a shape of fractions": array(shape=(2.0,)),
    "a shape of text": array(shape="2"),
    "a shape that is a list": array(shape=[2]),
    "a shape that is a number": array(shape=2),
    "data that are text above 255": array(data="\u0100" * 8),
    "data that are a list": array(data=[1, 2]),
    "data that are no multiple": array(data=bytes(7)),
    "a state of one": array(state=(1,)),
    "a state of text": array(state="abcde"),
    "no state": call("numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), (0,), b"b"),
    "whole numbers": array(kind=dtype("i4")),
    "truth": array(kind=dtype("b1"), data=bytes(2)),
    "bytes from a buffer": call("numpy.core.numeric", "_frombuffer", bytes(8), dtype(), (-1,), "C"),
}.items():
    case("checkpoint", f"Paddle's array, {what}", program({"w": code}))
case(
    "network",
    "Paddle's array, nothing of a huge shape",
    program({"stem.0.weight": array(shape=(0, 10**12), data=b"")}),
    says="empty",
)
case("checkpoint", "one array under 20,000 names",
     b"\x80\x02" + array(shape=(MIB,), data=bytes(4 * MIB)) + b"q\x000}(" + b"".join(emit(f"a{i}") + b"h\x00" for i in range(20_000)) + b"u.")  # fmt: skip
case("checkpoint", "one bfloat16 array under 20,000 names",
     b"\x80\x02" + array(shape=(MIB,), kind=dtype("u2"), data=bytes(2 * MIB)) + b"q\x000}(" + b"".join(emit(f"a{i}") + b"h\x00" for i in range(20_000)) + b"u.")  # fmt: skip
case(
    "checkpoint",
    "an entry whose name drives the terminal",
    program({"\x1b[2J\r\nppconvmixer: all is well": 1}),
    says="\\x1b",
)
case("checkpoint", "an entry whose name is a million letters", program({"a" * 10**6: 1}))
case("checkpoint", "an entry whose name turns the line round", program({"\u202egnp.x": 1}), says="u202e")
for what, tree in {
    "a list": [1],
    "nothing": None,
    "no entries": {},
    "numbers for names": {1: array()},
    "text": "w",
}.items():
    case("checkpoint", f"Paddle, the whole is {what}", program(tree))
    case("checkpoint", f"torch's zip, the whole is {what}", zipped(tree))

# --- torch -----------------------------------------------------------------------------------------


FLOATS = name("torch", "FloatStorage")


def storage(kind: Any = FLOATS, key: Any = "0", size: Any = 4, *view: Any) -> Raw:
    return Raw(emit(("storage", kind, key, "cpu", size, *view)) + b"Q")


def tensor(of: Any = None, offset: Any = 0, shape: Any = (4,), stride: Any = (1,)) -> Raw:
    return call("torch._utils", "_rebuild_tensor_v2", storage() if of is None else of, offset, shape, stride, False, {})


DATA = {"0": bytes(16)}
for what, code in {
    "a storage that is missing": tensor(storage(key="1")),
    "a storage outside the archive": tensor(storage(key="../../../../etc/passwd")),
    "a storage of an absolute path": tensor(storage(key="/etc/passwd")),
    "a storage whose name drives the terminal": tensor(storage(key="\x1b[2J\n")),
    "a storage named by a number": tensor(storage(key=0)),
    "a storage of another size": tensor(storage(size=5)),
    "a storage of a negative size": tensor(storage(size=-4)),
    "a storage of 2 ** 62": tensor(storage(size=2**62)),
    "a storage of 10 ** 1000": tensor(storage(size=10**1000)),
    "a storage of truth": tensor(storage(size=True)),
    "a storage of an unknown kind": tensor(storage(name("torch", "ComplexFloatStorage"))),
    "a storage of a kind that is text": tensor(storage("FloatStorage")),
    "a storage of a kind that is a list": tensor(storage([])),
    "a storage of whole numbers": tensor(storage(name("torch", "IntStorage"))),
    "a storage with a view outside": tensor(storage(name("torch", "FloatStorage"), "0", 4, ("v", 2, 4))),
    "a storage with a view before": tensor(storage(name("torch", "FloatStorage"), "0", 4, ("v", -1, 4))),
    "a storage with a view of text": tensor(storage(name("torch", "FloatStorage"), "0", 4, ("v", "0", "4"))),
    "a storage with a view of nothing": tensor(storage(name("torch", "FloatStorage"), "0", 4, ())),
    "an identity of text": tensor(Raw(emit("storage") + b"Q")),
    "an identity of one": tensor(Raw(emit(("storage",)) + b"Q")),
    "an identity of another tag": tensor(Raw(emit(("module", "a", "b", "c", 1)) + b"Q")),
    "no storage": tensor(1),
    "an offset outside": tensor(offset=1),
    "a negative offset": tensor(offset=-1),
    "an offset of 2 ** 62": tensor(offset=2**62),
    "an offset of truth": tensor(offset=True),
    "an offset of a fraction": tensor(offset=0.0),
    "a negative stride": tensor(offset=3, stride=(-1,)),
    "a stride outside": tensor(stride=(2,)),
    "a stride of 2 ** 63": tensor(shape=(1,), stride=(2**63,)),
    "a stride of 0 over a huge shape": tensor(shape=(10**12,), stride=(0,)),
    "a stride of 0 over a small shape": tensor(shape=(5,), stride=(0,)),
    "a negative shape": tensor(shape=(-4,)),
    "two negative axes": tensor(shape=(-2, -2), stride=(2, 1)),
    "a shape too large": tensor(shape=(5,)),
    "a shape whose product wraps": tensor(shape=(2**32, 2**32), stride=(0, 0)),
    "a shape of 10 ** 30": tensor(shape=(10**30,)),
    "a shape of truth": tensor(shape=(True, 4), stride=(4, 1)),
    "a shape of fractions": tensor(shape=(4.0,)),
    "a shape of text": tensor(shape="4"),
    "a shape of text in a Size": tensor(shape=call("torch", "Size", "4444")),
    "a shape of 33 axes": tensor(shape=(1,) * 33, stride=(1,) * 33),
    "a shape of 50,000 axes": tensor(shape=(2**60,) * 50_000, stride=(0,) * 50_000),
    "fewer strides than axes": tensor(shape=(2, 2), stride=(1,)),
    "a quantised tensor": call("torch._utils", "_rebuild_qtensor", storage(), 0, (4,), (1,), ()),
    "a sparse tensor": call("torch._utils", "_rebuild_sparse_tensor", 1, ()),
    "a device tensor from NumPy": call(
        "torch._utils", "_rebuild_device_tensor_from_numpy", array(), "f4", "cpu", False
    ),
    "a tensor of a subclass": call("torch._tensor", "_rebuild_from_type_v2", 1, 2, 3, 4),
    "a parameter of a number": call("torch._utils", "_rebuild_parameter", 1, True, {}),
    "a module that was pickled": call("torch.nn.modules.linear", "Linear"),
    "an array for a tensor": array(),
}.items():
    case("checkpoint", f"torch's zip, {what}", zipped({"w": code}, DATA))
for what in (
    "a storage of another size",
    "a stride outside",
    "a shape whose product wraps",
    "a storage of a kind that is a list",
):
    code = {"a storage of another size": tensor(storage(size=5)), "a stride outside": tensor(stride=(2,)),
            "a shape whose product wraps": tensor(shape=(2**32, 2**32), stride=(0, 0)),
            "a storage of a kind that is a list": tensor(storage([]))}[what]  # fmt: skip
    case("checkpoint", f"torch's legacy form, {what}", legacy({"w": code}, None, struct.pack("<q", 4) + bytes(16)))
GOOD = zipped({"w": tensor()}, DATA)
case("checkpoint", "torch's zip, 20,000 tensors of one storage", zipped(
    b"\x80\x02" + storage(size=MIB) + b"q\x000" + name("torch._utils", "_rebuild_tensor_v2") + b"q\x010"
    + emit((MIB,)) + b"q\x020" + emit((1,)) + b"q\x030}(" + b"".join(
        emit(str(i)) + b"h\x01(h\x00K\x00h\x02h\x03\x89}tR" for i in range(8_000)) + b"u.", {"0": bytes(4 * MIB)}))  # fmt: skip


def archived(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names given twice
        for member, content in members:
            archive.writestr(member, content)
    return stream.getvalue()


TREE = program({"w": tensor()})
case(
    "checkpoint",
    "zip, compressed",
    archived(("w/data.pkl", TREE), ("w/data/0", bytes(16)), compression=zipfile.ZIP_DEFLATED),
)
case(
    "checkpoint",
    "zip, a bomb",
    archived(("w/data.pkl", TREE), ("w/data/0", bytes(32 * MIB)), compression=zipfile.ZIP_DEFLATED),
)
case(
    "checkpoint",
    "zip, a bomb of LZMA",
    archived(("w/data.pkl", TREE), ("w/data/0", bytes(8 * MIB)), compression=zipfile.ZIP_LZMA),
)
case("checkpoint", "zip, data.pkl twice", archived(("w/data.pkl", TREE), ("w/data.pkl", TREE), ("w/data/0", bytes(16))))
case(
    "checkpoint",
    "zip, a storage twice",
    archived(("w/data.pkl", TREE), ("w/data/0", bytes(16)), ("w/data/0", b"x" * 16)),
)
case("checkpoint", "zip, two folders", archived(("w/data.pkl", TREE), ("v/data.pkl", TREE)))
case("checkpoint", "zip, no data.pkl", archived(("w/data", TREE)))
case("checkpoint", "zip, empty data.pkl", archived(("w/data.pkl", b"")))
case("checkpoint", "zip, a document", archived(("[Content_Types].xml", b"<a/>")))
case("checkpoint", "zip, big-endian", archived(("w/data.pkl", TREE), ("w/byteorder", b"big"), ("w/data/0", bytes(16))))
case("checkpoint", "zip, 30,000 members", archived(("w/data.pkl", TREE), *((f"w/{i}", b"") for i in range(30_000))))
case(
    "checkpoint", "zip, TorchScript", archived(("w/data.pkl", program(call("__torch__", "Net"))), ("w/code/a.py", b"x"))
)
case(
    "checkpoint",
    "zip, members that escape",
    archived(("../../../data.pkl", TREE), ("/tmp/../data/0", bytes(16))),
    says="missing",
)
case("checkpoint", "zip, a name that drives the terminal", archived(("\x1b[2J/data.pkl", TREE)))


def patched(content: bytes, *edits: tuple[bytes, int, bytes]) -> bytes:
    """Overwrite what stands ``offset`` bytes after the last occurrence of a signature."""
    changed = bytearray(content)
    for signature, offset, value in edits:
        start = changed.rindex(signature) + offset
        changed[start : start + len(value)] = value
    return bytes(changed)


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
for what, content in {
    "an encrypted member": patched(GOOD, (LOCAL, 6, b"\x01"), (CENTRAL, 8, b"\x01")),
    "a member of 4 GiB": patched(GOOD, (CENTRAL, 20, b"\xf0\xff\xff\xff" * 2)),
    "a member that is longer than it is": patched(GOOD, (CENTRAL, 24, b"\x20\x00\x00\x00")),
    "a member far away": patched(GOOD, (CENTRAL, 42, b"\xf0\xff\xff\x7f")),
    "a member on top of another": patched(GOOD, (CENTRAL, 42, b"\x00\x00\x00\x00")),
    "a wrong checksum": patched(GOOD, (CENTRAL, 16, b"abcd")),
    "an unknown method": patched(GOOD, (CENTRAL, 10, b"\x63")),
    "a later version": patched(GOOD, (CENTRAL, 6, b"\xff")),
    "an index of 4 GiB": patched(GOOD, (END, 12, b"\xf0\xff\xff\xff")),
    "an index far away": patched(GOOD, (END, 16, b"\xf0\xff\xff\xff")),
    "an index of zip64 that is missing": patched(GOOD, (END, 8, b"\xff" * 12)),
    "an index that is cut": GOOD[:-30],
    "no index": GOOD[: GOOD.index(CENTRAL)],
    "half": GOOD[: len(GOOD) // 2],
    "the signature alone": LOCAL,
}.items():
    case("checkpoint", f"zip, {what}", content)


def overlapping() -> bytes:
    """Every member of the index is the same megabyte."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("w/data.pkl", TREE)
        archive.writestr("w/data/0", bytes(MIB))
        first = archive.filelist[1]
        for i in range(1, 2000):
            archive.filelist.append(other := zipfile.ZipInfo(f"w/data/{i}"))
            for field in ("header_offset", "CRC", "compress_size", "file_size", "external_attr"):
                setattr(other, field, getattr(first, field))
    return stream.getvalue()


case("checkpoint", "zip, members that overlap", overlapping(), says="more than its size")

tail = struct.pack("<q", 4) + bytes(16)
for what, content in {
    "another protocol": legacy({"w": tensor()}, tail=tail, protocol=1002),
    "a protocol that is a list": legacy({"w": tensor()}, tail=tail, protocol=[1001]),
    "a machine that is big-endian": legacy({"w": tensor()}, tail=tail, machine={"little_endian": False}),
    "a machine that is a list": legacy({"w": tensor()}, tail=tail, machine=[1]),
    "keys that are a number": legacy({"w": tensor()}, 5, tail),
    "keys that are numbers": legacy({"w": tensor()}, [0], tail),
    "a key nobody uses": legacy({"w": tensor()}, ["7"], tail),
    "no keys": legacy({"w": tensor()}, [], tail),
    "2 ** 62 numbers": legacy({"w": tensor()}, None, struct.pack("<q", 2**62) + bytes(16)),
    "-1 numbers": legacy({"w": tensor()}, None, struct.pack("<q", -1) + bytes(16)),
    "numbers that are cut": legacy({"w": tensor()}, None, tail[:-1]),
    "no numbers": legacy({"w": tensor()}, None, b""),
    "the magic number alone": LEGACY_PREFIX,
    "a key twice": legacy({"w": tensor()}, ["0", "0"], tail),
}.items():
    case("checkpoint", f"torch's legacy form, {what}", content)

# --- safetensors -----------------------------------------------------------------------------------


def tensors(header: Any, data: bytes = bytes(8), length: Optional[int] = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(kind: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict:
    return {"dtype": kind, "shape": shape, "data_offsets": offsets}


many = {f"{i}": entry(shape=(0,), offsets=(0, 0)) for i in range(60_000)}
twice = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
for what, content in {
    "a header of 16 EiB": tensors({"w": entry()}, length=2**64 - 1),
    "a header longer than the file": tensors({"w": entry()}, length=1000),
    "a header of 4 MB": tensors(many, b""),
    "a header of blanks": tensors(b"{" + b" " * (2 * MIB) + b"}", b""),
    "a header that is cut": tensors({"w": entry()})[:30],
    "a header that is no JSON": tensors(b"{nothing}"),
    "a header that is no UTF-8": tensors(b'{"\xff":1}'),
    "a header of nests": tensors(b'{"w":' * 100_000, b""),
    "a header of lists": tensors(b'{"w":' + b"[" * 100_000, b""),
    "a header without entries": tensors({}, b""),
    "an entry that is a number": tensors({"w": 1}),
    "an entry that is text": tensors({"w": "\x1b[2J"}),
    "an entry without a shape": tensors({"w": {"dtype": "F32", "data_offsets": (0, 8)}}),
    "a key twice": tensors(twice, bytes(16)),
    "entries that overlap": tensors({"v": entry(), "w": entry(offsets=(4, 12))}, bytes(12)),
    "entries on the same numbers": tensors({"v": entry(), "w": entry()}),
    "a hole": tensors({"v": entry(), "w": entry(offsets=(12, 20))}, bytes(20)),
    "a hole at the start": tensors({"w": entry(offsets=(8, 16))}, bytes(16)),
    "numbers outside": tensors({"w": entry(offsets=(0, 16), shape=(4,))}),
    "offsets turned round": tensors({"w": entry(offsets=(8, 0))}),
    "negative offsets": tensors({"w": entry(offsets=(-8, 0))}),
    "huge offsets": tensors({"w": entry(offsets=(0, 2**64))}),
    "offsets of fractions": tensors({"w": entry(offsets=(0.0, 8.0))}),
    "a shape too large": tensors({"w": entry(shape=(3,))}),
    "a negative shape": tensors({"w": entry(shape=(-2,))}),
    "a shape whose product wraps": tensors({"w": entry(shape=(2**33 + 1, 2**31))}),
    "a shape of 100 axes": tensors({"w": entry(shape=(1,) * 99 + (2,))}),
    "whole numbers": tensors({"w": entry("I64", (1,))}),
    "an unknown type": tensors({"w": entry("F33")}),
    "bytes": tensors({"w": entry("U8", (8,))}),
    "8-bit floats": tensors({"w": entry("F8_E4M3", (8,))}),
    "complex numbers": tensors({"w": entry("C64", (1,))}),
    "truth": tensors({"w": entry("BOOL", (8,))}),
    "data left over": tensors({"w": entry()}, bytes(9)),
    "a name that drives the terminal": tensors({"\x1b[2J\r\nok": entry("I64", (1,))}),
    "a name of a million letters": tensors({"a" * 900_000: entry("I64", (1,))}),
    "metadata of numbers": tensors({"__metadata__": {"a": 1}, "w": entry()}),
    "metadata alone": tensors({"__metadata__": {"a": "b"}}, b""),
}.items():
    case("checkpoint", f"safetensors, {what}", content)
    if what.startswith(("a header", "metadata of")) and what not in ("a header without entries",):
        case("metadata", what, content)
case("metadata", "no file of the kind", b"hello")
case("metadata", "nothing", b"")

# --- weights ---------------------------------------------------------------------------------------


def network(**shapes: tuple[int, ...]) -> bytes:
    sizes = {"stem_0_weight": (2, 3, 2, 2), "stem_0_bias": (2,), "head_weight": (2, 5), "head_bias": (5,), **shapes}
    return pickle.dumps({n.replace("_", "."): np.ones(s, np.float32) for n, s in sizes.items() if s is not None}, 4)


case("network", "a head of nothing by a billion", network(head_weight=(0, 10**9)), says="empty")
case("network", "a head of another width", network(head_weight=(1, 10**6)), says="stem and head")
case("network", "a head of three axes", network(head_weight=(2, 5, 1)), says="stem and head")
case("network", "a head without an axis", network(head_weight=()), says="stem and head")
case("network", "a stem of one axis", network(stem_0_weight=(2,)), says="stem and head")
case("network", "a stem without a weight", network(stem_0_weight=None), says="stem and head")
case("network", "other names", pickle.dumps({"\x1b[2J": np.ones(2, np.float32)}, 4), says="begin with")
case("network", "other names of a million letters", pickle.dumps({"a" * 10**6: np.ones(2, np.float32)}, 4))
case("network", "whole numbers", pickle.dumps({"stem.0.weight": np.ones((2, 3, 2, 2), np.int32)}, 4), says="int32")
both = {f"stem.{n}": np.ones(2, np.float32) for n in ("0.weight", "2._mean", "2.running_mean")}
case("network", "names of both frameworks", pickle.dumps(both, 4), says="mixes")

# --- CIFAR-10 --------------------------------------------------------------------------------------

PIXELS = array(shape=(2, 3072), kind=dtype("u1"), data=bytes(2 * 3072))
for what, tree in {
    "one label for two pictures": {"data": PIXELS, "labels": [1]},
    "a label of 10": {"data": PIXELS, "labels": [1, 10]},
    "a label of -1": {"data": PIXELS, "labels": [1, -1]},
    "a label of 10 ** 30": {"data": PIXELS, "labels": [1, 10**30]},
    "labels of truth": {"data": PIXELS, "labels": [True, False]},
    "labels of text": {"data": PIXELS, "labels": "11"},
    "labels in a tuple": {"data": PIXELS, "labels": (1, 1)},
    "no labels": {"data": PIXELS},
    "no data": {"labels": []},
    "no pictures": {"data": array(shape=(0, 3072), kind=dtype("u1"), data=b""), "labels": []},
    "data of lists": {"data": [[0] * 3072], "labels": [1]},
    "data of fractions": {"data": array(shape=(1, 3072), data=bytes(4 * 3072)), "labels": [1]},
    "data of another shape": {"data": array(shape=(2, 3073), kind=dtype("u1"), data=bytes(2 * 3073)), "labels": [1, 1]},
    "data of one axis": {"data": array(shape=(3072,), kind=dtype("u1"), data=bytes(3072)), "labels": [1] * 3072},
    "data without a state": {"data": CODE["REDUCE of a name"]("/x"), "labels": []},
    "data in Fortran's order that are cut": {"data": array(shape=(2, 3072), kind=dtype("u1"), data=b"x", fortran=True), "labels": [1, 1]},
    "keys of both kinds that collide": {b"data": PIXELS, "data": 1, "labels": [1, 1]},
    "a list": [1],
    "a number": 1,
}.items():  # fmt: skip
    case("cifar10", what, program(tree))
case("cifar10", "nothing", b"")
case("cifar10", "a picture", b"\x89PNG\r\n\x1a\n")

# --- archives --------------------------------------------------------------------------------------


def tarred(*members: Any, kind: int = tarfile.GNU_FORMAT) -> bytes:
    """An archive of (name, content) or (name, content, fields of its TarInfo)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
        for member, content, *fields in members:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            for field, value in (fields[0] if fields else {}).items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def header(
    member: str = "a.png", size: bytes = b"00000000000\0", kind: bytes = b"0", magic: bytes = b"ustar\x0000"
) -> bytes:
    """A header whose size field may be anything; its checksum is right."""
    raw = bytearray(512)
    raw[: len(member)] = member.encode()
    raw[100:108], raw[124 : 124 + len(size)], raw[156:157], raw[257:265] = b"0000644\0", size, kind, magic
    raw[148:156] = b"        "
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def nothing_but(*content: tuple[str, bytes]) -> Callable[[Any], bool]:
    return lambda found: found == dict(content)


ESCAPES = {
    "a member above": ("../../secret.png", b"x"),
    "a member of an absolute path": ("/etc/passwd", b"x"),
}
for what, member in ESCAPES.items():
    case("tar", f"{what}, which is only read", tarred(member), fine=nothing_but(member))
for what, kind in {"symbolic link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE}.items():
    fields = {"type": kind, "linkname": "/etc/passwd"}
    case(
        "tar",
        f"a {what} to /etc/passwd, which is no picture",
        tarred(("a.png", b"", fields), ("b.png", b"x")),
        fine=nothing_but(("b.png", b"x")),
    )
for what, kind in {
    "device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "pipe": tarfile.FIFOTYPE,
    "folder": tarfile.DIRTYPE,
}.items():
    case(
        "tar",
        f"a {what}, which is no picture",
        tarred(("a.png", b"", {"type": kind}), ("b.png", b"x")),
        fine=nothing_but(("b.png", b"x")),
    )
case(
    "tar",
    "a link through a folder",
    tarred(("d", b"", {"type": tarfile.SYMTYPE, "linkname": "/"}), ("d/etc/x", b"x")),
    fine=nothing_but(("d/etc/x", b"x")),
)
case("tar", "a name given twice: the later counts", tarred(("a", b"1"), ("a", b"2")), fine=nothing_but(("a", b"2")))
packers = {
    "gzip": functools.partial(gzip.compress, mtime=0),
    "bzip2": functools.partial(bz2.compress, compresslevel=1),
    "xz": functools.partial(lzma.compress, preset=0),
}
for what, pack in packers.items():
    case(
        "tar", f"a bomb of {what}", lambda c, pack=pack: pack(tarred(("a.png", bytes(17 * MIB)))), says="unpacked first"
    )
    case(
        "tar",
        f"many small files of a bomb of {what}",
        lambda c, pack=pack: pack(tarred(*((f"{i}.png", bytes(50_000)) for i in range(340)))),
        says="unpacked first",
    )
    case("tar", f"{what} of a member that is cut", pack(tarred(("a.png", bytes(5000)))[:3000]))
    case("tar", f"cut {what}", pack(tarred(("a.png", np.random.default_rng(0).bytes(10_000))))[:5000])
    case(
        "tar",
        f"damaged {what}",
        patched(pack(tarred(("a.png", np.random.default_rng(0).bytes(10_000)))), (b"", -5000, b"xxxxxxxx")),
    )
case(
    "tar",
    "25,000 empty members of gzip",
    lambda c: gzip.compress(b"".join(header(f"{i}.png") for i in range(40_000)), 1),
    says="unpack",
)
case(
    "tar",
    "20,000 empty members",
    b"".join(header(f"{i}.png") for i in range(20_000)) + bytes(1024),
    fine=lambda found: len(found) == 20_000,
)
case(
    "tar",
    "a bomb of gzip in a long name",
    gzip.compress(header("././@LongLink", b"77777777777\0", b"L", b"ustar  \0") + bytes(20 * MIB)),
)
case("tar", "a bomb of gzip in a pax header", gzip.compress(header("x", b"77777777777\0", b"x") + bytes(20 * MIB)))
case("tar", "a bomb of gzip within gzip", gzip.compress(gzip.compress(bytes(32 * MIB))))
LARGEST = b"\x80" + b"\x00" * 3 + b"\x7f" + b"\xff" * 7
for what, size in {
    "8 GiB": b"77777777777\0",
    "8 EiB": LARGEST,
    "-1,024": b"\xff" * 10 + b"\xfc\x00",
    "-512": b"\xff" * 10 + b"\xfe\x00",
    "letters": b"zzzzzzzzzzz\0",
}.items():
    for kind, letter in {
        "a member": b"0",
        "a long name": b"L",
        "a long link": b"K",
        "a pax header": b"x",
        "a global header": b"g",
        "a sparse member": b"S",
        "a folder": b"5",
    }.items():
        magic = b"ustar  \0" if letter in b"LKS" else b"ustar\x0000"
        case("tar", f"{kind} of {what} bytes", header("a.png", size, letter, magic) + header("b.png") + bytes(1024),
             fine=nothing_but(("b.png", b"")) if letter == b"5" and what != "letters" else None)  # fmt: skip
pax = functools.partial(tarred, kind=tarfile.PAX_FORMAT)
for what, fields in {
    "a negative size": {"size": "-512"},
    "a huge size": {"size": "9" * 18},
    "a size that is no number": {"size": "many"},
    "a size of 4,000 digits": {"size": "9" * 4000},
    "sparse parts": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 15},
    "a sparse map": {"GNU.sparse.size": "9" * 15, "GNU.sparse.map": "0,1,99999999999,1", "GNU.sparse.numblocks": "2"},
    "a sparse map that is no map": {"GNU.sparse.map": "a,b", "GNU.sparse.size": "5"},
}.items():
    case("tar", f"a pax header of {what}", pax(("a.png", b"x" * 600, {"pax_headers": fields}), ("b.png", b"y")))
case(
    "tar",
    "a pax header that repeats itself for ever",
    header("x", b"00000000016\0", b"x") + b"14 size=-1536\n".ljust(512, b"\0") + header("a.png") + bytes(1024),
)
case(
    "tar",
    "a pax header of a path that drives the terminal",
    pax(("\x1b[2J\nb.png", b"x")),
    fine=lambda found: len(found) == 1,
)
case(
    "tar",
    "10,000 pax headers in a row",
    b"".join(header("x", b"00000000000\0", b"x") for _ in range(10_000)) + header(),
)
case(
    "tar",
    "10,000 long names in a row",
    b"".join(header("x", b"00000000002\0", b"L", b"ustar  \0") + b"a".ljust(512, b"\0") for _ in range(10_000))
    + header(),
)
case("tar", "a pax header of one field that is half a megabyte of digits", header("x", b"%011o\0" % (512 * 1024), b"x") + b"1" * (512 * 1024) + header())  # fmt: skip
case("tar", "a header with a wrong checksum", b"x" + header()[1:])
case("tar", "a member that is cut", tarred(("a.png", bytes(5000)))[:3000])
case("tar", "text", b"hello\n" * 1000)
case("tar", "nothing", b"")
case("tar", "zeros, which are an empty archive", bytes(10240), fine=lambda found: found == {})

# --- tables ----------------------------------------------------------------------------------------

a_png = {"fine": lambda found: found[1] == [b"a"]}
case("list", "a picture, to see that the trap is open", b"a.png 3\n", **a_png)
case("list", "a form feed that is no line", b"a.png\x0c1 \x0b\n", **a_png)
for what, path in {
    "a path above": "../secret.png",
    "a path above through a folder": "b/../../secret.png",
    "an absolute path": "/etc/passwd",
    "the folder itself": "..",
    "a path of 10,000 letters": "a" * 10_000,
    "a path of 10,000 folders": "a/" * 10_000 + "a",
    "a device": "/dev/zero",
    "a path that drives the terminal": "\x1b[2J\x1b]0;x\x07",
    "a path that turns the line round": "\u202egnp.a",
}.items():
    case("list", what, f"{path} 3\n".encode())
    case("list", f"{what} after a good one", f"a.png 1\n{path} 3\n".encode())
    case("csv", what, f"path,label\n{path},3\n".encode())
for what, content in {
    "100,000 blanks": b" " * 60_000 + b"a" + b" " * 60_000,
    "blanks and commas": (b", " * 30_000 + b"x\n") * 20,
    "60,000 blanks before a letter": (b"a" + b" " * 60_000 + b"b\n") * 20,
    "a line of 4 MiB": b"a" * (4 * MIB),
    "digits alone": b"1" * 60_000,
    "a label of a million digits": b"a.png " + b"1" * 60_000,
    "a negative label": b"a.png -1\n",
    "a label of another script": "a.png \u0663\n".encode(),
    "a label outside": b"a.png 999999999\n",
    "zeros": bytes(1000),
    "a zero in a path": b"a\0b.png 1\n",
    "UTF-16": "a.png 1\n".encode("utf-16"),
    "no text": b"\xff\xfe\xfd",
    "a picture": b"\x89PNG\r\n\x1a\n\0\0\0",
    "nothing": b"",
    "blank lines": b"\n" * 100_000,
    "50,000 lines": b"".join(b"%d.png 1\n" % i for i in range(50_000)),
    "a formula": b"=cmd|'/c calc'!A1 1\n",
}.items():
    case("list", what, content)
case("csv", "a picture, to see that the trap is open", b"path,label\na.png,3\n", **a_png)
for what, content in {
    "a quote that never ends": b'path,label\n"a.png,1\n' + b"x\n" * 100_000,
    "a cell of 200,000 letters": b'path,label\n"' + b"a\n" * 100_000 + b'",1\n',
    "a million columns": b"path,label" + b",x" * 10**6,
    "30,000 columns a row": (b"path,label" + b",x" * 30_000 + b"\n") * 20,
    "a row of many columns": b"path,label\na.png,1" + b",x" * 30_000,
    "a row of one column": b"path,label\na.png\n",
    "a column twice": b"path,label,path\na.png,1,../secret.png\n",
    "no columns": b"\n\n",
    "no rows": b"path,label\n",
    "no label": b"path,label\na.png,\n",
    "a label of blanks": b"path,label\na.png,  \n",
    "a path of two lines": b'path,label\n"a.png\nb.png",1\n',
    "a quote in the middle": b'path,label\n"a".png,1\n',
    "a zero": b"path,label\na\0.png,1\n",
    "carriage returns": b"path,label\ra.png\r,1\r",
    "no text": b"path,label\n\xff\xfe,1\n",
    "another separator": b"path;label\na.png;1\n",
    "a formula": b"path,label\n=1+1,1\n",
    "nothing": b"",
    "50,000 rows": b"path,label\n" + b"".join(b"%d.png,1\n" % i for i in range(50_000)),
}.items():
    case("csv", what, content)
case(
    "csv",
    "a class that drives the terminal",
    b"path,label\na.png,\x1b[2J\n",
    fine=lambda found: found[0].classes == ("\\x1b[2J",),
)
for what, content in {
    "a name twice": b"cat\ndog\ncat\n",
    "100,000 names, the last twice": b"".join(b"%d\n" % i for i in range(100_000)) + b"99999\n",
    "no text": b"\xff\xfe",
    "zeros": bytes(100),
    "a line of 4 MiB": b"a" * (4 * MIB),
}.items():
    case("classes", what, content)
case(
    "classes",
    "a name that drives the terminal",
    b"\x1b[2Jcat\ndog\n",
    fine=lambda found: found == ("\\x1b[2Jcat", "dog"),
)

# --- pictures --------------------------------------------------------------------------------------


def png(
    width: int = 8, height: int = 8, bits: int = 8, colour: int = 0, data: Optional[bytes] = None, *chunks: bytes
) -> bytes:
    rows = (b"\0" + bytes((width * bits + 7) // 8)) * height if data is None else data
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def saved(kind: str, mode: str = "RGB", side: int = 64, **kwargs: Any) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(stream, kind, **kwargs)
    return stream.getvalue()


def of_16_bits(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray((np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)).save(stream, kind)
    return stream.getvalue()


def scaled(found: Any) -> bool:
    levels = np.round(np.arange(64) * 1040 / 257).astype(np.uint8).reshape(8, 8, 1)
    return bool((found[0] == levels).all())


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(%pipe%touch x) (w) file\nshowpage\n%%EOF\n"
jpeg = saved("JPEG")
SOF = jpeg.index(b"\xff\xc0")
gif = saved("GIF")
bmp = saved("BMP")
webp = saved("WEBP", lossless=True)
canvas = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + b"\xfe\x3f\0" * 2  # 16,383 x 16,383
for reader in ("picture", "picture by cv2"):
    case(reader, "PostScript, which Ghostscript would run", EPS, trap=reader == "picture")
    case(reader, "16 bits of grey in PNG", of_16_bits("PNG"), fine=scaled)
    case(reader, "CMYK in JPEG", saved("JPEG", "CMYK"), fine=lambda found: found[0].shape == (64, 64, 3))
    case(reader, "a JPEG that claims 65,535 pixels square", jpeg[: SOF + 5] + b"\xff\xff\xff\xff" + jpeg[SOF + 9 :])
    case(
        reader,
        "a JPEG that claims 9,500 pixels square",
        jpeg[: SOF + 5] + struct.pack(">HH", 9500, 9500) + jpeg[SOF + 9 :],
    )
    case(reader, "a JPEG that is cut", jpeg[: len(jpeg) // 2])
    case(reader, "a JPEG that is cut but ends as one", jpeg[: SOF + 4] + b"\xff\xd9")
    case(reader, "a JPEG of no pixels", jpeg[: SOF + 5] + bytes(4) + jpeg[SOF + 9 :])
    case(reader, "text called .jpg", b"hello, I am no picture\n" * 100)
    case(reader, "nothing", b"")
for what, content in {
    "PNG that claims 100,000 pixels square": png(100_000, 100_000, 1, 0, b""),
    "PNG that claims 2 ** 31 pixels square": png(2**31 - 1, 2**31 - 1, 8, 2, b""),
    "PNG of 10,000 pixels square": png(10_000, 10_000, 1),
    "PNG of 14,000 pixels square": png(14_000, 14_000, 1),
    "PNG of one pixel by 200,000": png(1, 200_000, 8),
    "PNG of 200,000 pixels by one": png(200_000, 1, 8),
    "PNG without data": png(data=b""),
    "PNG that is cut": saved("PNG")[:5000],
    "PNG of a depth that does not exist": png(8, 8, 7),
    "PNG of a colour type that does not exist": png(8, 8, 8, 5),
    "PNG of no pixels": png(0, 0),
    "PNG with a damaged checksum": png()[:-20] + b"xxxx" + png()[-16:],
    "PNG with a text bomb": png(8, 8, 8, 0, None, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 * MIB)))),
    "PNG with a profile bomb": png(8, 8, 8, 0, None, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(64 * MIB)))),
    "PNG with a chunk of 4 GiB": b"\x89PNG\r\n\x1a\n" + b"\xff\xff\xff\xffIHDR" + bytes(100),
    "GIF of 65,535 pixels square": gif[:6] + b"\xff\xff\xff\xff" + gif[10:],
    "GIF that is cut": gif[: len(gif) // 2],
    "GIF of nothing": b"GIF89a",
    "BMP of 2 ** 30 pixels square": bmp[:18] + struct.pack("<ii", 2**30, 2**30) + bmp[26:],
    "BMP of a negative width": bmp[:18] + struct.pack("<ii", -64, 64) + bmp[26:],
    "BMP of an offset outside": bmp[:10] + b"\xff\xff\xff\x7f" + bmp[14:],
    "BMP that is cut": bmp[:100],
    "PPM of 10 ** 12 pixels": b"P6\n1000000 1000000\n255\n",
    "PPM of a million digits": b"P6\n" + b"9" * 10**6 + b" 1\n255\n",
    "PPM that is cut": b"P6\n100 100\n255\n" + bytes(100),
    "PPM of no greatest value": b"P6\n8 8\n0\n" + bytes(192),
    "plain PPM that is cut": b"P3\n100 100\n255\n1 2 3",
    "plain PPM of a number of a million digits": b"P3\n8 8\n255\n" + b"9" * 10**6,
    "WebP that is cut": webp[: len(webp) // 2],
    "WebP of 16,383 pixels square": b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas,
    "WebP that claims 16,383 pixels square": b"RIFF" + struct.pack("<I", 4 + len(canvas) + len(webp) - 12) + b"WEBP" + canvas + webp[12:],
    "TIFF of nothing": b"II*\0\x08\0\0\0\0\0",
    "TIFF of a directory outside": b"II*\0\xff\xff\xff\x7f",
    "TIFF of a directory that is its own next": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "TIFF of 65,535 fields": b"II*\0\x08\0\0\0\xff\xff" + bytes(1000),
    "TIFF that is cut": saved("TIFF")[:5000],
    "TIFF of fractions": saved("TIFF", "F"),
    "TIFF of 32 bits": saved("TIFF", "I"),
    "ICO, a kind that is not read": saved("ICO"),
    "PDF, a kind that is not read": b"%PDF-1.4\n%\xff\xff\n1 0 obj\n<<>>\nendobj\n",
    "SVG, a kind that is not read": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "TGA, a kind that is not read": saved("TGA"),
    "JPEG 2000, a kind that is not read": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
    "PSD, a kind that is not read": b"8BPS\0\x01" + bytes(100),
    "FITS, a kind that is not read": b"SIMPLE  =                    T".ljust(2880),
    "a pickle": program(1),
}.items():  # fmt: skip
    case("picture", what, content)
case(
    "picture",
    "36 million pixels in 6 kB",
    lambda c: png(6000, 6000, 1),
    fine=lambda found: found[0].shape == (6000, 6000, 3),
    pixels=6000**2,
)
case("picture", "16 bits of grey in TIFF", of_16_bits("TIFF"), fine=scaled)
case("picture", "16 bits of grey in PGM", of_16_bits("PPM"), fine=scaled)
case(
    "picture",
    "16 bits of colour in PNG",
    png(4, 4, 16, 2, (b"\0" + bytes(24)) * 4),
    fine=lambda found: not found[0].any(),
)
case("picture", "a PNG called JPEG", saved("PNG"), fine=lambda found: found[0].shape == (64, 64, 3))
case("picture", "CMYK in TIFF", saved("TIFF", "CMYK"), fine=lambda found: found[0].shape == (64, 64, 3))
case("picture", "a palette of one bit", png(64, 64, 1), fine=lambda found: found[0].shape == (64, 64, 3))

# --- recipes and cards -----------------------------------------------------------------------------

RECIPE = "model: {name: convmixer_tiny}\ndata: {dataset: digits, val_fraction: 0.2}\noptimizer: {name: adamw, lr: 0.1}\ntrain: {epochs: 1, batch_size: 8}\n"
case("recipe", "a good one, to see that the trap is open", RECIPE.encode(), fine=lambda found: found.train.epochs == 1)
for tag, text in {
    "python/object/apply": "!!python/object/apply:builtins.open ['{c}', w]",
    "python/object/apply of os.system": "!!python/object/apply:os.system [\"touch '{c}'\"]",
    "python/object/new": "!!python/object/new:os.system [\"touch '{c}'\"]",
    "python/name": "!!python/name:os.system",
    "python/module": "!!python/module:os",
    "python/tuple": "!!python/tuple [1, 2]",
    "an unknown one": "!secret a",
    "the terminal's": "!<\\x1b[2J> a",
}.items():
    runs = "apply" in tag or "new" in tag
    case("recipe", f"the tag {tag}", lambda c, text=text: (RECIPE + f"input: {text.format(c=c)}\n").encode(), trap=runs)
bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
for what, text in {
    "a billion laughs": bomb,
    "a billion laughs as a value": RECIPE.replace("convmixer_tiny}", "convmixer_tiny, weights: *a}").replace(
        "model:", "x: &a [1]\nmodel:"
    ),
    "a mapping of itself": "&a\nmodel: *a\n",
    "a merge": "x: &a {epochs: 1}\ntrain: {<<: *a}\n",
    "a nest of lists": "model: " + "[" * 30_000,
    "a nest of mappings": "{a: " * 15_000,
    "a nest of keys": "? " * 30_000,
    "a nest of blocks": "- " * 30_000,
    "a key twice": RECIPE + "train: {epochs: 2, batch_size: 8}\n",
    "a setting twice": RECIPE.replace("epochs: 1", "epochs: 1, epochs: 2"),
    "a key that is a list": "[1, 2]: 3\n",
    "a key that is a mapping": "{a: 1}: 3\n",
    "a number of 60,000 digits": RECIPE.replace("epochs: 1", "epochs: " + "9" * 60_000),
    "a number of 60,000 hexadecimal digits": RECIPE.replace("epochs: 1", "epochs: 0x" + "f" * 60_000),
    "a number of base 60": RECIPE.replace("epochs: 1", "epochs: 1" + ":59" * 15_000),
    "epochs of 2 ** 100": RECIPE.replace("epochs: 1", f"epochs: {2**100}"),
    "a rate of 10 ** 400": RECIPE.replace("lr: 0.1", f"lr: {10**400}"),
    "a mean of 10 ** 400": RECIPE + f"input: {{mean: [{10**400}, 1, 1]}}\n",
    "a mean that is no number": RECIPE + "input: {mean: [.nan, 1, 1]}\n",
    "a spread that is no number": RECIPE + "input: {std: [1, .nan, 1]}\n",
    "an input of a million pixels": RECIPE + "input: {size: 1000000}\n",
    "a crop of nothing": RECIPE + "input: {crop_pct: 1.0e-9}\n",
    "a date that does not exist": "model: 2001-99-99\n",
    "a !!timestamp that is none": "model: !!timestamp a\n",
    "a !!int that is none": "model: !!int a\n",
    "an !!int of nothing": "model: !!int ''\n",
    "a !!float that is none": "model: !!float a\n",
    "a !!bool that is none": "model: !!bool a\n",
    "a !!binary that is none": "model: !!binary '*'\n",
    "a !!set": "!!set {a, b}\n",
    "an unknown key that drives the terminal": RECIPE + '"\\e[2J\\nok": 1\n',
    "an unknown key of 60,000 letters": RECIPE + "? " + "a" * 60_000 + "\n: 1\n",
    "a value that drives the terminal": RECIPE.replace("epochs: 1", 'epochs: "\\e[2J\\nok"'),
    "a value of 60,000 items": RECIPE.replace("epochs: 1", "epochs: [" + "1," * 30_000 + "]"),
    "a model that drives the terminal": RECIPE.replace("convmixer_tiny", '"\\e[2J\\nok"'),
    "a model of 60,000 letters": RECIPE.replace("convmixer_tiny", "a" * 60_000),
    "a zero": RECIPE + "\0",
    "an escape": "\x1b[2J",
    "two documents": RECIPE + "---\n" + RECIPE,
    "100 kB of blanks": " " * 100_000 + RECIPE,
    "4 MB of items": "- a\n" * 10**6,
    "nothing": "",
    "an alias to nothing": "*a",
    "a directive": "%YAML 9.9\n---\na: 1\n",
}.items():
    case("recipe", what, text.encode())
case("recipe", "no text", b"\xff\xfe\xfd")
case("recipe", "a picture", saved("PNG"))

case(
    "card",
    "a good one, to see that the trap is open",
    b'{"model": "convmixer_tiny"}',
    fine=lambda found: found.model == "convmixer_tiny",
)
for what, text in {
    "a nest of lists": "[" * 100_000,
    "a nest of objects": '{"facts":' * 100_000,
    "a nest in the facts": '{"facts": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}",
    "a number of a million digits": '{"facts": {"a": ' + "9" * 10**6 + "}}",
    "a list": "[]",
    "a text": '"model"',
    "a number": "5",
    "nothing": "",
    "null": "null",
    "two objects": "{}{}",
    "a key twice": '{"model": "a", "model": "b"}',
    "a key twice below": '{"facts": {"a": 1, "a": 2}}',
    "a model that is a number": '{"model": 5}',
    "a model that is a list": '{"model": []}',
    "an input that is a list": '{"input": []}',
    "classes that are a text": '{"classes": "abc"}',
    "classes that are an object": '{"classes": {"a": 1}}',
    "classes that are numbers": '{"classes": [1, 2]}',
    "classes that are lists": '{"classes": [["a"]]}',
    "classes that are a number": '{"classes": 5}',
    "facts that are a list": '{"facts": []}',
    "a digest that is a list": '{"sha256": []}',
    "2 MB of lists": '{"facts": {"a": [' + "[]," * 700_000 + "[]]}}",
    "a control character": '{"model": "\x1b"}',
}.items():
    case("card", what, text.encode())
case("card", "no text", b"\xff\xfe\xfd")
case(
    "card",
    "classes that drive the terminal",
    b'{"classes": ["\\u001b[2J", "\\ud800"]}',
    fine=lambda found: found.classes == ("\\x1b[2J", "\\ud800"),
)
case(
    "card",
    "1 MB of lists",
    b'{"facts": {"a": [' + b"[]," * 349_000 + b"[]]}}",
    fine=lambda found: len(found.facts["a"]) == 349_001,
)
