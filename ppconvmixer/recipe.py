"""A recipe: everything a training run depends on, as a dataclass and as YAML."""

from __future__ import annotations

import collections
import dataclasses
import math
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Optional, Union

import yaml

from .augment import Augment
from .errors import UserError, said, shown, unknown
from .files import PathLike, read_text
from .mixing import PAIR
from .zoo import InputSpec, canonical, input_spec

DATASETS = ("digits", "cifar10", "folder", "list", "csv")
OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("constant", "cosine", "onecycle")
AMP_LEVELS = ("O0", "O1", "O2")
MAX_BYTES = 1 << 16  # PyYAML takes 250 times a text's size in memory; the shipped recipes have under 1,000 bytes


@dataclasses.dataclass(frozen=True)
class Model:
    """The network and what it starts from.

    Args:
        name: a model of the zoo.
        weights: what to start from: a checkpoint in any layout; ``pretrained`` or the tag of a published
            one (see ``zoo.find_weights``); null for random weights. Its head is used where it has the
            data's number of classes, and drawn anew otherwise.
        drop_rate: dropout before the head, in [0, 1).
    """

    name: str
    weights: Optional[str] = None
    drop_rate: float = 0.0


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the pictures are.

    Args:
        dataset: ``digits`` (scikit-learn's, bundled), ``cifar10`` (the authors' archive or folder),
            ``folder`` (one folder a class), ``list`` (lines ``path label``) or ``csv`` (columns path, label).
        path: the folder or archive of the pictures; none for digits.
        train: for folder, the folder below ``path`` that holds the class folders of the training part;
            for list and csv, the file that names its pictures.
        val: the same for the validation part; null to hold out ``val_fraction`` of the training part.
        val_fraction: share of every class to hold out, drawn by the seed.
        workers: processes that read pictures; 0 reads in the training process.
    """

    dataset: str
    path: Optional[str] = None
    train: Optional[str] = None
    val: Optional[str] = None
    val_fraction: Optional[float] = None
    workers: int = 2


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How weights change.

    Args:
        name: adamw, adam or sgd (momentum 0.9).
        lr: the largest learning rate of the schedule.
        weight_decay: decoupled for adamw, L2 for the others; biases and norms are left alone.
        epsilon: of adamw and adam.
        clip_norm: the global gradient norm is cut to this; null for no cut.
    """

    name: str
    lr: float
    weight_decay: float = 0.0
    epsilon: float = 1e-8
    clip_norm: Optional[float] = None


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the learning rate moves, step by step.

    Args:
        name: constant, cosine (to 0) or onecycle (0 to lr at 2/5, lr/20 at 4/5, 0 at the end).
        warmup_epochs: linear rise at the start; onecycle brings its own.
    """

    name: str = "cosine"
    warmup_epochs: float = 0.0


@dataclasses.dataclass(frozen=True)
class Train:
    """The run.

    Args:
        epochs: passes over the training part.
        batch_size: pictures a step, in each process.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        amp: mixed precision of Paddle on a GPU: O0 (off), O1 or O2.
        seed: of weights, held-out pictures, shuffling and augmentation.
        monitor: top1 or loss of the validation part; says which epoch is the best.
        patience: stop after so many epochs without a better one; 0 never stops early.
        save_minutes: within an epoch, save the state for ``--resume`` this often; 0 saves after every step.
            After every epoch, and at Ctrl-C or SIGTERM, it is saved anyway.
    """

    epochs: int
    batch_size: int
    label_smoothing: float = 0.0
    amp: str = "O0"
    seed: int = 0
    monitor: str = "top1"
    patience: int = 0
    save_minutes: float = 10.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training run. ``input`` overrides fields of the model's input specification, such as ``size``."""

    model: Model
    data: Data
    optimizer: Optimizer
    train: Train
    schedule: Schedule = Schedule()
    augment: Augment = Augment()
    input: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        canonical(self.model.name)
        self.input_spec()
        for key, value, known in (
            ("data.dataset", self.data.dataset, DATASETS),
            ("optimizer.name", self.optimizer.name, OPTIMIZERS),
            ("schedule.name", self.schedule.name, SCHEDULES),
            ("train.amp", self.train.amp, AMP_LEVELS),
            ("train.monitor", self.train.monitor, ("top1", "loss")),
        ):
            if value not in known:
                raise unknown(key, value, known)
        for key, fine, want in (
            ("train.epochs", self.train.epochs >= 1, "at least 1"),
            ("train.batch_size", self.train.batch_size >= 1, "at least 1"),
            ("train.label_smoothing", 0 <= self.train.label_smoothing < 1, "a number in [0, 1)"),
            ("train.seed", self.train.seed >= 0, "at least 0"),
            ("train.patience", self.train.patience >= 0, "at least 0"),
            ("train.save_minutes", self.train.save_minutes >= 0, "at least 0"),
            ("optimizer.lr", 0 < self.optimizer.lr < math.inf, "a number above 0"),
            ("optimizer.weight_decay", 0 <= self.optimizer.weight_decay < math.inf, "at least 0"),
            ("optimizer.epsilon", 0 < self.optimizer.epsilon < math.inf, "a number above 0"),
            (
                "optimizer.clip_norm",
                self.optimizer.clip_norm is None or self.optimizer.clip_norm > 0,
                "a number above 0, or null",
            ),
            (
                "schedule.warmup_epochs",
                0 <= self.schedule.warmup_epochs <= self.train.epochs,
                "between 0 and train.epochs",
            ),
            ("model.drop_rate", 0 <= self.model.drop_rate < 1, "a number in [0, 1)"),
            ("data.workers", self.data.workers >= 0, "at least 0"),
            (
                "data.val_fraction",
                self.data.val_fraction is None or 0 < self.data.val_fraction < 1,
                "a number between 0 and 1",
            ),
        ):
            if not fine:
                group, name = key.split(".")
                raise UserError(f"{key} is {getattr(getattr(self, group), name)}; want {want}")
        if self.schedule.name == "onecycle" and self.schedule.warmup_epochs:
            raise UserError("schedule.warmup_epochs has no effect on onecycle, which brings its own; leave one out")
        if self.optimizer.name == "sgd" and self.optimizer.epsilon != Optimizer.epsilon:
            raise UserError("optimizer.epsilon has no effect on sgd; leave it out")
        if self.augment.mixes and self.train.batch_size % PAIR:
            raise UserError(
                f"train.batch_size is {self.train.batch_size}; pictures are mixed in pairs and want an even number"
            )
        self._check_data()

    def _check_data(self) -> None:
        """Every data set has the keys it needs and none that would do nothing."""
        data = self.data
        needs = {
            "digits": (),
            "cifar10": ("path",),
            "folder": ("path",),
            "list": ("path", "train"),
            "csv": ("path", "train"),
        }
        for key in needs[data.dataset]:
            if getattr(data, key) is None:
                raise UserError(f"data.{key} is missing; the data set {data.dataset} needs it (-o data.{key}=...)")
        idle = {"digits": ("path", "train", "val"), "cifar10": ("train", "val", "val_fraction")}
        for key in idle.get(data.dataset, ()):
            if getattr(data, key) is not None:
                raise UserError(f"data.{key} has no effect on the data set {data.dataset}; leave it out")
        if data.dataset != "cifar10" and (data.val is None) == (data.val_fraction is None):
            raise UserError("give either data.val or data.val_fraction, so that it is clear what the run is judged by")

    def input_spec(self) -> InputSpec:
        """Return the input of the model with the recipe's changes."""
        return input_spec(self.model.name, **{k: tuple(v) if isinstance(v, list) else v for k, v in self.input.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return the complete recipe as JSON and YAML can write it."""
        return _plain(self)

    def to_yaml(self) -> str:
        """Return the complete recipe as YAML, every key written out."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, default_flow_style=None)


def load(path: PathLike, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply overrides of the form ``key.sub=value`` (the value as YAML would read it).

    ``path`` may also name a recipe that comes with the package, such as ``digits`` or ``configs/digits.yaml``.

    Raises:
        UserError: not readable, an unknown key (with the nearest name), a missing one, or a value that makes no sense.
    """
    file = _find(path)
    try:
        tree = _yaml(read_text(file, MAX_BYTES))
    except UserError as error:
        raise UserError(f"cannot read the recipe {file}: {error}") from error
    try:
        tree = _mapping(tree, "the recipe")
        for override in overrides:
            _override(tree, override)
        return _parse(Recipe, tree, "")
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def from_dict(tree: Mapping[str, Any]) -> Recipe:
    """Return the recipe that ``Recipe.to_dict`` took apart.

    Raises:
        UserError: as ``load``.
    """
    return _parse(Recipe, tree, "")


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Return a line ``key: old -> new`` for every setting that differs."""
    a, b = (_flat(recipe.to_dict()) for recipe in (old, new))
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


def shipped() -> Path:
    """Return the folder of the recipes that come with the package: of the clone, or of the installed wheel."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _find(path: PathLike) -> Path:
    path = Path(path)
    if path.exists():
        return path
    own = shipped() / f"{path.stem}.yaml"
    if path.parent in (Path("."), Path("configs")) and own.is_file():
        return own
    names = ", ".join(sorted(p.stem for p in shipped().glob("*.yaml")))
    raise UserError(f"there is no recipe {path}; give a YAML file, or one that comes with the package: {names}")


class _Loader(yaml.SafeLoader):
    """YAML's plain values, without what lets a short text stand for a long one or for two at once."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise UserError(f"it uses the alias {shown(self.peek_event().anchor)}; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if isinstance(node, yaml.MappingNode) and len(mapping) != len(node.value):
            (twice, _), *_ = collections.Counter(key.value for key, _ in node.value).most_common(1)
            raise UserError(f"the key {shown(twice)} is given twice")
        return mapping


def _yaml(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a kind of SafeLoader)
    except UserError:
        raise
    except Exception as error:  # not all of PyYAML's errors are YAMLErrors: dates and numbers raise what int() does
        raise UserError(said(error)) from error


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"the override {override!r} is not of the form key.sub=value")
    try:
        value = _yaml(text)
    except UserError as error:
        raise UserError(f"the value of {key} is no YAML: {shown(text)}") from error
    *groups, name = key.split(".")
    for group in groups:
        if not isinstance(tree.get(group), dict):
            if tree.get(group) is not None:
                raise UserError(f"{key} cannot be set: {group} is {shown(tree[group])}")
            tree[group] = {}
        tree = tree[group]
    tree[name] = value


def _parse(kind: type, tree: Mapping[str, Any], where: str) -> Any:
    """Make the dataclass ``kind`` from a mapping, strictly."""
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in tree:
        if key not in fields:
            raise unknown("key", f"{where}{key}", [f"{where}{name}" for name in fields])
    values = {}
    for name, field in fields.items():
        if name in tree:
            values[name] = _value(hints[name], tree[name], f"{where}{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"the key {where}{name} is missing")
    return kind(**values)


def _value(hint: Any, value: Any, key: str) -> Any:
    """Check ``value`` against the type the recipe declares, and convert what YAML leaves open."""
    if typing.get_origin(hint) is Union:
        if value is None:
            return None
        (hint,) = (kind for kind in typing.get_args(hint) if kind is not type(None))
    if dataclasses.is_dataclass(hint):
        return _parse(hint, _mapping(value, key), f"{key}.")
    if typing.get_origin(hint) is dict:
        return _mapping(value, key)
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        if not isinstance(value, (list, tuple)) or len(value) != len(kinds):
            raise UserError(f"{key} is {shown(value)}; want a list of {len(kinds)} numbers")
        return tuple(_value(kind, v, key) for kind, v in zip(kinds, value))
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML 1.1 takes 1e-3 for text
        except (ValueError, OverflowError):
            pass
    if type(value) is not hint or value != value or (hint is int and value.bit_length() > 63):
        raise UserError(f"{key} is {shown(value)}; want {_WORDS[hint]}")
    return value


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _mapping(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{key} is {shown(value)}; want keys and values")
    return value


def _plain(value: Any) -> Any:
    """Turn a dataclass into what YAML writes without tags."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _flat(tree: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {key: tree}
    return {k: v for name, sub in tree.items() for k, v in _flat(sub, f"{key}.{name}" if key else name).items()}
