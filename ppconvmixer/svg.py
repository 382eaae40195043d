"""Small drawings as SVG, to stand inside a page: lines over axes, and bars."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

POINTS = 400  # of a line: no more can be told apart
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 28, 38  # margins of the axes

Line = tuple[Sequence[float], Sequence[float]]
"""x and y of its points."""
Histogram = tuple[Sequence[float], Sequence[float]]
"""What is in every bin, and the edges of the bins."""


def lines(title: str, named: Mapping[str, Line], x_label: str, log: bool = False, rainbow: bool = False) -> str:
    """Draw lines through points (x, y), with a legend; a point that is not finite is left out.

    Of a long line, the mean of neighbouring points is drawn, so that no more than ``POINTS`` are.

    Args:
        log: powers of ten up the axis, where the values reach over two of them.
        rainbow: many lines in an order, from violet to yellow; without a legend.
    """
    found = {}
    for name, (x, y) in named.items():
        x, y = np.asarray(x, float), np.asarray(y, float)
        fine = np.isfinite(x) & np.isfinite(y)
        if fine.any():
            found[name] = x[fine], y[fine]
    if not found:
        return ""
    xs, ys = (np.concatenate(column) for column in zip(*found.values()))
    log = log and ys.min() > 0 and ys.max() >= 100 * ys.min()
    drawn = {name: _thinned(x, np.log10(y) if log else y) for name, (x, y) in found.items()}
    y_ticks = _decades(ys.min(), ys.max()) if log else _ticks(ys.min(), ys.max())
    return _axes(title, drawn, x_label, _ticks(xs.min(), xs.max()), y_ticks, log, rainbow=rainbow)


def shares(title: str, x: Sequence[float], y: Sequence[float], x_label: str) -> str:
    """Draw a line through points that are shares, in a small square from 0 to 1."""
    ticks = [0.0, 0.5, 1.0]
    return _axes(title, {"": (np.asarray(x, float), np.asarray(y, float))}, x_label, ticks, ticks, False, 260, 220)


def _axes(
    title: str,
    drawn: Mapping[str, tuple[np.ndarray, np.ndarray]],
    x_label: str,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    log: bool,
    width: int = 560,
    height: int = 250,
    rainbow: bool = False,
) -> str:
    (left, right), (low, high) = (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (x - left) / (right - left) * (width - _LEFT - _RIGHT),
            height - _BOTTOM - (y - low) / (high - low) * (height - _TOP - _BOTTOM),
        )

    parts = [_text(_LEFT, 16, title, "font-weight='bold'")]
    for tick in y_ticks:
        x, y = place(left, tick)
        parts.append(f"<path d='M{x:.1f} {y:.1f}H{width - _RIGHT}' stroke='#ddd'/>")
        parts.append(_text(x - 6, y + 4, f"{10**tick if log else tick:.4g}", "text-anchor='end'"))
    for tick in x_ticks:
        x, y = place(tick, low)
        parts.append(_text(x, y + 16, f"{tick:.6g}", "text-anchor='middle'"))
    parts.append(_text(width - _RIGHT, height - 6, x_label, "text-anchor='end'"))
    legend = width - _RIGHT
    for number, (name, (x, y)) in enumerate(drawn.items()):
        share = number / max(len(drawn) - 1, 1)
        colour = f"hsl({270 - 215 * share:.0f},80%,45%)" if rainbow else COLOURS[number % len(COLOURS)]
        points = [place(*point) for point in zip(x.tolist(), y.tolist())]
        path = "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
        parts.append(f"<path d='M{path}' fill='none' stroke='{colour}' stroke-width='1.5'/>")
        if len(points) <= 60:
            parts += [f"<circle cx='{px:.1f}' cy='{py:.1f}' r='2' fill='{colour}'/>" for px, py in points]
        if name and not rainbow:
            parts.append(_text(legend, 16, name, f"text-anchor='end' fill='{colour}'"))
            legend -= 7 * len(name) + 16
    return _svg(width, height, parts)


def bars(title: str, first: Histogram, last: Histogram) -> str:
    """Draw a histogram as bars, and an earlier one as an outline, both as densities."""
    width, height, top, bottom = 260, 110, 20, 18
    low, high = min(first[1][0], last[1][0]), max(first[1][-1], last[1][-1])
    densities = [np.asarray(counts) / max(sum(counts), 1) / np.diff(edges) for counts, edges in (first, last)]
    scale = (height - top - bottom) / (max(part.max() for part in densities) or 1)

    def x(value: float) -> str:
        return f"{(value - low) / (high - low) * width:.1f}"

    def outline(density: np.ndarray, edges: Sequence[float]) -> str:
        base = height - bottom
        tops = "".join(f"V{base - scale * d:.1f}H{x(edge)}" for d, edge in zip(density.tolist(), edges[1:]))
        return f"M{x(edges[0])} {base}{tops}V{base}"

    return _svg(width, height, [
        _text(0, 12, title, "font-weight='bold'"),
        f"<path d='{outline(densities[1], last[1])}' fill='{COLOURS[0]}'/>",
        f"<path d='{outline(densities[0], first[1])}' fill='none' stroke='#888'/>",
        _text(0, height - 4, f"{low:.3g}", ""),
        _text(width, height - 4, f"{high:.3g}", "text-anchor='end'"),
    ])  # fmt: skip


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    style = "font-family='sans-serif' font-size='12' fill='#222'"
    return f"<svg viewBox='0 0 {width} {height}' width='{width}' height='{height}' {style}>{''.join(parts)}</svg>"


def _text(x: float, y: float, text: str, style: str) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' {style}>{html.escape(text)}</text>"


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= POINTS:
        return x, y
    starts = np.linspace(0, len(x), POINTS, endpoint=False).astype(int)
    counts = np.diff([*starts, len(x)])
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def _ticks(low: float, high: float) -> list[float]:
    """Return some round numbers around the range, evenly spaced."""
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= 5)
    return [step * i for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Return the exponents of some powers of ten around the range, evenly spaced."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = -(-(last - first) // 6)
    return [float(first + step * i) for i in range(-(-(last - first) // step) + 1)]
