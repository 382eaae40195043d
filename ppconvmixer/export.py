"""Write a trained network as a file that other engines run, and compare what they make of it with the network."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from . import __version__, exported
from .engines import Dygraph, OnnxRuntime, program_suffix, runners, send_no_statistics, to_static
from .errors import UserError
from .evaluate import softmax
from .exported import Exported
from .files import rename, sha256
from .onnx_file import METADATA, to_onnx
from .quantize import AGREEMENT, most_likely, quantize
from .trained import Trained
from .transforms import to_pixels
from .zoo import InputSpec

if TYPE_CHECKING:
    from .model import ConvMixer

logger = logging.getLogger("ppconvmixer")

HELD_BACK = 4  # every fourth picture to calibrate on is judged by instead
SUFFIXES = {"onnx": (".onnx",), "openvino": (".xml",), "paddle": (".json", ".pdmodel")}
TOLERANCES = {  # of the largest logit, by the bits of the weights
    32: 1e-4,  # engines round differently, and 1e-6 is usual
    16: 2e-2,  # significands of 11 bits
    8: 0.1,  # of 7 bits
}
CALIBRATED = 0.5  # the maps are of 7 bits as well: what is further off is another network
RAREST = 1e-30  # probabilities below are all the same; float32 ends at 1e-38


@dataclasses.dataclass(frozen=True)
class Form:
    """How a network is written.

    Args:
        format: one of ``SUFFIXES``.
        pixels: put the normalisation and a softmax into the graph: uint8 (N, H, W, 3) in, probabilities out.
        any_size: leave height and width open; otherwise they are the input's.
        bits: of the weights: 32, 16 (float16) or 8 (whole numbers, a scale for every output). Engines widen them
            and compute in float32, unless the maps are brought to 8 bits as well, see ``export``.
    """

    format: str
    pixels: bool = False
    any_size: bool = False
    bits: int = 32


@dataclasses.dataclass(frozen=True)
class Verified:
    """How far an engine's answers for an exported file are from the network's own, on photographs.

    Args:
        engine: who ran the file.
        difference: largest difference, over the largest logit; of logarithms where the graph gives probabilities.
        same: share of the pictures with the same most likely class.
        pictures: how many those are: the photographs, or of calibrated graphs the pictures that were held back.
    """

    engine: str
    difference: float
    same: float
    pictures: int


def export(network: Trained, target: Path, form: Form, pictures: Optional[np.ndarray] = None) -> Verified:
    """Write ``network`` to ``target`` and the files that belong to it, once the written file has been verified.

    Args:
        pictures: with 8 bits, some hundred of the network's inputs, float32 (N, 3, size, size), by which the maps
            are brought to 8 bits too, so that engines multiply bytes; see ``quantize``. Every fourth is held back,
            and tells whether the classes stay the same.

    Raises:
        UserError: the suffix is not the format's, a package is missing, a file cannot be written, or it computes
            something else than the network. What was there before stays as it was.
    """
    check_suffix(target, form.format)
    with on_cpu():
        return _export(network, target, form, pictures)


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Make Paddle compute on the CPU: on a GPU its products may be in TF32, too coarse to compare with."""
    import paddle

    before = paddle.get_device()
    paddle.set_device("cpu")
    try:
        yield
    finally:
        paddle.set_device(before)


def _export(network: Trained, target: Path, form: Form, pictures: Optional[np.ndarray]) -> Verified:
    held_back = None
    if pictures is not None and len(pictures) >= HELD_BACK:
        held_back = pictures[HELD_BACK - 1 :: HELD_BACK]
        pictures = np.delete(pictures, np.s_[HELD_BACK - 1 :: HELD_BACK], axis=0)
    model = network.create()
    card = exported.describe(sha256(network.path), network, form.pixels, **_versions(form, pictures is not None))
    with beside(target) as made:
        _WRITERS[form.format](model, made, network.input, form, card, pictures)
        sizes = [network.input.size] + ([network.input.size + model.patch_size] if form.any_size else [])
        found = verify(Exported(made), model, sizes)
        allowed = TOLERANCES[form.bits] if pictures is None else CALIBRATED
        if not found.difference <= allowed:
            raise UserError(
                f"{target} was not written: {found.engine} makes something else of it "
                f"(off by {found.difference:.1e} of the largest logit, allowed are {allowed:.0e})"
            )
        if held_back is not None:
            found = _judged(found, Exported(made).engine(found.engine), model, held_back)
    return found


def _judged(found: Verified, engine: Any, model: ConvMixer, pictures: np.ndarray) -> Verified:
    """Return ``found`` with the share of ``pictures`` that keep their class; less than was aimed at is said."""
    same = float(np.mean(most_likely(engine, pictures) == most_likely(Dygraph(model), pictures)))
    if same < AGREEMENT:
        logger.warning(
            "of %d pictures held back, %d keep their most likely class; the aim is %.0f %%: calibrate on more "
            "pictures of the kind the network is used for, or leave --calibrate out",
            *(len(pictures), round(same * len(pictures)), 100 * AGREEMENT),
        )
    return dataclasses.replace(found, same=same, pictures=len(pictures))


def check_suffix(target: Path, form: str) -> None:
    """Raise a UserError where the name of an export does not say its format."""
    if target.suffix not in SUFFIXES[form]:
        raise UserError(f"cannot write {target} as {form}; name a file ending in {' or '.join(SUFFIXES[form])}")


def files(target: Path) -> list[Path]:
    """Return all files that an export to ``target`` consists of, ``target`` last."""
    others = {".xml": [".bin"], ".json": [".pdiparams", ".card.json"], ".pdmodel": [".pdiparams", ".card.json"]}
    return [target.with_suffix(suffix) for suffix in others.get(target.suffix, [])] + [target]


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Give a path in a temporary folder; the files of that export take their names when the block ends well.

    Raises:
        UserError: they cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as folder:
            made = Path(folder) / target.name
            yield made
            for path, final in zip(files(made), files(target)):
                rename(path, final)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error


def verify(graph: Exported, model: ConvMixer, sizes: list[int]) -> Verified:
    """Compare what every engine makes of ``graph`` with ``model``, on photographs: all together, and the first alone.

    Returns:
        The one that is furthest off, with the fewest same classes of all.
    """
    found = []
    for kind in runners(graph.path):
        engine = graph.engine(kind)
        for size in sizes:
            images = photographs(dataclasses.replace(graph.input, size=size))
            wanted = Dygraph(model)(images)
            together, single = engine(images), engine(images[:1])
            answers = np.concatenate([together, single])
            wanted = np.concatenate([wanted, wanted[:1]])
            same = float((answers.argmax(axis=1) == wanted.argmax(axis=1))[: len(images)].mean())
            scale = float(np.abs(wanted).max())
            if graph.pixels:
                wanted = np.log(np.maximum(softmax(wanted), RAREST))
                answers = np.maximum(answers, math.log(RAREST))
            found.append(Verified(kind, float(np.abs(answers - wanted).max()) / scale, same, len(images)))
    worst = max(found, key=lambda each: (each.difference != each.difference, each.difference))  # no number comes first
    return dataclasses.replace(worst, same=min(each.same for each in found))


def photographs(spec: InputSpec, count: int = 8) -> np.ndarray:
    """Return the input made of parts of scikit-learn's two photographs, float32 (count, 3, size, size)."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from .transforms import eval_transform

    transform = eval_transform(spec)
    whole = [Image.fromarray(image) for image in load_sample_images().images]
    parts = []
    for i in range(count):
        picture = whole[i % 2]
        side = min(picture.size) * (i + 2) // (count + 1)
        left, top = ((room - side) * (i + 1) // count for room in picture.size)
        parts.append(transform(picture.crop((left, top, left + side, top + side))))
    return np.stack(parts)


def _versions(form: Form, calibrated: bool) -> dict[str, Any]:
    from importlib import metadata

    names = {"onnx": ["onnx"], "openvino": ["onnx", "openvino"], "paddle": []}[form.format]
    import paddle

    versions = {"ppconvmixer": __version__, "paddle": paddle.__version__}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError as error:
            raise UserError(f"the format {form.format} needs the package {name}; pip install {name}") from error
    if calibrated:
        with contextlib.suppress(metadata.PackageNotFoundError):  # which ``quantize`` says
            versions["nncf"] = metadata.version("nncf")
    return {"form": {**dataclasses.asdict(form), "calibrated": calibrated}, "versions": versions}


# --- the formats ------------------------------------------------------------------------------------


def _onnx(model: ConvMixer, target: Path, spec: InputSpec, form: Form, card: str, pictures: Any) -> None:
    size, pixels = None if form.any_size else spec.size, spec if form.pixels else None
    if pictures is None:
        target.write_bytes(to_onnx(model, size, pixels, card, form.bits))
        return
    import onnx

    def open_graph(graph: Any) -> Callable[[np.ndarray], np.ndarray]:
        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
            onnx.save(graph, file.name)
            return OnnxRuntime(Path(file.name), model.num_classes)

    graph = onnx.load_from_string(to_onnx(model, size, pixels, card))
    depthwise = [node.name for node in graph.graph.node if any(a.name == "group" and a.i > 1 for a in node.attribute)]
    onnx.save(quantize(graph, _inputs(pictures, pixels), open_graph, depthwise), target)


def _openvino(model: ConvMixer, target: Path, spec: InputSpec, form: Form, card: str, pictures: Any) -> None:
    send_no_statistics()
    try:
        import openvino
    except ImportError as error:
        raise UserError("OpenVINO's format needs the package openvino; pip install openvino onnx") from error

    size, pixels = None if form.any_size else spec.size, spec if form.pixels else None
    bits = 8 if form.bits == 8 and pictures is None else 32
    graph = openvino.Core().read_model(to_onnx(model, size, pixels, bits=bits))
    if pictures is not None:

        def open_graph(graph: Any) -> Callable[[np.ndarray], np.ndarray]:
            compiled = graph if isinstance(graph, openvino.CompiledModel) else openvino.compile_model(graph, "CPU")
            return lambda images: compiled(images)[0]

        grouped = [op.get_friendly_name() for op in graph.get_ops() if op.get_type_name() == "GroupConvolution"]
        graph = quantize(graph, _inputs(pictures, pixels), open_graph, grouped)
    graph.set_rt_info(card, METADATA)
    openvino.save_model(graph, target, compress_to_fp16=form.bits == 16)


def _inputs(pictures: np.ndarray, pixels: Optional[InputSpec]) -> np.ndarray:
    return to_pixels(pictures, pixels) if pixels else pictures


def _paddle(model: ConvMixer, target: Path, spec: InputSpec, form: Form, card: str, pictures: Any) -> None:
    import paddle

    if form.bits != 32:
        raise UserError("Paddle's static graph keeps its weights in 32 bits; take the format onnx or openvino")
    side = None if form.any_size else spec.size
    layer, shape, dtype = model, [None, model.in_chans, side, side], "float32"
    if form.pixels:
        layer, shape, dtype = _of_pixels(model, spec), [None, side, side, model.in_chans], "uint8"
    own = program_suffix()
    if target.suffix != own:  # Paddle 3.3 has a way to the old form, but its GELU does not go there
        raise UserError(f"Paddle {paddle.__version__} writes {own} and no {target.suffix}; name {target.stem}{own}")
    to_static(layer, target.with_suffix(""), shape, dtype)
    exported.card_beside(target).write_text(card, "utf-8")


def _of_pixels(model: ConvMixer, spec: InputSpec) -> Any:
    import paddle

    class OfPixels(paddle.nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.network = model
            for name in ("mean", "std"):
                value = 255 * np.array(getattr(spec, name), np.float64).reshape(3, 1, 1)
                self.register_buffer(name, paddle.to_tensor(value.astype(np.float32)))

        def forward(self, images: Any) -> Any:
            x = (images.astype("float32").transpose([0, 3, 1, 2]) - self.mean) / self.std
            return paddle.nn.functional.softmax(self.network(x), axis=1)

    return OfPixels()


_WRITERS: dict[str, Callable[[Any, Path, InputSpec, Form, str, Any], None]] = {
    "onnx": _onnx,
    "openvino": _openvino,
    "paddle": _paddle,
}
