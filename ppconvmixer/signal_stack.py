"""The stack that signal handlers run on, kept from libraries that put their own in its place and take it away again."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator


class SignalStack(ctypes.Structure):
    """``stack_t`` of signal.h, as Linux has it."""

    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def current() -> SignalStack:
    """Return the alternate signal stack of this thread."""
    found = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Put the alternate signal stack back after the block.

    OpenVINO's threads library sets one when it compiles a network, and frees it with the network but leaves the
    kernel's word of it: the next signal would end the process.
    """
    if sys.platform != "linux":  # elsewhere the fields lie otherwise, and nobody saw it happen
        yield
        return
    before = current()
    try:
        yield
    finally:
        ctypes.CDLL(None).sigaltstack(ctypes.byref(before), None)
