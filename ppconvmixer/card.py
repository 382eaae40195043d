"""The card of a checkpoint: a small JSON file beside it that says what the weights alone do not.

``best.pdparams`` has the card ``best.json``: the model's name, the input it was trained for, the
names of its classes, and where it comes from.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, Optional

from .errors import UserError, printable, said
from .files import PathLike, read_text, sha256, write_text

logger = logging.getLogger("ppconvmixer")
MAX_BYTES = 1 << 20  # JSON swells some twentyfold in memory; a thousand class names take 30 kB


@dataclasses.dataclass(frozen=True)
class Card:
    """What a card holds.

    Args:
        model: name in the zoo.
        input: fields of ``zoo.InputSpec`` that the weights want.
        classes: names of the labels 0, 1, ...
        sha256: of the checkpoint the card belongs to.
        facts: anything else worth knowing (recipe, accuracy, versions).
    """

    model: Optional[str] = None
    input: dict[str, Any] = dataclasses.field(default_factory=dict)
    classes: Optional[tuple[str, ...]] = None
    sha256: Optional[str] = None
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def read(weights: PathLike) -> Card:
    """Read the card beside a checkpoint; an empty one where there is none.

    Raises:
        UserError: the card is no JSON of the expected form.
    """
    path = Path(weights).with_suffix(".json")
    if not path.is_file():
        return Card()
    try:
        card = parse(read_text(path, MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read the card {path}: {said(error)}; mend it or move it away") from error
    if card.sha256 is not None and Path(weights).is_file() and card.sha256 != sha256(weights):
        logger.warning(
            "the card %s was written for another file; its input and class names are used all the same", path
        )
    return card


def parse(text: str) -> Card:
    """Return the card that ``to_json`` wrote.

    Control characters in names of classes are spelled out; the names are there to be printed.

    Raises:
        ValueError: it is no JSON of the expected form.
    """
    content = json.loads(text, object_pairs_hook=_no_key_twice)
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    card = Card(**{field.name: content[field.name] for field in dataclasses.fields(Card) if field.name in content})
    texts = all(isinstance(value, (str, type(None))) for value in (card.model, card.sha256))
    names = card.classes is None or isinstance(card.classes, list)
    if not texts or not names or not isinstance(card.input, dict) or not isinstance(card.facts, dict):
        raise ValueError("a field is of the wrong kind")
    if not all(isinstance(name, str) for name in card.classes or ()):
        raise ValueError("the name of a class is no text")
    return dataclasses.replace(card, classes=tuple(map(printable, card.classes)) if card.classes else None)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key is given twice")
    return content


def write(weights: PathLike, card: Card) -> None:
    """Write the card of a checkpoint that is already on the disk, with its digest."""
    card = dataclasses.replace(card, sha256=sha256(weights))
    write_text(Path(weights).with_suffix(".json"), to_json(card))


def to_json(card: Card) -> str:
    """Return the card as text."""
    return json.dumps(dataclasses.asdict(card), indent=2, ensure_ascii=False) + "\n"
