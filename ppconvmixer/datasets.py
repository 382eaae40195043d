"""Labelled pictures: from a list, class folders, a CSV table, CIFAR-10 or the bundled digits.

Nothing here decodes a picture; a data set knows names, labels and how to fetch the bytes (or, for
the small sets, the pixels) of one picture.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Callable, Optional, Union

import numpy as np

from . import safe_pickle
from .errors import UserError
from .files import PathLike

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
MAX_IN_MEMORY = 4 << 30  # bytes a compressed archive may unpack to
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Labelled pictures.

    Args:
        names: what to call each picture when speaking to a person.
        labels: int64, one a picture.
        classes: names of the labels 0, 1, ..., where they are known.
        fetch: the encoded bytes, or the uint8 (H, W, 3) pixels, of picture i.
    """

    names: Sequence[str]
    labels: np.ndarray
    classes: Optional[tuple[str, ...]]
    fetch: Callable[[int], Union[bytes, np.ndarray]]

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Sequence[int]) -> Pictures:
        """Return the pictures at ``indices``, in that order."""
        indices = np.asarray(indices, np.int64)
        names = [self.names[i] for i in indices]
        return Pictures(names, self.labels[indices], self.classes, lambda i: self.fetch(int(indices[i])))

    def check_labels(self, num_classes: int) -> None:
        """Raise a UserError that names the first picture whose label the head does not have."""
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= num_classes))
        if wrong.size:
            raise UserError(
                f"{self.names[wrong[0]]} has the label {self.labels[wrong[0]]}, "
                f"but the model has {num_classes} classes (labels 0 to {num_classes - 1}); "
                f"{wrong.size} of {len(self)} labels are outside"
            )


class Folder:
    """The files below a folder, by their path relative to it."""

    def __init__(self, root: PathLike):
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"there is no folder {self.root}")

    def __str__(self) -> str:
        return str(self.root)

    def names(self) -> list[str]:
        """Return every file, sorted."""
        return sorted(p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file())

    def find(self, name: str) -> Optional[str]:
        """Return the name of an existing file, or None."""
        return name if (self.root / name).is_file() else None

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        return (self.root / name).read_bytes()


class Tar:
    """The files in a tar archive, without unpacking it.

    An uncompressed archive is read in place: the index is made once, and every read opens the file
    anew, so workers share nothing. A compressed one is unpacked into memory, never to the disk.
    """

    def __init__(self, path: PathLike):
        self.path = Path(path)
        self._content: dict[str, bytes] = {}
        self._spans: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(self.path) as archive:
                in_place = archive.fileobj is not None and type(archive.fileobj).__name__ == "BufferedReader"
                left = MAX_IN_MEMORY
                for member in archive:
                    if not member.isreg():
                        continue
                    name = str(PurePosixPath(member.name))
                    if in_place and not member.issparse():
                        self._spans[name] = member.offset_data, member.size
                        continue
                    left -= member.size
                    if left < 0:
                        raise UserError(f"{self.path} unpacks to more than {MAX_IN_MEMORY >> 30} GiB; unpack it first")
                    self._content[name] = archive.extractfile(member).read()
        except (OSError, EOFError, tarfile.TarError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"cannot read the archive {self.path}: {error}") from error
        self._size = self.path.stat().st_size
        self._by_file_name: dict[str, list[str]] = {}
        for name in [*self._spans, *self._content]:
            self._by_file_name.setdefault(name.rsplit("/", 1)[-1], []).append(name)

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        """Return every file, sorted."""
        return sorted([*self._spans, *self._content])

    def find(self, name: str) -> Optional[str]:
        """Return the member ``name``, or else the only member of that file name: the validation tar has no folders."""
        name = str(PurePosixPath(name))
        if name in self._spans or name in self._content:
            return name
        alike = self._by_file_name.get(name.rsplit("/", 1)[-1], [])
        return alike[0] if len(alike) == 1 else None

    def read(self, name: str) -> bytes:
        """Return a member's content."""
        if name in self._content:
            return self._content[name]
        offset, size = self._spans[name]
        with open(self.path, "rb") as stream:
            stream.seek(offset)
            data = stream.read(min(size, self._size))
        if len(data) != size:
            raise UserError(f"{self.path} is cut off")
        return data


Source = Union[Folder, Tar]


def open_source(path: PathLike) -> Source:
    """Open a folder or a tar archive.

    Raises:
        UserError: neither is there.
    """
    path = Path(path)
    if path.is_file():
        return Tar(path)
    if not path.exists():
        raise UserError(f"there is nothing at {path}; give a folder or a tar archive of pictures")
    return Folder(path)


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
        match = re.fullmatch(r"\s*(.+?)\s*[\s,]\s*(\d{1,9})\s*", line)
        if not match:
            raise UserError(
                f"{list_file}, line {number}: want 'path label' with a whole number as label, got {line.strip()[:80]!r}"
            )
        names.append(match[1])
        labels.append(int(match[2]))
    return _located(source, names, labels, None, list_file)


def from_csv(source: Source, csv_file: PathLike, classes: Optional[Sequence[str]] = None) -> Pictures:
    """Read pictures named by a CSV table with the columns ``path`` and ``label``; labels are class names.

    Whole numbers from 0 count as labels themselves, unless ``classes`` names them.

    Raises:
        UserError: the table cannot be read, a column or a cell is missing, or a label is none of ``classes``.
    """
    table = csv.DictReader(io.StringIO("\n".join(_lines(csv_file))), skipinitialspace=True)
    for column in ("path", "label"):
        if column not in (table.fieldnames or []):
            raise UserError(f"{csv_file} has no column {column!r}; its first line must name the columns path and label")
    names, words = [], []
    for row in table:
        if not row["path"] or not row["label"]:
            raise UserError(f"{csv_file}, line {table.line_num}: path or label is missing")
        names.append(row["path"].strip())
        words.append(row["label"].strip())
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
        UserError: no class folders, a folder that is none of ``classes``, or one without pictures.
    """
    prefix = f"{under.strip('/')}/" if under.strip("/") else ""
    names = [
        name
        for name in source.names()
        if name.startswith(prefix)
        and name.count("/") > prefix.count("/")
        and PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES
        and not any(part.startswith(".") for part in name.split("/"))
    ]
    words = [name[len(prefix) :].split("/", 1)[0] for name in names]
    if not names:
        raise UserError(f"there are no class folders with pictures in {source}{f' under {under}' if under else ''}")
    classes = tuple(sorted(set(words)) if classes is None else classes)
    return Pictures(names, _numbers(words, names, classes), classes, lambda i: source.read(names[i]))


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
        except UserError as error:
            raise UserError(f"{source}: {batch}: {error}") from error
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
            name = pictures.classes[label] if pictures.classes else label
            raise UserError(f"the class {name} has one picture; it cannot be both trained on and held out")
        held.extend(members[: min(max(round(len(members) * fraction), 1), len(members) - 1)])
    keep = np.setdiff1d(np.arange(len(pictures)), held)
    return pictures.subset(keep), pictures.subset(np.sort(held))


def read_classes(path: PathLike) -> tuple[str, ...]:
    """Read class names, one a line, in the order of the labels."""
    classes = tuple(line.strip() for line in _lines(path) if line.strip())
    if len(set(classes)) != len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise UserError(f"{path} names the class {twice!r} twice")
    return classes


def _lines(path: PathLike) -> list[str]:
    try:
        return Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from error


def _located(
    source: Source, names: list[str], labels: Sequence[int], classes: Optional[Sequence[str]], table: PathLike
) -> Pictures:
    """Tie the names of a table to the files they mean; one that is missing counts as a broken picture."""
    if not names:
        raise UserError(f"{table} names no pictures")
    if not any(source.find(name) is not None for name in names):
        raise UserError(f"none of the {len(names)} pictures of {table} is in {source}; it begins with {names[0]}")

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
            raise UserError(f"{name} is of the class {word!r}, which is none of the {len(classes)} known classes")
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
