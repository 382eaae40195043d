"""Mistakes a user can mend."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence

_LONGEST = 300  # characters of a message that is not ours: a line on a screen or two

_repr = reprlib.Repr()  # unlike repr: bounded in depth and length, whatever a file nests or repeats
_repr.maxlevel, _repr.maxstring, _repr.maxother = 2, 120, 120


class UserError(ValueError):
    """A wrong path, file, key or value. The message names the thing and the remedy.

    The command line prints the message alone and exits with code 2. Control characters, with which a
    file's name could drive a terminal, are spelled out; the line breaks of a list of ours stay.
    """

    def __init__(self, message: str):
        super().__init__("\n".join(printable(line) for line in message.split("\n")))


class UnreadablePictures(UserError):
    """Pictures that cannot be read; what was made of the others is as good as before."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for ``name``, which is no ``kind`` we know, with the nearest known names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return UserError(f"unknown {kind} {shown(name)}; {hint}")


def printable(text: str) -> str:
    """Return ``text`` with everything that is no visible character or blank spelled out, as in ``\\x1b``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shown(value: object) -> str:
    """Return the ``repr`` of a value that a file chose, cut to a few words on one line."""
    try:
        return printable(_repr.repr(value))
    except ValueError:  # a whole number of more digits than Python prints
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"


def unreadable(lines: Sequence[str], total: int) -> UnreadablePictures:
    """Return the error that names all pictures that cannot be read: on one line a single one, below it more.

    Args:
        lines: name and reason of each.
        total: pictures that were to be read.
    """
    told = f"{len(lines)} of {total} pictures cannot be read"
    if len(lines) == 1:
        return UnreadablePictures(f"{told}: {lines[0]}; mend it or take it out")
    return UnreadablePictures("\n".join([f"{told}; mend them or take them out:", *(f"  {line}" for line in lines)]))


def said(error: BaseException) -> str:
    """Return what an exception of another library says, on one line of bounded length."""
    return brief(" ".join(str(error).split())) or type(error).__name__


def brief(text: str) -> str:
    """Return a name or sentence that a file chose, printable and cut to one line of bounded length."""
    return printable(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}...")
