"""What an evaluation says of every class: which are told apart, and how sure the network is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SHOWN = 20
"""Classes that a picture, or a set of curves, can show."""
THRESHOLDS = 50
"""Points of a precision-recall curve."""

_CELL, _NAMES = 36, 150  # pixels
_RIGHT, _WRONG = (31, 119, 180), (214, 39, 40)


def pictures(cells: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how many pictures of every class there are, and how many of them were told right, int64 (classes,).

    Args:
        cells: of the confusion matrix, as ``Evaluation.confusion`` returns them.
    """
    right = cells[cells[:, 0] == cells[:, 1]]
    return _sums(cells[:, 0], cells[:, 2], classes), _sums(right[:, 0], right[:, 2], classes)


def mistakes(cells: np.ndarray) -> np.ndarray:
    """Return the cells off the diagonal, the largest first."""
    wrong = cells[cells[:, 0] != cells[:, 1]]
    return wrong[np.argsort(-wrong[:, 2], kind="stable")]


def most_confused(cells: np.ndarray, classes: int) -> np.ndarray:
    """Return the classes that most mistakes are about, at most ``SHOWN``, in rising order."""
    labels, predicted, count = mistakes(cells).T
    about = _sums(labels, count, classes) + _sums(predicted, count, classes)
    return np.sort(np.argsort(-about, kind="stable")[:SHOWN])


def matrix(cells: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the confusion matrix of the chosen classes alone, int64 (chosen, chosen)."""
    found = np.zeros((len(chosen), len(chosen)), np.int64)
    inside = cells[np.isin(cells[:, :2], chosen).all(axis=1)]
    rows, columns = np.searchsorted(chosen, inside[:, :2]).T
    found[rows, columns] = inside[:, 2]
    return found


def _sums(classes: np.ndarray, counts: np.ndarray, total: int) -> np.ndarray:
    return np.bincount(classes, counts, total).astype(np.int64)


def curve(scores: np.ndarray, positive: np.ndarray) -> dict[str, np.ndarray]:
    """Return the precision-recall curve of a class.

    Args:
        scores: (samples,), the probability of the class.
        positive: bool (samples,), whether the picture is of the class.

    Returns:
        ``tp``, ``fp``, ``tn``, ``fn`` (int64), ``precision`` and ``recall`` (float64) where a picture is taken for one
        of the class at a score of 1/THRESHOLDS, 2/THRESHOLDS, ..., 1 and above: the thresholds that VisualDL shows.
        Where no picture is, the precision is 1.
    """
    thresholds = np.arange(1, THRESHOLDS + 1) / THRESHOLDS
    tp, fp = (
        np.count_nonzero(part) - np.searchsorted(np.sort(scores[part]), thresholds) for part in (positive, ~positive)
    )
    fn, tn = positive.sum() - tp, (~positive).sum() - fp
    precision = np.divide(tp, tp + fp, out=np.ones(THRESHOLDS), where=tp + fp > 0)
    return {"tp": tp, "fp": fp, "tn": tn, "fn": fn, "precision": precision, "recall": tp / max(positive.sum(), 1)}


def draw(cells: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Draw the confusion matrix of the classes that most mistakes are about, uint8 (H, W, 3).

    A row is a class, a column what its pictures were taken for; a cell is the darker the larger its share of the
    class, blue where right and red where wrong.
    """
    chosen = most_confused(cells, len(names))
    counts, shares = matrix(cells, chosen), shares_of(cells, chosen, len(names))
    side, font = _CELL * len(chosen), _font()
    image = Image.new("RGB", (_NAMES + side + 10, _CELL + side + 10), "white")
    pen = ImageDraw.Draw(image)
    for i, label in enumerate(chosen.tolist()):
        y = _CELL * (i + 1)
        pen.text((4, y + 9), _plain(title(names, label))[:19], "black", font)
        pen.text((_NAMES + _CELL * i + 4, 9), str(label), "black", font)
        for j in range(len(chosen)):
            x, count, share = _NAMES + _CELL * j, int(counts[i, j]), shares[i, j]
            pen.rectangle((x, y, x + _CELL, y + _CELL), colour(share, i == j), (220, 220, 220))
            if count:
                text = str(count) if count < 10_000 else f"{count // 1000}k"
                pen.text((x + 4, y + 9), text, "white" if share > 0.5 else "black", font)
    return np.array(image)


def shares_of(cells: np.ndarray, chosen: np.ndarray, classes: int) -> np.ndarray:
    """Return ``matrix`` in shares of all pictures of the class, float64 (chosen, chosen)."""
    return matrix(cells, chosen) / np.maximum(pictures(cells, classes)[0][chosen], 1)[:, None]


def colour(share: float, right: bool) -> tuple[int, int, int]:
    """Return the colour of a cell: white for a share of 0, full for 1."""
    return tuple(round(255 + share * (full - 255)) for full in (_RIGHT if right else _WRONG))


def title(names: Sequence[str], label: int) -> str:
    """Return the number and the name of a class."""
    return str(label) if names[label] == str(label) else f"{label} {names[label]}"


def _font() -> ImageFont.ImageFont:
    try:
        return ImageFont.load_default(13)
    except TypeError:  # Pillow before 10.1 has one size
        return ImageFont.load_default()


def _plain(name: str) -> str:
    """Spare the small font what it does not know; the number before the name says which class it is."""
    return name.encode("ascii", "replace").decode("ascii")
