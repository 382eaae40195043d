"""Labelled pictures: from a list, class folders, a CSV table, CIFAR-10 or the bundled digits.

Nothing here decodes a picture; a data set knows names, labels and how to fetch the bytes (or, for
the small sets, the pixels) of one picture.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Callable, Optional, Union

import numpy as np

from . import safe_pickle
from .errors import UserError, brief, printable, said, shown
from .files import PathLike
from .sources import Source

logger = logging.getLogger("ppconvmixer")

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
UNREAD_SUFFIXES = {".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw"}
MAX_LINE = 1 << 16  # characters of a line of a list or table; a path has at most 4,096 bytes
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Labelled pictures.

    Args:
        names: what to call each picture when speaking to a person; control characters are spelled out.
        labels: int64, one a picture; for evaluation alone also (pictures, most labels of one), see ``labels.real``.
        classes: names of the labels 0, 1, ..., where they are known.
        fetch: the encoded bytes, or the uint8 (H, W, 3) pixels, of picture i.
    """

    names: Sequence[str]
    labels: np.ndarray
    classes: Optional[tuple[str, ...]]
    fetch: Callable[[int], Union[bytes, np.ndarray]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", list(map(printable, self.names)))

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Sequence[int]) -> Pictures:
        """Return the pictures at ``indices``, in that order."""
        indices = np.asarray(indices, np.int64)
        names = [self.names[i] for i in indices]
        return Pictures(names, self.labels[indices], self.classes, lambda i: self.fetch(int(indices[i])))

    def check_labels(self, num_classes: int) -> None:
        """Raise a UserError that names the first picture whose label the head does not have."""
        outside = (self.labels < 0) | (self.labels >= num_classes)
        wrong = np.argwhere(outside)
        if wrong.size:
            raise UserError(
                f"{brief(self.names[wrong[0, 0]])} has the label {self.labels[outside][0]}, "
                f"but the model has {num_classes} classes (labels 0 to {num_classes - 1}); "
                f"{len(wrong)} of {self.labels.size} labels are outside"
            )


def from_list(source: Source, list_file: PathLike) -> Pictures:
    """Read pictures named by a list, one ``path label`` a line.

    A tab or a comma may stand between them, and paths may have blanks.

    Raises:
        UserError: the list cannot be read, a line is not of that form, or none of its pictures is in ``source``.
    """
    names, labels = [], []
    for number, line in enumerate(_lines(list_file), 1):
        if not line.strip():
            continue
        line = line.strip()
        name = line.rstrip("0123456789")
        label = line[len(name) :]
        path = name.rstrip().removesuffix(",").rstrip()
        if path == name or not path or not 1 <= len(label) <= 9:
            raise UserError(
                f"{list_file}, line {number}: want 'path label' with a whole number as label, got {shown(line)}"
            )
        names.append(path)
        labels.append(int(label))
    return _located(source, names, labels, None, list_file)


def from_csv(source: Source, csv_file: PathLike, classes: Optional[Sequence[str]] = None) -> Pictures:
    """Read pictures named by a CSV table with the columns ``path`` and ``label``; labels are class names.

    Whole numbers from 0 count as labels themselves, unless ``classes`` names them.

    Raises:
        UserError: the table cannot be read, a column or a cell is missing, or a label is none of ``classes``.
    """
    table = csv.reader(_lines(csv_file), skipinitialspace=True, strict=True)
    names, words = [], []
    try:
        columns = next(table, [])
        for column in ("path", "label"):
            if columns.count(column) != 1:
                how = "no column" if column not in columns else "two columns"
                raise UserError(f"{csv_file} has {how} {column!r}; its first line must name the columns: path,label")
        path, label = columns.index("path"), columns.index("label")
        for row in filter(None, table):
            if len(row) != len(columns):
                raise UserError(f"{csv_file}, line {table.line_num}: {len(row)} cells under {len(columns)} columns")
            if not row[path].strip() or not row[label].strip():
                raise UserError(f"{csv_file}, line {table.line_num}: path or label is missing")
            names.append(row[path].strip())
            words.append(printable(row[label].strip()))
    except csv.Error as error:
        raise UserError(f"{csv_file}, line {table.line_num}: {said(error)}") from error
    if classes is None and all(re.fullmatch(r"\d{1,9}", word) for word in words):
        return _located(source, names, [int(word) for word in words], None, csv_file)
    classes = tuple(sorted(set(words)) if classes is None else classes)
    return _located(source, names, _numbers(words, names, classes), classes, csv_file)


def from_folders(source: Source, under: str = "", classes: Optional[Sequence[str]] = None) -> Pictures:
    """Read pictures sorted into one folder a class; the labels follow the sorted folder names.

    Args:
        under: the folder in ``source`` that holds the class folders.
        classes: take the labels from the place in this list instead.

    Raises:
        UserError: no class folders, a folder of pictures that is none of ``classes``, or one with unread ones alone.
    """
    prefix = f"{under.strip('/')}/" if under.strip("/") else ""

    def word(name: str) -> str:
        return printable(name[len(prefix) :].split("/", 1)[0])

    inside = [name for name in source.names() if name.startswith(prefix) and name.count("/") > prefix.count("/")]
    names = [name for name in inside if _is_picture(name)]
    words = list(map(word, names))
    if not names:
        raise UserError(f"there are no class folders with pictures in {source}{f' under {under}' if under else ''}")
    others: dict[str, str] = {}
    for name in filter(_is_visible, inside):
        folder = word(name)
        if folder not in others or _suffix(name) in UNREAD_SUFFIXES:
            others[folder] = name
    for folder in sorted(others.keys() - set(words)):
        name = others[folder]
        if folder in classes if classes else _suffix(name) in UNREAD_SUFFIXES:
            raise UserError(
                f"the folder {brief(folder)} of {source} holds no pictures that are read, only such as {brief(name)}; "
                f"convert them (to {', '.join(sorted(PICTURE_SUFFIXES))}), or take them out"
            )
        logger.warning("%s holds no pictures, and is no class: it has %s", folder, brief(name))
    classes = tuple(sorted(set(words)) if classes is None else classes)
    return Pictures(names, _numbers(words, names, classes), classes, lambda i: source.read(names[i]))


def unlabelled(source: Source) -> Pictures:
    """Take every picture there is, in whatever folder; the label of all is 0.

    Raises:
        UserError: there is none.
    """
    names = [name for name in source.names() if _is_picture(name)]
    if not names:
        raise UserError(f"there are no pictures in {source}")
    return Pictures(names, np.zeros(len(names), np.int64), None, lambda i: source.read(names[i]))


def cifar10(source: Source, split: str) -> Pictures:
    """Read CIFAR-10 as its authors publish it for Python: ``cifar-10-python.tar.gz`` or the unpacked folder.

    The batches are pickles; they are read as data, and anything but arrays, lists and text is refused.

    Args:
        split: "train" (50,000 pictures) or "test" (10,000).

    Raises:
        UserError: the batches are missing, damaged, or not CIFAR-10.
    """
    files = source.names()
    batches = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    pixels, labels = [], []
    for batch in batches:
        found = [name for name in files if name.rsplit("/", 1)[-1] == batch]
        if len(found) != 1:
            raise UserError(f"{source} holds no {batch}; give cifar-10-python.tar.gz or the folder it unpacks to")
        try:
            data, numbers = _cifar_batch(source.read(found[0]))
        except (UserError, OSError) as error:
            raise UserError(f"{source}: {batch}: {said(error)}") from error
        pixels.append(data)
        labels.append(numbers)
    images = np.concatenate(pixels).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return _in_memory(f"CIFAR-10 {split}", images, np.concatenate(labels), CIFAR10_CLASSES)


def digits() -> Pictures:
    """Return scikit-learn's 1,797 handwritten digits (8 x 8, 17 grey levels) as RGB pictures."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("the digits come with scikit-learn; pip install scikit-learn") from error
    data = load_digits()
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)
    return _in_memory("digit", np.repeat(grey[..., None], 3, axis=3), data.target, tuple("0123456789"))


def hold_out(pictures: Pictures, fraction: float, seed: int) -> tuple[Pictures, Pictures]:
    """Split into the rest and ``fraction`` of every class, drawn by ``seed``; no class is left out on either side."""
    rng = np.random.default_rng(seed)
    held: list[int] = []
    for label in np.unique(pictures.labels):
        members = rng.permutation(np.flatnonzero(pictures.labels == label))
        if len(members) < 2:
            name = brief(pictures.classes[label]) if pictures.classes else label
            raise UserError(f"the class {name} has one picture; it cannot be both trained on and held out")
        held.extend(members[: min(max(round(len(members) * fraction), 1), len(members) - 1)])
    keep = np.setdiff1d(np.arange(len(pictures)), held)
    return pictures.subset(keep), pictures.subset(np.sort(held))


def read_classes(path: PathLike) -> tuple[str, ...]:
    """Read class names, one a line, in the order of the labels."""
    classes = tuple(printable(line.strip()) for line in _lines(path) if line.strip())
    for name, count in collections.Counter(classes).most_common(1):
        if count > 1:
            raise UserError(f"{path} names the class {shown(name)} twice")
    return classes


def _lines(path: PathLike) -> Iterator[str]:
    """Yield the lines of a text, one at a time: a table may be large, but no line of it."""
    try:
        with open(path, encoding="utf-8-sig") as stream:
            for number in itertools.count(1):
                line = stream.readline(MAX_LINE + 1)
                if not line:
                    return
                if len(line) > MAX_LINE or "\0" in line:
                    raise UserError(f"{path}, line {number}: it is no text, or longer than {MAX_LINE:,} characters")
                yield line
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from error


def _is_picture(name: str) -> bool:
    return _is_visible(name) and _suffix(name) in PICTURE_SUFFIXES


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _is_visible(name: str) -> bool:
    return not any(part.startswith(".") for part in name.split("/"))


def _located(
    source: Source, names: list[str], labels: Sequence[int], classes: Optional[Sequence[str]], table: PathLike
) -> Pictures:
    """Tie the names of a table to the files they mean; one that is missing counts as a broken picture."""
    if not names:
        raise UserError(f"{table} names no pictures")
    if not any(source.find(name) is not None for name in names):
        raise UserError(
            f"none of the {len(names)} pictures of {table} is in {source}; it begins with {brief(names[0])}"
        )

    def fetch(i: int) -> bytes:
        name = source.find(names[i])
        if name is None:
            raise UserError(f"there is no such file in {source}")
        return source.read(name)

    return Pictures(names, np.asarray(labels, np.int64), tuple(classes) if classes else None, fetch)


def _numbers(words: Sequence[str], names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    place = {name: i for i, name in enumerate(classes)}
    for word, name in zip(words, names):
        if word not in place:
            raise UserError(
                f"{brief(name)} is of the class {shown(word)}, which is none of the {len(classes)} known classes"
            )
    return np.array([place[word] for word in words], np.int64)


def _cifar_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    tree = safe_pickle.load(io.BytesIO(content), len(content))
    if not isinstance(tree, dict):
        raise UserError("not a batch of CIFAR-10")
    tree = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in tree.items()}
    data, labels = tree.get("data"), tree.get("labels")
    pixels = data.value if isinstance(data, safe_pickle.Array) else None
    if (
        pixels is None
        or pixels.dtype != np.uint8
        or not pixels.size
        or pixels.shape[1:] != (3072,)
        or not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(type(n) is int and 0 <= n < 10 for n in labels)
    ):
        raise UserError("not a batch of CIFAR-10: want uint8 data of 3,072 columns and as many labels from 0 to 9")
    return pixels, np.array(labels, np.int64)


def _in_memory(what: str, images: np.ndarray, labels: Iterable[int], classes: Sequence[str]) -> Pictures:
    images = np.ascontiguousarray(images)
    names = [f"{what} {i}" for i in range(len(images))]
    return Pictures(names, np.asarray(labels, np.int64), tuple(classes), images.__getitem__)
