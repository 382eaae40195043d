"""A trained network: what the name, the checkpoint and its card together say."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Optional

from . import card, layouts, zoo
from .checkpoint import State
from .datasets import read_classes
from .engines import create_engine
from .errors import UserError
from .files import PathLike

if TYPE_CHECKING:
    from .model import ConvMixer


_CLAIM = 16  # times its numbers that a checkpoint's shapes may ask memory for; what it lacks is named later


def check_shape(state: State, name: str, weights: PathLike) -> None:
    """Refuse a checkpoint of another shape or for other pictures before a model is made; by its name it may be huge.

    Args:
        state: of the checkpoint, under our names.
        weights: what to call it.

    Raises:
        UserError: it has another shape, or other than three channels.
    """
    found, wanted = layouts.shape(state), zoo.variant(name)
    if found != {key: getattr(wanted, key) for key in ("dim", "depth", "kernel_size", "patch_size")}:
        raise UserError(
            f"{weights} holds {layouts.describe(state)}; the model is "
            f"ConvMixer-{wanted.dim}/{wanted.depth}, kernel {wanted.kernel_size}, patch {wanted.patch_size}"
        )
    wanted = dataclasses.replace(wanted, num_classes=layouts.classes(state) or 0)
    held = sum(value.size for value in state.values())
    if wanted.parameters() > _CLAIM * held:
        raise UserError(f"{weights} holds {held:,} numbers, and {name} has {wanted.parameters():,}; it is not complete")
    channels = state["stem.0.weight"].shape[1]
    if channels != 3:
        raise UserError(f"{weights} takes {channels} channels; pictures have 3")


class Trained:
    """A checkpoint of a classifier of RGB pictures, read and checked; ``create`` makes the network.

    Args:
        weights: a checkpoint in any layout, or what stands for a published one, see ``zoo.find_weights``.
        model: name in the zoo; None takes the card's.
        classes: file with the names of the classes; None takes the card's.

    Raises:
        UserError: not to be had or read, or name, checkpoint, card and classes contradict each other.
    """

    def __init__(self, weights: PathLike, model: Optional[str] = None, classes: Optional[PathLike] = None):
        self.path = weights = zoo.find_weights(model, weights)
        self.translation = zoo.translate(weights)
        facts = card.read(weights)
        name = model or facts.model
        if name is None:
            raise UserError(f"--model is missing, and {weights} has no card that names the model")
        self.name = zoo.canonical(name)
        if facts.model and zoo.canonical(facts.model) != self.name:
            raise UserError(f"{weights} is a {facts.model} by its card, not a {self.name}")
        self.input = zoo.input_spec(self.name, **facts.input)
        self.num_classes = layouts.classes(self.translation.state) or 0
        self.classes = read_classes(classes) if classes else facts.classes
        if not self.num_classes:
            raise UserError(f"{weights} has no head; it gives features, not classes")
        if self.classes and len(self.classes) != self.num_classes:
            names = classes or f"the card of {weights}"
            raise UserError(f"{names} has {len(self.classes)} classes, but the head of {weights} {self.num_classes}")
        check_shape(self.translation.state, self.name, weights)

    def engine(self, name: str) -> Any:
        """Return what runs the network; see ``engines.create_engine``.

        Raises:
            UserError: as that, and as ``create``.
        """
        return create_engine(name, self.create())

    def create(self) -> ConvMixer:
        """Return the network, filled.

        Raises:
            UserError: the checkpoint is of another network.
        """
        model = zoo.create_model(self.name, num_classes=self.num_classes)
        zoo.fill(model, self.translation, self.path)
        return model
