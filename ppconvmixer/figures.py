"""Pictures drawn with Matplotlib, without what it keeps for the whole process (pyplot)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError
from .files import PathLike, atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")


def create(width: float, height: float) -> Figure:
    """Return an empty picture, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def check(path: PathLike) -> None:
    """Find out before the work that a name is of no kind that can be drawn.

    Raises:
        UserError: it ends in none of ``SUFFIXES``.
    """
    if Path(path).suffix not in SUFFIXES:
        raise UserError(f"cannot draw {path}: name a file ending in {', '.join(SUFFIXES)}")


def save(figure: Figure, path: PathLike) -> None:
    """Write a picture, whole or not at all.

    Raises:
        UserError: the suffix is none of ``SUFFIXES``, or the file cannot be written.
    """
    check(path)
    with atomic_write(path) as stream:
        figure.savefig(stream, format=Path(path).suffix[1:], dpi=120)


def png(figure: Figure) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return data.getvalue()
