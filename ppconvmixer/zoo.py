"""The ConvMixers by name: the table of variants, and models made and filled from it."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import json
import logging
import math
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

import numpy as np

from . import checkpoint, download, layouts
from .errors import UserError, brief, said, shown, unknown
from .files import PathLike, shipped

if TYPE_CHECKING:  # Paddle takes a second to import; `ppconvmixer --help` and `models` do without
    from .model import ConvMixer

logger = logging.getLogger("ppconvmixer")

MAX_COLOUR = 1e6  # where colours lie in [0, 1]; far beyond, float32 has no numbers for the input
MAX_SIDE = 4096  # pixels of an input; a card from a stranger must not ask for a picture that fills the memory
ABSURD = 1e6  # trained weights stay below some hundreds; beyond this, squares leave float16 and float32 loses units
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """How a picture becomes the input of a model.

    The short side is resized to ``int(size / crop_pct)`` pixels, the middle ``size x size`` cut out,
    and every channel of the result, scaled to [0, 1], has ``mean`` taken off and is divided by ``std``.
    """

    size: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        try:
            for name in ("mean", "std"):
                object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
            sizes = type(self.size) is int and self.size > 0 and 0 < self.crop_pct <= 1
            sizes = sizes and self.size / self.crop_pct <= MAX_SIDE
            colours = len(self.mean) == len(self.std) == 3 and min(self.std) >= 1 / MAX_COLOUR
            colours = colours and all(abs(value) <= MAX_COLOUR for value in self.mean + self.std)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"the input makes no sense: {said(error)}") from error
        if self.interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", str(self.interpolation), INTERPOLATIONS)
        if not sizes:
            raise UserError(
                f"the input has size {shown(self.size)}, crop_pct {shown(self.crop_pct)}; want 1 or more, and (0, 1], "
                f"and at most {MAX_SIDE} pixels of size / crop_pct"
            )
        if not colours:
            raise UserError(
                f"mean and std of the input want three numbers each, none beyond {MAX_COLOUR:g}, "
                f"std from {1 / MAX_COLOUR:g} on"
            )


IMAGENET = InputSpec(224, 0.96, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = InputSpec(32, 1.0, "bicubic", (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))


@dataclasses.dataclass(frozen=True)
class Variant:
    """The shape of a network and the input it is made for."""

    dim: int
    depth: int
    kernel_size: int = 9
    patch_size: int = 7
    act: str = "gelu"
    num_classes: int = 1000
    input: InputSpec = IMAGENET

    def parameters(self) -> int:
        """Count the trainable parameters for three channels; batch-norm statistics are none."""
        return self.costs()["parameters"]

    def macs(self) -> int:
        """Count the multiply-accumulates of all convolutions and the head, for one picture of ``input.size``."""
        return self.costs()["macs"]

    def costs(self) -> dict[str, int]:
        """Return the sums of ``parts``: ``parameters``, ``macs`` and ``activations``."""
        parts = self.parts().values()
        return {key: sum(part[key] for part in parts) for key in ("parameters", "macs", "activations")}

    def parts(self) -> dict[str, dict[str, int]]:
        """Return what the parts cost for one picture by closed formulas, each with its activation and norm.

        For width d, depth n, kernel k, patch p, c classes and P = floor(size / p)^2 patches::

                         parameters            MACs       activations
            stem         d (3 p^2 + 3)         P d 3 p^2  3 P d
            depthwise    n d (k^2 + 3)         n P d k^2  3 n P d
            pointwise    n d (d + 3)           n P d^2    3 n P d
            head         c (d + 1)             c d        c

        The 3 beside the weights are a bias and a norm's scale and shift; the 3 maps are those of convolution,
        activation and norm.
        """
        patches = (self.input.size // self.patch_size) ** 2

        def convolutions(layers: int, products: int) -> dict[str, int]:
            return {
                "parameters": layers * self.dim * (products + 3),
                "macs": layers * patches * self.dim * products,
                "activations": layers * 3 * patches * self.dim,
            }

        return {
            "stem": convolutions(1, 3 * self.patch_size**2),
            "depthwise": convolutions(self.depth, self.kernel_size**2),
            "pointwise": convolutions(self.depth, self.dim),
            "head": {
                "parameters": self.num_classes * (self.dim + 1),
                "macs": self.num_classes * self.dim,
                "activations": self.num_classes,
            },
        }


_cifar = functools.partial(Variant, num_classes=10, input=CIFAR10)
VARIANTS: Mapping[str, Variant] = {
    # The three with published weights.
    "convmixer_1536_20": Variant(1536, 20),
    "convmixer_1024_20_ks9_p14": Variant(1024, 20, patch_size=14),
    "convmixer_768_32": Variant(768, 32, kernel_size=7, act="relu"),
    # Smaller ones for 224 x 224; the paper's 512-wide networks have the even kernel 8.
    "convmixer_512_16": Variant(512, 16, kernel_size=8),
    "convmixer_512_12": Variant(512, 12, kernel_size=8),
    "convmixer_256_8": Variant(256, 8),
    # For 32 x 32.
    "convmixer_256_8_ks9_p1": _cifar(256, 8, kernel_size=9, patch_size=1),
    "convmixer_256_8_ks5_p2": _cifar(256, 8, kernel_size=5, patch_size=2),
    "convmixer_128_8_ks5_p2": _cifar(128, 8, kernel_size=5, patch_size=2),
    "convmixer_tiny": _cifar(64, 4, kernel_size=5, patch_size=4),
}
ALIASES: Mapping[str, str] = {  # the names of the official files, and a short one
    "convmixer_1024_20": "convmixer_1024_20_ks9_p14",
    "convmixer_768_32_ks7_p7_relu": "convmixer_768_32",
    "convmixer_1536_20_ks9_p7": "convmixer_1536_20",
}


@functools.cache
def manifest() -> dict[str, Any]:
    """Return what weights there are, by model name: accuracies with data and source, the input, and where they are.

    That is ``files`` to download, or ``shipped``, the name of one that comes with the package.
    """
    return json.loads(resources.files(__package__).joinpath("manifest.json").read_text("utf-8"))


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Return the names of the models that match ``pattern`` (shell wildcards) by name or alias, largest model first.

    Args:
        pretrained: keep the models whose weights are published, or come with the package.
    """
    found = {ALIASES.get(name, name) for name in fnmatch.filter([*VARIANTS, *ALIASES], pattern)}
    return [name for name in VARIANTS if name in found and (not pretrained or name in manifest())]


def published(name: str) -> list[download.PublishedFile]:
    """Return the published files of a model, in the order to try them; none for most models."""
    return [download.PublishedFile(**file) for file in manifest().get(canonical(name), {}).get("files", ())]


def own(name: str) -> Optional[Path]:
    """Return the checkpoint of a model that comes with the package; None for most models."""
    file = manifest().get(canonical(name), {}).get("shipped")
    return shipped("weights") / file if file else None


def present(name: str) -> list[str]:
    """Return the tags of the weights of a model that need no download, ``shipped`` or a layout; nothing is verified."""
    cached = [file.layout for file in published(name) if (_cache_folder(name) / file.name).is_file()]
    return ["shipped", *cached] if own(name) else cached


def is_tag(weights: PathLike) -> bool:
    """Tell whether ``weights`` is no path, but stands for published ones, see ``find_weights``."""
    return isinstance(weights, str) and weights in ("pretrained", *layouts.LAYOUTS)


def find_weights(name: Optional[str], weights: PathLike) -> PathLike:
    """Return the path of a checkpoint: ``weights`` itself, or that of a published file, downloaded if need be.

    Args:
        name: a model of the zoo; a path does without.
        weights: a path; or the string ``pretrained``, which stands for what comes with the package, else for the first
            published file that can be had; or the string of a layout, which stands for the one in that layout.

    Raises:
        UserError: nothing of the kind is published, or it cannot be had.
    """
    if not is_tag(weights):
        return weights
    if name is None:
        raise UserError(f"--model is missing: the model whose published weights {weights!r} is to be (or ./{weights})")
    along = own(name)
    if along:
        if weights != "pretrained":
            raise UserError(f"there are no {weights} weights of {name}; use pretrained, which comes with the package")
        return along
    files = published(name)
    if not files:
        raise UserError(f"no weights of {name} are published; published: {', '.join(list_models(pretrained=True))}")
    chosen = [file for file in files if weights in ("pretrained", file.layout)]
    if not chosen:
        raise UserError(f"no {weights} weights of {name} are published; known: {', '.join(f.layout for f in files)}")
    return download.fetch(chosen, _cache_folder(name), functools.partial(_check, canonical(name)))


def _cache_folder(name: str) -> Path:
    return download.home() / canonical(name)


def _check(name: str, path: Path) -> None:
    """Refuse a file that is not the whole of this network."""
    state = translate(path).state
    count = sum(value.size for entry, value in state.items() if not entry.endswith(("._mean", "._variance")))
    if count != variant(name).parameters():
        raise UserError(f"it holds {layouts.describe(state)}, not {name}")


def canonical(name: str) -> str:
    """Return the one name of the network that ``name`` stands for: that of the table, else ``name`` itself.

    Raises:
        UserError: unknown; the message has the nearest names.
    """
    name = ALIASES.get(name, name)
    if name in VARIANTS:
        return name
    shape = variant(name)
    return next((known for known, other in VARIANTS.items() if other == shape), name)


def variant(name: str) -> Variant:
    """Return the network of a name: of the table, an alias, or spelled out as ``convmixer_192_8_ks5_p2``.

    The numbers are width, depth, kernel size and patch size; ``_relu`` may follow. With patches of up to 4 pixels it
    is for CIFAR-10's input and 10 classes, with larger ones for ImageNet's and 1000, as those of the table are.

    Raises:
        UserError: unknown; the message has the nearest names.
    """
    name = ALIASES.get(name, name)
    if name in VARIANTS:
        return VARIANTS[name]
    match = _SPELLED.fullmatch(name)
    if not match:
        raise unknown("model", name, [*VARIANTS, *ALIASES])
    dim, depth, kernel_size, patch_size = map(int, match.groups()[:4])
    make = _cifar if patch_size <= 4 else Variant
    return make(dim, depth, kernel_size, patch_size, match[5] or "gelu")


def spelled(shape: Variant) -> str:
    """Return the name that spells out a shape, or that of the table where it is there."""
    act = "" if shape.act == "gelu" else f"_{shape.act}"
    return canonical(f"convmixer_{shape.dim}_{shape.depth}_ks{shape.kernel_size}_p{shape.patch_size}{act}")


_SPELLED = re.compile(r"convmixer_([1-9]\d{0,3})_([1-9]\d{0,2})_ks([1-9]\d?)_p([1-9]\d?)(?:_(relu))?", re.ASCII)


def input_spec(name: str, /, **changes: Any) -> InputSpec:
    """Return the input of a model, with ``changes`` (a checkpoint's card, a recipe) on top.

    Raises:
        UserError: unknown model, or a change that makes no sense.
    """
    shape = variant(name)
    spec = shape.input
    known = [field.name for field in dataclasses.fields(spec)]
    for key in changes:
        if key not in known:
            raise unknown("key of the input", key, known)
    spec = dataclasses.replace(spec, **changes)
    if spec.size < shape.patch_size:
        raise UserError(
            f"input.size is {spec.size}, which is less than a patch of {name}, {shape.patch_size} pixels; take more"
        )
    return spec


def create_model(
    name: str,
    pretrained: Union[bool, PathLike] = False,
    num_classes: Optional[int] = None,
    in_chans: int = 3,
    **kwargs: Any,
) -> ConvMixer:
    """Make a model of the zoo.

    Args:
        name: one of ``list_models()`` or its alias, or a name that spells out its shape, see ``variant``.
        pretrained: a checkpoint in any layout to fill it from; True or a tag for one of the zoo, see ``find_weights``.
        num_classes: outputs of the head, by default the variant's (1000, or 10 for the CIFAR-10 ones).
            Where it is given, a checkpoint's head of another size gives way to a freshly initialised one, and a
            warning says so.
        in_chans: channels of the picture.
        **kwargs: ``drop_rate`` and whatever else ``ConvMixer`` takes.

    Raises:
        UserError: unknown name, a checkpoint that cannot be had or read, or one that does not fit.
    """
    from .model import ConvMixer

    name = canonical(name)
    wanted = variant(name)
    classes = wanted.num_classes if num_classes is None else num_classes
    shape = {key: getattr(wanted, key) for key in ("dim", "depth", "kernel_size", "patch_size", "act")}
    model = ConvMixer(**{**shape, "in_chans": in_chans, "num_classes": classes, **kwargs})
    if pretrained:
        path = find_weights(name, "pretrained" if pretrained is True else pretrained)
        load_weights(model, path, reset_head=num_classes is not None)
    return model


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of every entry of a checkpoint and of the model. Lists hold our names unless said."""

    layout: str
    loaded: list[str]
    renamed: dict[str, str]
    """Our name by the file's, where they differ."""
    reinitialized: list[str]
    """The head, where it was of another size and stays as it was initialised."""
    missing: list[str]
    """In the model, not in the file."""
    left_out: list[str]
    """In the file (its names), not loaded."""

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} entries loaded from the {self.layout} layout"]
        for what in ("renamed", "reinitialized", "missing", "left_out"):
            entries = list(getattr(self, what))
            if entries:
                parts.append(
                    f"{len(entries)} {what.replace('_', ' ')}" + ("" if what == "renamed" else f" ({_some(entries)})")
                )
        return ", ".join(parts)


def load_weights(model: ConvMixer, path: PathLike, strict: bool = True, reset_head: bool = False) -> LoadReport:
    """Fill ``model`` from a checkpoint in any layout; see ``checkpoint.read`` for the kinds of file.

    Args:
        strict: every entry must be there, fit, and be used. Otherwise what fits is loaded.
        reset_head: let a head of another number of classes stay as initialised, and warn.

    Returns:
        What was loaded, renamed, re-initialised, missing and left out.

    Raises:
        UserError: unreadable, no ConvMixer, or, with ``strict``, not this one. The model is then untouched.
    """
    return fill(model, translate(path), path, strict, reset_head)


def translate(path: PathLike) -> layouts.Translation:
    """Read a checkpoint in any layout under our names.

    Raises:
        UserError: unreadable, or no ConvMixer.
    """
    try:
        return layouts.to_ours(checkpoint.read(path))
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from error


def fill(
    model: ConvMixer, found: layouts.Translation, path: PathLike, strict: bool = True, reset_head: bool = False
) -> LoadReport:
    """Do the work of ``load_weights`` for a checkpoint that is already read; ``path`` is for messages."""
    wanted = model.state_dict()
    unfit = {n for n, v in found.state.items() if n in wanted and tuple(wanted[n].shape) != v.shape}
    head = {n for n in found.state if n.startswith("head.") and (n in unfit or n not in wanted)}
    if not any(n.startswith("head.") for n in found.state):
        head = {n for n in wanted if n.startswith("head.")}
    reset = sorted(head) if reset_head and unfit <= head else []
    loaded = [n for n in found.state if n in wanted and n not in unfit]
    missing = [n for n in wanted if n not in loaded and n not in reset]
    theirs = {ours: name for name, ours in found.names.items()}
    left_out = [theirs[n] for n in found.state if n not in loaded and n not in reset] + list(found.left_out)
    if strict and (missing or left_out):
        raise UserError(_misfit(model, found, path, missing, left_out))
    if not loaded:
        raise UserError(f"{path} fits nothing of the model: it holds {layouts.describe(found.state)}")
    if reset:
        held = layouts.classes(found.state)
        held = f"the head of {path} is for {held} classes" if held else f"{path} has no head"
        logger.warning("%s; this model's head for %s is freshly initialised", held, model.num_classes)
    _warn_of_absurd({theirs[n]: found.state[n] for n in loaded}, path)
    with np.errstate(over="ignore"):  # the warning has named what float32 cannot hold
        arrays = {n: np.ascontiguousarray(found.state[n], dtype=np.float32) for n in loaded}
    model.set_state_dict(arrays | _rest(wanted, loaded))
    renamed = {theirs[n]: n for n in loaded if theirs[n] != n}
    return LoadReport(found.layout, loaded, renamed, reset, missing, left_out)


def _warn_of_absurd(state: Mapping[str, np.ndarray], path: PathLike) -> None:
    """Say in one warning which weights no training leaves behind, by their names in the file.

    A variance of 0 is none of them: that of a channel that is always 0 decays to it.
    """
    ranges = {name: (float(value.min()), float(value.max())) for name, value in state.items()}
    finite = {name: bounds for name, bounds in ranges.items() if all(map(math.isfinite, bounds))}
    wrong = {
        "not finite": [name for name in ranges if name not in finite],
        f"beyond {ABSURD:,.0f}": [name for name, bounds in finite.items() if max(map(abs, bounds)) > ABSURD],
        "negative variances": [n for n, (low, _) in finite.items() if low < 0 and n.endswith(_VARIANCES)],
    }
    found = "; ".join(f"{what}: {_some(names)}" for what, names in wrong.items() if names)
    if found:
        logger.warning("%s holds weights that no training leaves behind, and its results will show it; %s", path, found)


def _rest(wanted: Mapping[str, Any], loaded: list[str]) -> dict[str, Any]:
    """What stays as it is; Paddle warns of every entry it is not given."""
    return {name: value for name, value in wanted.items() if name not in loaded}


def _misfit(
    model: ConvMixer, found: layouts.Translation, path: PathLike, missing: list[str], left_out: list[str]
) -> str:
    ours = layouts.describe({name: np.broadcast_to(0, value.shape) for name, value in model.state_dict().items()})
    theirs = layouts.describe(found.state)
    message = f"{path} holds {theirs}; the model is {ours}; missing: {_some(missing)}; not used: {_some(left_out)}"
    if all(name.startswith("head.") for name in missing):
        message += f"; make the model with num_classes={layouts.classes(found.state) or 0}"
    return message


_VARIANCES = ("._variance", ".running_var")


def _some(names: list[str]) -> str:
    return ", ".join(map(brief, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "nothing"


def _constructor(name: str) -> Callable[..., ConvMixer]:
    shape = variant(name)

    def constructor(pretrained: Union[bool, PathLike] = False, **kwargs: Any) -> ConvMixer:
        return create_model(name, pretrained, **kwargs)

    constructor.__name__ = constructor.__qualname__ = name
    constructor.__doc__ = (
        f"ConvMixer-{shape.dim}/{shape.depth}, kernel {shape.kernel_size}, patch {shape.patch_size}, "
        f"{shape.act}, for {shape.input.size} x {shape.input.size}; arguments as ``create_model``."
    )
    return constructor


CONSTRUCTORS = {name: _constructor(name) for name in [*VARIANTS, *ALIASES]}
"""A lower-case constructor of every name; the package offers them as its attributes."""
