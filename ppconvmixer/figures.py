"""Pictures drawn with Matplotlib, without what it keeps for the whole process (pyplot)."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .errors import UserError
from .files import PathLike, atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger("ppconvmixer")

SUFFIXES = (".png", ".svg", ".pdf")
OWN = "DejaVu Sans"  # the font that comes with Matplotlib
CHINESE = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei"),
    *("Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB", "Arial Unicode MS", "Droid Sans Fallback"),
)
"""Fonts that have what ``OWN`` lacks, for names of classes; those of them that are installed are used."""


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
        _render(figure, stream, Path(path).suffix[1:], 120)


def png(figure: Figure) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    data = io.BytesIO()
    _render(figure, data, "png", 100)
    return data.getvalue()


def _render(figure: Figure, stream: BinaryIO, kind: str, dpi: int) -> None:
    from matplotlib import font_manager
    from matplotlib.text import Text

    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = [OWN, *(name for name in CHINESE if name in installed)]
    for text in figure.findobj(Text):
        text.set_fontfamily(fonts)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(stream, format=kind, dpi=dpi)
    others = [warning for warning in caught if "missing from" not in str(warning.message)]  # a glyph is
    for warning in others:
        warnings.warn(warning.message, stacklevel=2)
    if len(others) < len(caught):
        logger.warning("no font here has all characters of the names drawn; install one, such as %s", CHINESE[0])
