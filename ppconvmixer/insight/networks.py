"""Networks by name: of the zoo, a checkpoint, ``paddle.vision.models``, and those that only figures are known of."""

from __future__ import annotations

import dataclasses
import functools
import json
from importlib import resources
from pathlib import Path
from typing import Any, Callable, Optional

from paddle import nn
from paddle.vision import models

from .. import card, layouts, zoo
from ..errors import UserError, unknown
from ..model import ConvMixer
from ..trained import check_shape

LARGEST = 1e9, 2e12  # parameters (4 GB) and MACs (minutes) of a network that is made to be looked at
_SIZES = {"LeNet": 28, "inception_v3": 299}  # pixels; all others of paddle.vision.models are made for 224
VISION = (*(name for name in models.__all__ if name.islower()), "LeNet")


@dataclasses.dataclass(frozen=True)
class Network:
    """A network for pictures of ``size`` x ``size`` pixels.

    Args:
        create: makes it; None where only its published figures are known.
        shape: of a ConvMixer, with the classes and the size it is used with.
        figures: what is published of it at this size: ``top1``, ``top5``, ``data`` and ``source``, and of a network
            that cannot be made ``parameters`` and ``macs``. Whatever is not known is missing.
    """

    name: str
    size: int
    create: Optional[Callable[[], nn.Layer]]
    shape: Optional[zoo.Variant]
    figures: dict[str, Any]


def find(name: str, size: Optional[int] = None) -> Network:
    """Return the network that a name or the path of a checkpoint stands for.

    Args:
        size: side of the input in pixels; None takes what the network is made for.

    Raises:
        UserError: unknown; not to be had at this size; or too large to be made.
    """
    if Path(name).is_file():
        return _of_checkpoint(name, size)
    if Path(name).suffix:
        raise UserError(f"there is no checkpoint {name}")
    if name.startswith("convmixer"):
        return _convmixer(zoo.canonical(name), zoo.variant(name), size)
    if name not in VISION and name not in _published():
        raise unknown("network", name, names())
    figures, wanted = _published().get(name, {}), size or _SIZES.get(name, 224)
    if name in VISION:
        known = figures if figures.get("size") == wanted else {}
        return Network(name, wanted, getattr(models, name), None, known)
    if size not in (None, figures["size"]):
        raise UserError(f"Paddle has no {name}, and its figures are published at {figures['size']} pixels only")
    return Network(name, figures["size"], None, None, figures)


def names() -> list[str]:
    """Return the names that ``find`` knows, without those that spell out a ConvMixer."""
    return [*zoo.VARIANTS, *zoo.ALIASES, *VISION, *(name for name in _published() if name not in VISION)]


def compared(size: Optional[int] = None) -> list[str]:
    """Return the names of the networks whose accuracy on ImageNet is published, ConvMixers first.

    Args:
        size: leave out those that Paddle lacks and whose figures are published at other sizes alone.
    """
    ours = [name for name in zoo.list_models(pretrained=True) if zoo.manifest()[name]["data"] == "ImageNet"]
    others = [name for name, known in _published().items() if name in VISION or size in (None, known["size"])]
    return [*ours, *others]


@functools.cache
def _published() -> dict[str, dict[str, Any]]:
    """Return what ``published.json`` knows of the accuracy of others, by name, each with its source spelled out."""
    found = json.loads(resources.files(__package__).joinpath("published.json").read_text("utf-8"))
    return {
        name: {**figures, "data": "ImageNet", "source": found["sources"][figures["source"]]}
        for name, figures in found["networks"].items()
    }


def _convmixer(name: str, shape: zoo.Variant, size: Optional[int]) -> Network:
    known = zoo.manifest().get(name, {})
    size = size or shape.input.size
    figures = {key: known[key] for key in ("top1", "top5", "data", "source") if key in known}
    figures = figures if size == shape.input.size else {}
    shape = dataclasses.replace(shape, input=dataclasses.replace(shape.input, size=size))
    if size < shape.patch_size:
        raise UserError(f"{name} takes no pictures of {size} pixels; its patches have {shape.patch_size}")
    if shape.parameters() > LARGEST[0] or shape.macs() > LARGEST[1]:
        counts = f"{shape.parameters():,} parameters and {shape.macs():,} MACs at {size} pixels"
        raise UserError(f"{name} has {counts}; name a smaller one, or a smaller --size")
    arguments = {field: getattr(shape, field) for field in ("dim", "depth", "kernel_size", "patch_size", "act")}
    create = functools.partial(ConvMixer, **arguments, num_classes=shape.num_classes)
    return Network(name, size, create, shape, figures)


def _of_checkpoint(path: str, size: Optional[int]) -> Network:
    """Return the ConvMixer of a checkpoint: its shape, its classes, and the size of its card.

    Raises:
        UserError: it is none for pictures of three channels, or its card names another.
    """
    state, facts = zoo.translate(path).state, card.read(path)
    found, classes = layouts.shape(state), layouts.classes(state)
    if not found or not classes:
        raise UserError(f"{path} is no complete ConvMixer with a head")
    name = zoo.canonical(facts.model) if facts.model else zoo.spelled(zoo.Variant(**found))
    check_shape(state, name, path)
    shape = dataclasses.replace(zoo.variant(name), num_classes=classes)
    network = _convmixer(name, shape, size or zoo.input_spec(name, **facts.input).size)
    return dataclasses.replace(network, figures={})  # the accuracy of the published weights is not that of these
