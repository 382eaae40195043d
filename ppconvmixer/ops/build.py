"""Make the operator's library on first use, and keep it in the cache.

The source needs a C++ compiler with OpenMP and none of Paddle's headers, so that it is built in
seconds and serves every version of Paddle.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Optional

import filelock

from .. import download, processor

logger = logging.getLogger("ppconvmixer")

FOLDER = Path(__file__).parent
SOURCES = tuple(FOLDER / name for name in ("training.cpp", "inference.cpp", "ceilings.cpp"))
# The library is for this very processor; -ffast-math would undo the rounding that `exp_negative` relies on.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi")
COMPILE_SECONDS = 300


@functools.cache
def library() -> Optional[ctypes.CDLL]:
    """Return the operator, built if need be; None, said once, where it cannot be had or ``PPCONVMIXER_OPS`` is 0."""
    try:
        if os.environ.get("PPCONVMIXER_OPS") == "0":
            raise OSError("PPCONVMIXER_OPS is 0")
        loaded = ctypes.CDLL(str(_built()))
    except (OSError, subprocess.SubprocessError) as error:
        logger.info("without the CPU operator (%s) training on a CPU takes about four times as long", _reason(error))
        return None
    for name in ("mixer_memory", "mixer_map", "network_floats", "network_memory", "network_eight_is_fast"):
        getattr(loaded, name).restype = ctypes.c_int64
    return loaded


def ceilings(threads: int) -> Optional[tuple[float, float]]:
    """Return the most multiply-accumulates and bytes a second of ``threads`` threads; None without a compiler."""
    loaded = library()
    if loaded is None:
        return None
    found = []
    for function in (loaded.ceiling_macs, loaded.ceiling_bytes):
        function.restype = ctypes.c_double
        found.append(function(ctypes.c_int64(threads)))
    return found[0], found[1]


def _built() -> Path:
    compiler = _compiler()
    folder = download.home() / "ops"
    target = folder / f"operator-{_key(compiler)}.so"
    if _whole(target):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{target}.lock"):  # several processes build it once
        if not _whole(target):
            logger.info("building the CPU operator, once for this machine")
            with tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary:
                made = Path(temporary) / target.name
                command = [compiler, *FLAGS, *map(str, SOURCES), "-o", str(made)]
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)
                with open(made, "rb") as stream:
                    os.fsync(stream.fileno())
                made.rename(target)
    return target


def _whole(library: Path) -> bool:
    """Tell whether there is a library; where the power went too early, an empty file is what is left of it."""
    return library.exists() and library.stat().st_size > 0


def _compiler() -> str:
    for name in filter(None, (os.environ.get("CXX"), "g++", "c++", "clang++")):
        found = shutil.which(name)
        if found:
            return found
    raise OSError("there is no C++ compiler")


def _key(compiler: str) -> str:
    """Return a digest of all that makes the library: source, flags, compiler and processor."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=60).stdout
    texts = [path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in (".cpp", ".h")]
    return hashlib.sha256(b"\n".join([*texts, repr(FLAGS).encode(), version, _processor()])).hexdigest()[:24]


def _processor() -> bytes:
    """Return what -march=native looks at: a cache may be shared by machines."""
    lines = processor.described().splitlines()
    if not lines:
        return repr(platform.uname()[4:]).encode()
    return "\n".join(sorted({line for line in lines if re.match("flags|Features|model name|CPU part", line)})).encode()


def _reason(error: Exception) -> str:
    output = getattr(error, "stderr", None) or ""
    if isinstance(output, bytes):  # also of a text that was cut off by the time
        output = output.decode(errors="replace")
    first = next((line for line in output.splitlines() if "error" in line), "")
    return first or getattr(error, "strerror", None) or str(error)
