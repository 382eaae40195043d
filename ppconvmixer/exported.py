"""An exported network read back: its graph, and the card that travels with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Optional

import numpy as np

from . import card, zoo
from .datasets import read_classes
from .engines import GRAPHS, Inference, open_graph, send_no_statistics
from .errors import UserError, said
from .files import PathLike, read_text
from .onnx_file import METADATA
from .transforms import to_pixels


class Exported:
    """A static graph in a file, with what its card says; ``engine`` runs it.

    ``checkpoint`` is the SHA-256 of the checkpoint it was made of.

    Args:
        path: a file of ``engines.GRAPHS``.
        classes: file with the names of the classes; None takes the card's.

    Raises:
        UserError: not to be read, or no export of this package.
    """

    def __init__(self, path: PathLike, classes: Optional[PathLike] = None):
        self.path = path = Path(path)
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        text = _text(path)
        try:
            found = card.parse(text)
            self.num_classes = found.facts["classes"]
            self.pixels = found.facts["pixels"]
            if type(self.num_classes) is not int or self.num_classes < 1 or type(self.pixels) is not bool:
                raise ValueError("a fact is of the wrong kind")
            self.name = zoo.canonical(found.model or "")
            self.input = zoo.input_spec(self.name, **found.input)
            self.checkpoint = found.sha256
        except (UserError, ValueError, KeyError, RecursionError) as error:
            raise UserError(f"the card in {path} makes no sense: {said(error)}; export the network anew") from error
        self.classes = read_classes(classes) if classes else found.classes
        if self.classes and len(self.classes) != self.num_classes:
            raise UserError(f"{path} has {self.num_classes} classes, but {len(self.classes)} names of classes")

    def engine(self, name: str) -> Any:
        """Return what runs the graph: float32 (N, 3, size, size) as of any network in, float32 (N, classes) out.

        Raises:
            UserError: as ``engines.open_graph``; or the graph does not compute what its card says.
        """
        engine = open_graph(name, self.path, self.num_classes)
        if self.pixels:
            engine = _OfPixels(engine, self.input)
        for count in (1, 2):
            blank = np.zeros((count, 3, self.input.size, self.input.size), np.float32)
            try:
                found = engine(blank)
            except Exception as error:  # each engine has exceptions of its own
                raise UserError(
                    f"{self.path} does not take {count} pictures of {self.input.size} pixels, as its card says: "
                    f"{said(error)}"
                ) from error
            wanted = np.dtype(np.float32), (count, self.num_classes)
            if (found.dtype, found.shape) != wanted:
                raise UserError(
                    f"{self.path} makes {found.dtype} {list(found.shape)} of {count} pictures, where its card says "
                    f"{wanted[0]} {list(wanted[1])}; export the network anew"
                )
        return engine


class _OfPixels:
    """A graph that takes pixels, fed with a network's input; the logarithm of its probabilities are the logits."""

    def __init__(self, engine: Any, spec: zoo.InputSpec):
        self.engine, self.name, self.num_classes, self.spec = engine, engine.name, engine.num_classes, spec

    def __call__(self, images: np.ndarray) -> np.ndarray:
        probabilities = self.engine(to_pixels(images, self.spec))
        return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))


def is_graph(name: Optional[str]) -> bool:
    """Tell whether what stands for a model on the command line is the file of a static graph."""
    return name is not None and Path(name).suffix in GRAPHS


def card_beside(program: Path) -> Path:
    """Return where the card of Paddle's static graph is, which has no room for it."""
    return program.with_suffix(".card.json")


def _text(path: Path) -> str:
    """Return the card in ``path``, as text."""
    if GRAPHS[path.suffix][0] is Inference:
        beside = card_beside(path)
        try:
            return read_text(beside, card.MAX_BYTES)
        except UserError as error:
            raise UserError(f"cannot read the card {beside}: {error}; it is made with the graph") from error
    try:
        if path.suffix == ".onnx":
            import onnx

            model = onnx.load(path, load_external_data=False)
            found = {entry.key: entry.value for entry in model.metadata_props}.get(METADATA)
        else:
            send_no_statistics()
            import openvino

            model = openvino.Core().read_model(path)
            found = model.get_rt_info(METADATA).astype(str) if model.has_rt_info(METADATA) else None
    except ImportError as error:
        raise UserError(f"{path} needs the package {error.name}; pip install {error.name}") from error
    except Exception as error:  # protobuf and OpenVINO have exceptions of their own
        raise UserError(f"cannot read the graph {path}: {said(error)}") from error
    if found is None:
        raise UserError(f"{path} has no card that names model and classes; it was not made by ppconvmixer export")
    return found


def describe(weights: str, network: Any, pixels: bool, **facts: Any) -> str:
    """Return the card of an export as text.

    Args:
        weights: SHA-256 of the checkpoint.
        network: a ``Trained``.
        pixels: whether the graph takes pixels.
        facts: anything else worth knowing.
    """
    about = card.Card(
        model=network.name,
        input=dataclasses.asdict(network.input),
        classes=network.classes and tuple(network.classes),
        sha256=weights,
        facts={"classes": network.num_classes, "pixels": pixels, **facts},
    )
    return card.to_json(about)
