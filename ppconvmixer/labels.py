"""Other labels for ImageNet's classes: ReaL's, and those of the test sets V2, A, R and Sketch.

====== ======================================= ============================= ====================================
name   pictures                                labels                        read from
====== ======================================= ============================= ====================================
real   ILSVRC2012_val_00000001.JPEG, ...       none, one or several each     ``real.json``: a list of 50,000 lists
v2     folders ``0`` to ``999``                the number                    the folders' names
a, r   folders of 200 WordNet ids              the id's place among 1000     the folders' names
sketch folders of 1000 WordNet ids             the id's place among 1000     the folders' names
====== ======================================= ============================= ====================================

Beyer et al. 2020 (arXiv 2006.07159), Recht et al. 2019 (1902.10811), Hendrycks et al. 2021 (1907.07174 and
2006.16241), Wang et al. 2019 (1905.13549).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, Optional

import numpy as np

from .datasets import Pictures
from .errors import UserError, brief, said, shown
from .files import PathLike, read_text

NAMES = ("real", "v2", "a", "r", "sketch")
SUBSETS = ("a", "r")
MAX_BYTES = 1 << 21  # JSON swells some twentyfold in memory; real.json has 0.6 MB, a list of ids some kB
MOST = 100  # labels of a picture; those of ReaL have at most some ten
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+", re.ASCII)
_WORDNET = re.compile(r"n\d{8}", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Relabelled:
    """Pictures with other labels.

    Args:
        chosen: labels that the network is to choose among; None for all.
        left_out: pictures for which no label is right.
    """

    pictures: Pictures
    chosen: Optional[np.ndarray] = None
    left_out: int = 0


def relabel(
    name: str, pictures: Pictures, classes: Optional[Sequence[str]] = None, file: Optional[PathLike] = None
) -> Relabelled:
    """Give pictures the labels that ``name``, one of ``NAMES``, stands for.

    Args:
        classes: WordNet ids in the order of the labels, for ``a``, ``r`` and ``sketch``; see ``by_id``.
        file: for ``real`` its labels; for ``a`` and ``r`` the ids of the subset, None takes those that have pictures.

    Raises:
        UserError: the file is missing or of no use here; or as ``real``, ``numbered``, ``by_id`` and ``subset``.
    """
    if name == "real":
        if not file:
            raise UserError("--labels-file is missing: real.json, as the authors of ReaL publish it")
        return real(pictures, file)
    if file and name not in SUBSETS:
        raise UserError(f"the labels {name} are the names of the folders; leave --labels-file out")
    if name == "v2":
        return Relabelled(numbered(pictures))
    found = by_id(pictures, classes)
    if name not in SUBSETS:
        return Relabelled(found)
    chosen = subset(file, classes) if file else np.unique(found.labels)
    outside = np.flatnonzero(~np.isin(found.labels, chosen))
    if outside.size:
        raise UserError(f"{brief(found.names[outside[0]])} is of a class that {file} does not name")
    return Relabelled(found, chosen)


def real(pictures: Pictures, path: PathLike) -> Relabelled:
    """Give pictures of ImageNet's validation set the labels of ReaL, by the numbers in their names.

    Pictures in which its raters found none of the classes are left out, as its authors want it.

    Returns:
        Labels int64 (pictures, most labels of one); where a picture has fewer, its first is repeated.

    Raises:
        UserError: the file is no list of lists of classes; or a picture's name has no number, or one beyond the list.
    """
    table = _read_real(path)
    places = [_number(name, len(table), path) for name in pictures.names]
    kept = [i for i, place in enumerate(places) if table[place]]
    if not kept:
        raise UserError(f"{path} has a label for none of the {len(pictures)} pictures")
    found = [table[places[i]] for i in kept]
    most = max(map(len, found))
    labels = np.array([row + row[:1] * (most - len(row)) for row in found], np.int64)
    kept_pictures = dataclasses.replace(pictures.subset(kept), labels=labels, classes=None)
    return Relabelled(kept_pictures, left_out=len(pictures) - len(kept))


def numbered(pictures: Pictures) -> Pictures:
    """Take the label of every picture from its folder, whose name is the number of the class.

    Sorted as text, 10 would come before 2: as class folders they would get wrong labels.

    Raises:
        UserError: a folder is named otherwise.
    """
    folders = _folders(pictures)
    for name, folder in zip(pictures.names, folders):
        if not re.fullmatch(r"\d{1,4}", folder, re.ASCII):
            raise UserError(f"{brief(name)} is in no folder that is the number of a class, such as 0 or 999")
    return dataclasses.replace(pictures, labels=np.array(list(map(int, folders)), np.int64))


def by_id(pictures: Pictures, classes: Optional[Sequence[str]]) -> Pictures:
    """Take the label of every picture from its folder, whose name is the WordNet id of the class.

    Args:
        classes: in the order of the labels; the id is the first word of each, as in ``LOC_synset_mapping.txt``.

    Raises:
        UserError: no ids are given, or a folder is none of them.
    """
    place = {wordnet_id: i for i, wordnet_id in enumerate(_ids(classes))}
    folders = _folders(pictures)
    for name, folder in zip(pictures.names, folders):
        if folder not in place:
            raise UserError(
                f"{brief(name)} is in the folder {shown(folder)}, which is none of the {len(place)} WordNet ids"
            )
    return dataclasses.replace(pictures, labels=np.array([place[folder] for folder in folders], np.int64))


def subset(path: PathLike, classes: Optional[Sequence[str]]) -> np.ndarray:
    """Return the classes whose WordNet ids begin a line of a text, such as the ``README.txt`` of ImageNet-A and -R.

    Returns:
        Labels in rising order, int64.

    Raises:
        UserError: the text cannot be read, or names no id, or one that is none of ``classes``.
    """
    place = {wordnet_id: i for i, wordnet_id in enumerate(_ids(classes))}
    try:
        words = [line.split(maxsplit=1)[0] for line in read_text(path, MAX_BYTES).splitlines() if line.strip()]
    except UserError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    found = [word for word in words if _WORDNET.fullmatch(word)]
    if not found:
        raise UserError(f"no line of {path} begins with a WordNet id, such as n01440764")
    for word in found:
        if word not in place:
            raise UserError(f"{path} names {word}, which is none of the {len(place)} WordNet ids")
    return np.unique([place[word] for word in found])


class Restricted:
    """An engine that chooses among some of its classes alone: the logits of all others are -inf.

    So does ImageNet-A's and ImageNet-R's own evaluation, and the softmax is over the chosen ones.

    Args:
        chosen: their labels.
    """

    def __init__(self, engine: Any, chosen: np.ndarray):
        self.engine, self.name, self.num_classes = engine, engine.name, engine.num_classes
        self.others = np.setdiff1d(np.arange(engine.num_classes), chosen)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return float32 logits (N, classes) for whatever images the engine takes."""
        logits = np.array(self.engine(images))
        logits[:, self.others] = -np.inf
        return logits


def _read_real(path: PathLike) -> list[list[int]]:
    try:
        table = json.loads(read_text(path, MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read the labels {path}: {said(error)}") from error
    right = isinstance(table, list) and all(
        isinstance(row, list) and len(row) <= MOST and all(type(n) is int and 0 <= n < 1 << 31 for n in row)
        for row in table
    )
    if not right or not table:
        raise UserError(f"{path} is no real.json: want a list of lists of class numbers, one for every picture")
    return table


def _number(name: str, count: int, path: PathLike) -> int:
    """Return the place of a picture in the validation set, from 0."""
    match = _VALIDATION.fullmatch(PurePosixPath(name).name)
    if not match:
        raise UserError(f"{brief(name)} is not named as ImageNet's validation set, ILSVRC2012_val_00000001.JPEG")
    if not 1 <= int(match[1]) <= count:
        raise UserError(f"{brief(name)} is number {int(match[1])}, and {path} has labels for 1 to {count}")
    return int(match[1]) - 1


def _folders(pictures: Pictures) -> list[str]:
    """Return the name of the folder that each picture is in; an archive may have a folder above all of them."""
    return [PurePosixPath(name).parent.name for name in pictures.names]


def _ids(classes: Optional[Sequence[str]]) -> list[str]:
    ids = [next(iter(name.split()), "") for name in classes or ()]
    if not ids or not all(map(_WORDNET.fullmatch, ids)):
        raise UserError(
            "the WordNet ids of the classes are missing; give --classes FILE, one a line in the order of the labels, "
            "such as ImageNet's LOC_synset_mapping.txt"
        )
    return ids
