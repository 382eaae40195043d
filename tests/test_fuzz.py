"""Damaged, random and half-right files for every reader: each is read, or refused in one line.

A few seconds in every run; ``pytest -m slow tests/test_fuzz.py`` tries more than 100,000 files.
"""

import json
import pickletools
import random
import struct
import time
import zipfile
import zlib

import hostile
import pytest
from conftest import GOLDEN
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppconvmixer import UserError

QUICK, THOROUGH = 12, 1_100  # draws for each of the twenty-four fuzzers; each is four files
COUNT = {"files": 0, "read": 0}
REGRESSIONS = sorted((GOLDEN / "regressions").glob("*-*"))

# --- seeds: a valid small file of every kind -------------------------------------------------------

EDGES = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
TENSOR_FILES = [(GOLDEN / file).read_bytes() for file in ("tensors.pth", "tensors_legacy.pth", "training.pth.tar")]
SEEDS = {
    "checkpoint": [
        hostile.program({"w": hostile.array(), "b": hostile.array(kind=hostile.dtype("f8"), shape=(1,))}),
        hostile.network(),
        hostile.GOOD,
        hostile.legacy({"w": hostile.tensor()}, tail=hostile.tail),
        hostile.tensors({"w": hostile.entry(), "v": hostile.entry("BF16", (4,), (8, 16))}, bytes(16)),
        *TENSOR_FILES,
    ],
    "network": [hostile.network()],
    "metadata": [hostile.tensors({"__metadata__": {"a": "b"}, "w": hostile.entry()})],
    "cifar10": [hostile.program({"data": hostile.PIXELS, "labels": [1, 2], "filenames": ["a", "b"]})],
    "tar": [
        hostile.tarred(("a.png", b"x" * 600), ("b/" * 80 + "c.png", b"y")),
        hostile.pax(("é" * 90 + ".png", b"x"), ("b.png", b"y", {"pax_headers": {"size": "1"}})),
        *(pack(hostile.tarred(("a.png", b"xyz" * 99))) for pack in hostile.packers.values()),
    ],
    "list": [b"a.png 1\nb c.png, 2\n"],
    "csv": [b'path,label\na.png,1\n"b, c.png",cat\n'],
    "classes": [b"cat\ndog\n"],
    "picture": [
        *(hostile.saved(kind, side=16) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")),
        hostile.saved("JPEG", "CMYK", 16, progressive=True),
        *(hostile.of_16_bits(kind) for kind in ("PNG", "TIFF", "PPM")),
    ],
    "picture by cv2": [hostile.saved("JPEG", side=16), hostile.saved("JPEG", "L", 16, progressive=True)],
    "recipe": [hostile.RECIPE.encode()],
    "card": [b'{"model": "convmixer_tiny", "input": {"size": 32}, "classes": ["a", "b"], "facts": {"top1": 0.5}}'],
}


@st.composite
def damaged(draw, reader):
    """A valid file with up to four changes: bits, numbers at the edges of their range, cuts, repetitions, splices."""
    content = bytearray(draw(st.sampled_from(SEEDS[reader])))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        how = draw(st.sampled_from(["bit", "byte", "number", "cut", "drop", "repeat", "splice", "insert"]))
        if how == "bit" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "byte" and content:
            content[place] = draw(st.integers(0, 255))
        elif how == "number":
            order, size = draw(st.sampled_from(["<>"])), draw(st.sampled_from([1, 2, 4, 8]))
            value = draw(st.sampled_from(EDGES)) % 256**size
            content[place : place + size] = value.to_bytes(size, "little" if order == "<" else "big")
        elif how == "cut":
            del content[place:]
        elif how == "drop":
            del content[place : place + draw(st.integers(1, 64))]
        elif how == "repeat":
            part = content[place : place + draw(st.integers(1, 64))]
            content[place:place] = part * draw(st.integers(1, 20))
        elif how == "splice":
            other = draw(st.sampled_from(SEEDS[reader]))
            content[place:] = other[draw(st.integers(0, len(other))) :]
        else:
            content[place:place] = draw(st.binary(max_size=16))
    return bytes(content)


# --- grammars: files that are right in form and wrong in content -----------------------------------

whole = st.sampled_from([*EDGES, -1, -2, -(2**31), -(2**63), 10**30, 3, 4, 8]) | st.integers(-10, 10)
texts = st.text(max_size=8) | st.sampled_from(
    ["\x1b[2J", "a\nb", "../x", "\ud800", "state_dict", "w", "storage", "0", "<"]
)
NAMES = [*hostile.safe_names(), "os.system", "builtins.eval", "builtins.open", "types.SimpleNamespace"]


def argument(draw, opcode):
    """The bytes of an argument of an opcode, often a sensible one."""
    if opcode.code == "c":
        return draw(st.sampled_from(NAMES)).rpartition(".")[0].encode() + b"\n" + \
            draw(st.sampled_from(NAMES)).rpartition(".")[2].encode() + b"\n"  # fmt: skip
    if opcode.arg is None:
        return b""
    width = opcode.arg.n
    if width > 0:
        return draw(
            st.binary(min_size=width, max_size=width) | st.integers(0, 5).map(lambda n: n.to_bytes(width, "little"))
        )
    prefix = {-2: 1, -3: 4, -4: 4, -5: 8}.get(width)
    if prefix is None:  # a line of text
        return draw(st.binary(max_size=6)).replace(b"\n", b"") + b"\n"
    raw = draw(st.binary(max_size=8))
    length = draw(st.sampled_from([len(raw)] * 6 + EDGES)) % 256**prefix
    return length.to_bytes(prefix, "little") + raw


@st.composite
def programs(draw):
    """A random program of pickle instructions, between valid pieces."""
    pieces = [hostile.array(), hostile.dtype(), hostile.tensor(), hostile.storage(), b"(", b"}", b"]", b")", b"N", b"u", b"s", b"t", b"R", b"b", b"q\x00", b"h\x00", b"\x94"]  # fmt: skip
    known = st.sampled_from(pickletools.opcodes)
    body = b""
    for _ in range(draw(st.integers(1, 14))):
        kind = draw(st.integers(0, 3))
        if kind == 0:
            opcode = draw(known)
            body += opcode.code.encode("latin-1") + argument(draw, opcode)
        elif kind == 1:
            body += hostile.emit(draw(whole | texts | st.binary(max_size=8) | st.none() | st.floats()))
        elif kind == 2:
            body += hostile.name(*draw(st.sampled_from(NAMES)).rsplit(".", 1))
        else:
            body += draw(st.sampled_from(pieces))
    return b"\x80\x02" + body + draw(st.sampled_from([b".", b".", b"s.", b"u.", b""]))


values = st.recursive(
    st.none() | st.booleans() | whole | st.floats() | texts | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(texts, inner, max_size=3)
    ),
    max_leaves=6,
)
sizes = st.lists(whole | st.booleans() | st.floats(), max_size=4).map(tuple) | values
codes = st.sampled_from(["f2", "f4", "f8", "u2", "i8", "b1", "O8", "V4", "c8", "S3", ""]) | values
raws = st.binary(max_size=64) | st.text(max_size=16) | values
arrays = st.builds(
    lambda s, c, o, d, f: hostile.array(s, hostile.dtype(c, o), d, f),
    sizes,
    codes,
    st.sampled_from("<>|=!") | values,
    raws,
    values,
)
views = st.lists(values | st.tuples(texts, whole, whole), max_size=1)
kinds = st.sampled_from(["FloatStorage", "HalfStorage", "BFloat16Storage", "LongStorage", "BoolStorage"]).map(
    lambda n: hostile.name("torch", n)
)
storages = st.builds(
    lambda k, n, s, v: hostile.storage(k, n, s, *v),
    kinds | values,
    st.just("0") | values,
    st.sampled_from([4, 2, 8]) | values,
    views,
)
tensors = st.builds(hostile.tensor, storages, whole | values, sizes, sizes)
entries = st.dictionaries(texts, arrays | values, max_size=3)
torch_entries = st.dictionaries(texts, tensors | values, max_size=3)
offsets = st.lists(whole, min_size=2, max_size=2) | st.sampled_from([[0, 8], [8, 16]]) | values
plain = st.recursive(
    st.none() | st.booleans() | whole | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
records = st.fixed_dictionaries({}, optional={"dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "F8_E4M3", "U8", "x"]) | plain, "shape": st.lists(whole, max_size=4) | plain, "data_offsets": offsets.filter(lambda o: "bytes" not in str(type(o)))})  # fmt: skip
words = st.sampled_from(
    [
        "a.png",
        "path",
        "label",
        "cat",
        "1",
        "-1",
        ",",
        '"',
        "\t",
        " ",
        "\n",
        "\r",
        "../secret.png",
        "/etc/passwd",
        "\0",
        "\x1b[2J",
        "\u2028",
        "=1+1",
        "9" * 12,
    ]
)
tables = st.lists(words | st.text(max_size=3), max_size=24).map(
    lambda parts: "".join(parts).encode("utf-8", "surrogatepass")
)
yaml_words = st.sampled_from(
    [
        *"[]{},:-?&*!|>%@`#'\" \n",
        "model",
        "name",
        "convmixer_tiny",
        "data",
        "train",
        "epochs",
        ": ",
        "- ",
        "<<",
        "&a",
        "*a",
        "!!int ",
        "!!python/name:os.system ",
        "!!timestamp ",
        "1e400",
        ".nan",
        "0x",
        "1:1",
        "\t",
        "\x1b",
        "\0",
    ]
)
recipes = st.lists(yaml_words | st.text(max_size=3), max_size=30).map(
    lambda parts: "".join(parts).encode("utf-8", "surrogatepass")
)
settings_of = st.dictionaries(
    st.sampled_from(["name", "lr", "epochs", "batch_size", "dataset", "size", "mean", "std", "crop_pct", "x"]),
    plain,
    max_size=4,
)
groups = st.dictionaries(
    st.sampled_from(["model", "data", "optimizer", "train", "input", "schedule", "augment", "x"]),
    settings_of | plain,
    max_size=7,
)
cards = st.fixed_dictionaries(
    {}, optional={key: plain | st.floats() for key in ("model", "input", "classes", "sha256", "facts", "x")}
)


def jsonable(value):
    return json.dumps(value, default=str).encode("utf-8", "surrogatepass")


def legacy_file(entries, keys, count):
    return hostile.legacy(entries, keys, struct.pack("<Q", count % 2**64) + bytes(16))


def member_name(text):
    return text.replace("\ud800", "?").replace("\0", "")[:50] or "x"


@st.composite
def zips(draw):
    """A zip with wrong numbers in its index."""
    names = ["w/data.pkl", "w/data/0", "w/byteorder", *draw(st.lists(texts.map(member_name), max_size=2))]
    method = draw(st.sampled_from([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED]))
    content = hostile.archived(
        *((n, hostile.TREE if n.endswith("pkl") else bytes(16)) for n in names), compression=method
    )
    for _ in range(draw(st.integers(0, 2))):
        signature = draw(st.sampled_from([hostile.CENTRAL, hostile.LOCAL, hostile.END]))
        offset, size = draw(st.integers(4, 45)), draw(st.sampled_from([1, 2, 4]))
        content = hostile.patched(
            content, (signature, offset, (draw(st.sampled_from(EDGES)) % 256**size).to_bytes(size, "little"))
        )
    return content


@st.composite
def tars(draw):
    """Headers whose size and kind are anything, with and without the content they promise."""
    content = b""
    for _ in range(draw(st.integers(1, 4))):
        size = draw(
            st.sampled_from(
                [
                    b"00000000000\0",
                    b"00000000010\0",
                    b"77777777777\0",
                    b"\xff" * 12,
                    b"\x80" + b"\0" * 9 + b"\x02\0",
                    hostile.LARGEST,
                ]
            )
            | st.binary(min_size=12, max_size=12)
        )
        kind = draw(st.sampled_from([b"0", b"L", b"K", b"x", b"g", b"S", b"5", b"1", b"2", b"\0", b"V"]))
        content += hostile.header(
            draw(st.sampled_from(["a.png", "../b", "/c", "PaxHeaders/x"])),
            size,
            kind,
            draw(st.sampled_from([b"ustar  \0", b"ustar\x0000"])),
        )
        field = draw(
            st.sampled_from(["size", "path", "GNU.sparse.major", "GNU.sparse.size", "GNU.sparse.map", "hdrcharset"])
        )
        record = f"{draw(st.integers(0, 40))} {field}={draw(st.sampled_from(['-512', '5', '0,1', 'x', '9' * 30]))}\n".encode()
        content += draw(st.sampled_from([b"", record.ljust(512, b"\0"), bytes(512), draw(st.binary(max_size=512))]))
    return content + draw(st.sampled_from([b"", bytes(1024)]))


FUZZERS = {
    **{f"damaged {reader}": (reader, damaged(reader)) for reader in hostile.READERS},
    "programs": ("checkpoint", programs()),
    "programs in CIFAR-10": ("cifar10", programs()),
    "arrays": ("checkpoint", entries.map(hostile.program)),
    "tensors in zip": ("checkpoint", torch_entries.map(lambda tree: hostile.zipped(tree, hostile.DATA))),
    "tensors in the legacy form": ("checkpoint", st.builds(legacy_file, torch_entries, st.just(["0"]) | values, st.just(4) | whole)),
    "zips": ("checkpoint", zips()),
    "safetensors": ("checkpoint", st.dictionaries(texts, records | plain, max_size=3).map(lambda h: hostile.tensors(jsonable(h), bytes(16)))),
    "tars": ("tar", tars()),
    "lists": ("list", tables),
    "tables": ("csv", tables.map(lambda text: b"path,label\n" + text)),
    "recipes as text": ("recipe", recipes),
    "recipes as trees": ("recipe", groups.map(jsonable)),
    "cards": ("card", cards.map(jsonable)),
}  # fmt: skip


def check(reader, content, folder):
    """Read a file: it must be read, or refused by one printable line, and nothing else may happen."""
    COUNT["files"] += 1
    path = folder / f"fuzzed{hostile.SUFFIXES.get(reader, '')}"
    path.write_bytes(content)
    started = time.monotonic()
    try:
        hostile.READERS[reader](path)
        COUNT["read"] += 1
    except UserError as error:
        assert str(error) and str(error).isprintable() and len(str(error)) < 2000
    assert time.monotonic() - started < 30, "it hangs"  # of milliseconds


def with_mutants(content):
    """Yield a file and three that differ in a bit, in a number and in length, by a draw its content decides."""
    yield content
    rng = random.Random(zlib.crc32(content))
    place = rng.randrange(len(content) + 1)
    yield content[:place]
    if place < len(content):
        yield content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
    size = rng.choice([1, 2, 4, 8])
    number = (rng.choice(EDGES) % 256**size).to_bytes(size, rng.choice(["little", "big"]))
    yield content[:place] + number + content[place + size :]


def fuzz(fuzzer, examples, folder):
    reader, strategy = FUZZERS[fuzzer]

    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def run(content):
        for each in with_mutants(content):
            check(reader, each, folder)

    run()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@pytest.mark.parametrize("fuzzer", FUZZERS)
def test_a_few(fuzzer, tmp_path):
    fuzz(fuzzer, QUICK, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_more_than_100_000(tmp_path, capsys):
    COUNT.update(files=0, read=0)
    started = time.monotonic()
    for fuzzer in FUZZERS:
        fuzz(fuzzer, THOROUGH, tmp_path)
    with capsys.disabled():
        print(f"\n{COUNT['files']:,} files ({COUNT['read']:,} of them read) in {time.monotonic() - started:.0f} s")
    assert COUNT["files"] >= 100_000


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.name)
def test_what_was_found_stays_mended(path, tmp_path):
    """Each file once ended a reader otherwise than with one line; its name begins with the reader's."""
    check(path.name.split("-")[0], path.read_bytes(), tmp_path)


def test_the_seeds_are_read(tmp_path):
    """A fuzzer whose valid files are refused at the door tests the door alone."""
    for reader, seeds in SEEDS.items():
        for content in seeds[:1] if reader in ("list", "csv") else seeds:
            path = tmp_path / f"seed{hostile.SUFFIXES.get(reader, '')}"
            path.write_bytes(content)
            try:
                hostile.READERS[reader](path)
            except UserError as error:
                assert reader in ("network", "list", "csv", "cifar10") and "no" in str(error), (reader, error)
