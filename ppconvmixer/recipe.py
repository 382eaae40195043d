"""A recipe: everything a training run depends on, as a dataclass and as YAML."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Optional

from . import strict_yaml
from .augment import Augment
from .errors import UserError, shown, unknown
from .files import PathLike, read_text, shipped
from .mixing import PAIR
from .zoo import MAX_SIDE, InputSpec, canonical, input_spec, is_tag, variant

DATASETS = ("digits", "cifar10", "folder", "list", "csv")
OPTIMIZERS = ("adamw", "adam", "sgd", "lamb")
SCHEDULES = ("constant", "cosine", "onecycle", "step")
PADDLE_MODELS = "paddle.vision.models."
AMP_LEVELS = ("O0", "O1", "O2")
MAX_EPOCHS = 100_000  # there are lists with an entry for each
MAX_BYTES = 1 << 16  # PyYAML takes 250 times a text's size in memory; the shipped recipes have under 1,000 bytes


@dataclasses.dataclass(frozen=True)
class Model:
    """The network and what it starts from.

    Args:
        name: a model of the zoo, or a name that spells out a shape, such as convmixer_192_8_ks5_p2 (``zoo.variant``).
        weights: what to start from: a checkpoint in any layout; ``pretrained`` or the tag of a published
            one (see ``zoo.find_weights``); null for random weights. Its head is used where it has the
            data's number of classes, and drawn anew otherwise.
        drop_rate: dropout before the head, in [0, 1).
        drop_path: stochastic depth: chance that a picture does without the depthwise half of the last block, in
            [0, 1), rising linearly from 0 in the first one. Slower on a CPU, whose operator does not know it.
    """

    name: str
    weights: Optional[str] = None
    drop_rate: float = 0.0
    drop_path: float = 0.0


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
        name: adamw, adam, sgd (momentum 0.9) or lamb.
        lr: the largest learning rate of the schedule.
        weight_decay: decoupled for adamw and lamb, L2 for the others; biases and norms are left alone.
        epsilon: of all but sgd.
        clip_norm: the global gradient norm is cut to this; null for no cut.
    """

    name: str
    lr: float
    weight_decay: float = 0.0
    epsilon: float = 1e-8
    clip_norm: Optional[float] = None


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the learning rate moves, step by step; see ``optim.lr_factor``.

    Args:
        name: constant, cosine (to 0), onecycle (0 to lr at 2/5, lr/20 at 4/5, 0 at the end) or step (falls by gamma).
        warmup_epochs: linear rise at the start; onecycle brings its own.
        milestones: of step, the whole epochs after which the rate falls; or
        every: of step, the rate falls after every so many epochs.
        gamma: of step, what the rate is multiplied by when it falls.
    """

    name: str = "cosine"
    warmup_epochs: float = 0.0
    milestones: tuple[int, ...] = ()
    every: Optional[int] = None
    gamma: float = 0.1


@dataclasses.dataclass(frozen=True)
class Unfreeze:
    """A step of gradual unfreezing.

    Args:
        epoch: after so many whole epochs; 0 is the start of the run.
        blocks: so many blocks below the head are trained from then on.
        stem: the stem as well, once all blocks are.
    """

    epoch: int
    blocks: int
    stem: bool = False


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Which layers are trained, from when on, and how fast; for a run that starts from weights.

    Args:
        freeze: keep all but the head as it is: no gradients, no decay, batch norm by its running statistics.
        unfreeze: with freeze, more layers are trained from given epochs on, from the head down.
        layer_decay: the learning rate of a layer by that of the one above it, in (0, 1]; the head takes the schedule's.
        keep_zeros: weights of convolutions and head that are 0 at the start stay 0, after ``prune``.
    """

    freeze: bool = False
    unfreeze: tuple[Unfreeze, ...] = ()
    layer_decay: float = 1.0
    keep_zeros: bool = False


@dataclasses.dataclass(frozen=True)
class Distill:
    """A teacher whose logits the network learns from, see ``distill.Teacher``.

    Args:
        teacher: a model of the zoo, or one of Paddle's own classifiers, such as paddle.vision.models.resnet18.
        weights: its checkpoint, for the data's number of classes; of a model of the zoo as in model.weights.
        temperature: what the logits of both are divided by.
        alpha: share of the teacher in the loss, in (0, 1]; the rest is the labels'.
    """

    teacher: str
    weights: str
    temperature: float = 4.0
    alpha: float = 0.9


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run with pictures and batches of a size of its own.

    Args:
        epochs: passes over the training part.
        size: side of the training pictures, in pixels; null for the input's. Evaluation always takes the input's.
        batch_size: pictures a batch, in each process; null for train.batch_size.
    """

    epochs: int
    size: Optional[int] = None
    batch_size: Optional[int] = None


@dataclasses.dataclass(frozen=True)
class Train:
    """The run.

    Args:
        epochs: passes over the training part; left out where there are phases.
        batch_size: pictures a batch, in each process.
        accumulate: batches a step of the optimiser, which takes the mean over all; schedule, EMA and step counts go by
            such steps. The last step of an epoch is of the batches that are left.
        phases: the run in parts, with smaller pictures first, say (progressive resizing); see ``Phase``.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        ema: also keep a moving average of the weights, of which this share stays at every step (0.999, say), and
            evaluate it; it is what monitor and patience go by, and what the best weights are. null for none.
        amp: mixed precision of Paddle on a GPU: O0 (off), O1 or O2.
        seed: of weights, held-out pictures, shuffling and augmentation.
        monitor: top1 or loss of the validation part; says which epoch is the best.
        patience: stop after so many epochs without a better one; 0 never stops early.
        save_minutes: within an epoch, save the state for ``--resume`` this often; 0 saves after every step.
            After every epoch, and at Ctrl-C or SIGTERM, it is saved anyway.
        histograms: after every so many epochs, draw the weights, and what every block makes of some pictures, as
            histograms; 0 never does.
    """

    epochs: Optional[int] = None
    batch_size: Optional[int] = None
    accumulate: int = 1
    phases: tuple[Phase, ...] = ()
    label_smoothing: float = 0.0
    ema: Optional[float] = None
    amp: str = "O0"
    seed: int = 0
    monitor: str = "top1"
    patience: int = 0
    save_minutes: float = 10.0
    histograms: int = 5


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training run. ``input`` overrides fields of the model's input specification, such as ``size``."""

    model: Model
    data: Data
    optimizer: Optimizer
    train: Train
    schedule: Schedule = Schedule()
    augment: Augment = Augment()
    finetune: Finetune = Finetune()
    distill: Optional[Distill] = None
    input: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        canonical(self.model.name)
        self.input_spec()
        self._check_phases()
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
            ("train.accumulate", self.train.accumulate >= 1, "at least 1"),
            ("train.ema", self.train.ema is None or 0 < self.train.ema < 1, "a number between 0 and 1, or null"),
            ("train.label_smoothing", 0 <= self.train.label_smoothing < 1, "a number in [0, 1)"),
            ("train.seed", self.train.seed >= 0, "at least 0"),
            ("train.patience", self.train.patience >= 0, "at least 0"),
            ("train.save_minutes", self.train.save_minutes >= 0, "at least 0"),
            ("train.histograms", self.train.histograms >= 0, "at least 0"),
            ("optimizer.lr", 0 < self.optimizer.lr < math.inf, "a number above 0"),
            ("optimizer.weight_decay", 0 <= self.optimizer.weight_decay < math.inf, "at least 0"),
            ("optimizer.epsilon", 0 < self.optimizer.epsilon < math.inf, "a number above 0"),
            (
                "optimizer.clip_norm",
                self.optimizer.clip_norm is None or 0 < self.optimizer.clip_norm < math.inf,
                "a number above 0, or null",
            ),
            (
                "schedule.warmup_epochs",
                0 <= self.schedule.warmup_epochs <= self.epochs,
                "between 0 and the number of epochs",
            ),
            ("schedule.gamma", 0 < self.schedule.gamma < 1, "a number between 0 and 1"),
            ("model.drop_rate", 0 <= self.model.drop_rate < 1, "a number in [0, 1)"),
            ("model.drop_path", 0 <= self.model.drop_path < 1, "a number in [0, 1)"),
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
        if self.optimizer.name == "lamb" and not self.optimizer.weight_decay:
            raise UserError("lamb without optimizer.weight_decay is adam; give it one, or take adam")
        self._check_schedule()
        self._check_finetune()
        self._check_distill()
        if self.optimizer.name == "sgd" and self.optimizer.epsilon != Optimizer.epsilon:
            raise UserError("optimizer.epsilon has no effect on sgd; leave it out")
        odd = [phase.batch_size for phase in self.phases() if phase.batch_size % PAIR]
        if self.augment.mixes and odd:
            raise UserError(f"train.batch_size is {odd[0]}; pictures are mixed in pairs and want an even number")
        self._check_data()

    def _check_phases(self) -> None:
        """Epochs and batch sizes are said once, and make sense."""
        train, patch = self.train, variant(self.model.name).patch_size
        for key in ("epochs", "batch_size"):
            value, parts = getattr(train, key), [getattr(phase, key) for phase in train.phases]
            if value is None and (not parts or None in parts):
                raise UserError(f"train.{key} is missing" + (", and not every phase has its own" if parts else ""))
            for name, number in (
                (f"train.{key}", value),
                *((f"train.phases[{i}].{key}", n) for i, n in enumerate(parts)),
            ):
                if number is not None and number < 1:
                    raise UserError(f"{name} is {number}; want at least 1")
        parts = [phase.epochs for phase in train.phases]
        if self.epochs > MAX_EPOCHS:
            raise UserError(f"the run has {self.epochs} epochs; want at most {MAX_EPOCHS:,}")
        if parts and train.epochs not in (None, sum(parts)):
            raise UserError(f"train.epochs is {train.epochs}, but the phases have {sum(parts)}; leave train.epochs out")
        if parts and train.batch_size and all(phase.batch_size for phase in train.phases):
            raise UserError("train.batch_size has no effect where every phase has its own; leave it out")
        for i, phase in enumerate(train.phases):
            if phase.size is not None and not patch <= phase.size <= MAX_SIDE:
                raise UserError(f"train.phases[{i}].size is {phase.size}; want {patch} (a patch) to {MAX_SIDE} pixels")

    def _check_schedule(self) -> None:
        """The schedule step has its falls within the run and after the warm-up, and no other has any."""
        schedule, epochs = self.schedule, self.epochs
        if schedule.name == "onecycle" and schedule.warmup_epochs:
            raise UserError("schedule.warmup_epochs has no effect on onecycle, which brings its own; leave one out")
        if schedule.name != "step":
            for key in ("milestones", "every", "gamma"):
                if getattr(schedule, key) != getattr(Schedule, key):
                    raise UserError(f"schedule.{key} has no effect on {schedule.name}; leave it out")
            return
        if bool(schedule.milestones) == (schedule.every is not None):
            raise UserError("the schedule step needs either schedule.milestones or schedule.every")
        falls = schedule.milestones or (schedule.every,)
        if list(falls) != sorted(set(falls)) or falls[0] < max(1, schedule.warmup_epochs) or falls[-1] >= epochs:
            key, value = ("milestones", list(falls)) if schedule.milestones else ("every", schedule.every)
            raise UserError(f"schedule.{key} is {value}; want rising whole epochs after the warm-up and below {epochs}")

    def _check_finetune(self) -> None:
        """What is frozen is worth keeping, and thaws from the head down."""
        finetune, depth, epochs = self.finetune, variant(self.model.name).depth, self.epochs
        if not 0 < finetune.layer_decay <= 1:
            raise UserError(f"finetune.layer_decay is {finetune.layer_decay}; want a number in (0, 1]")
        if finetune.unfreeze and not finetune.freeze:
            raise UserError("finetune.unfreeze has no effect without finetune.freeze; set both or neither")
        if finetune.freeze and not self.model.weights:
            raise UserError("finetune.freeze would keep random weights as they are; give model.weights")
        if finetune.keep_zeros and not self.model.weights:
            raise UserError("finetune.keep_zeros has no effect on random weights; give model.weights")
        if finetune.keep_zeros and self.train.ema is not None and self.train.amp == "O2":
            raise UserError("finetune.keep_zeros does not reach the average of train.amp O2; leave train.ema out")
        if self.model.drop_path and depth < 2:
            raise UserError(f"model.drop_path has no effect on a network of {depth} blocks; leave it out")
        before = (-1, 0, False)
        for i, (epoch, blocks, stem) in enumerate(map(dataclasses.astuple, finetune.unfreeze)):
            key = f"finetune.unfreeze[{i}]"
            if not before[0] < epoch < epochs:
                raise UserError(f"{key}.epoch is {epoch}; want rising whole numbers from 0 on, below {epochs}")
            if blocks > depth:
                raise UserError(f"{key} frees {blocks} blocks, and {self.model.name} has {depth}")
            if (blocks, stem) <= before[1:]:
                raise UserError(f"{key} frees {blocks} blocks; want more than the step before it")
            if stem and blocks < depth:
                raise UserError(f"{key}.stem needs all {depth} blocks freed; the stem comes last")
            before = epoch, blocks, stem
        if finetune.unfreeze and finetune.unfreeze[0].epoch == 0 and finetune.unfreeze[0].stem:
            raise UserError("finetune.freeze has no effect, as all is freed from epoch 0 on; leave it out")
        if finetune.freeze and not finetune.unfreeze:
            given = {"model.drop_path": self.model.drop_path > 0, "finetune.layer_decay": finetune.layer_decay < 1}
            idle = [key for key, is_given in given.items() if is_given]
            if idle:
                raise UserError(f"{idle[0]} has no effect where the head alone is trained; leave it out")

    def _check_distill(self) -> None:
        distill = self.distill
        if distill is None:
            return
        if not distill.teacher.startswith(PADDLE_MODELS):
            canonical(distill.teacher)
        elif is_tag(distill.weights):
            raise UserError(
                f"distill.weights is {distill.weights}, but of {distill.teacher} none are published here; name a file"
            )
        if not 0 < distill.temperature < math.inf:
            raise UserError(f"distill.temperature is {distill.temperature}; want a number above 0")
        if not 0 < distill.alpha <= 1:
            raise UserError(f"distill.alpha is {distill.alpha}; want a number in (0, 1]")
        if distill.alpha == 1 and self.train.label_smoothing:
            raise UserError("train.label_smoothing has no effect where distill.alpha is 1; leave it out")

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
        if data.dataset == "folder" and data.val is not None and data.train is None:
            raise UserError("data.train is missing: the folder of data.path as a whole would hold data.val as well")
        if data.dataset != "cifar10" and (data.val is None) == (data.val_fraction is None):
            raise UserError("give either data.val or data.val_fraction, so that it is clear what the run is judged by")

    def input_spec(self) -> InputSpec:
        """Return the input of the model with the recipe's changes."""
        return input_spec(self.model.name, **{k: tuple(v) if isinstance(v, list) else v for k, v in self.input.items()})

    def phases(self) -> tuple[Phase, ...]:
        """Return the phases of the run with nothing left open; without ``train.phases`` it is one."""
        train, size = self.train, self.input_spec().size
        parts = train.phases or (Phase(train.epochs),)
        return tuple(Phase(part.epochs, part.size or size, part.batch_size or train.batch_size) for part in parts)

    @property
    def epochs(self) -> int:
        """The epochs of all phases."""
        return sum(phase.epochs for phase in self.phases())

    def frozen_layers(self, epoch: int) -> int:
        """Return how many of the lowest layers (see ``model.layer_id``) are not trained in an epoch, counted from 0."""
        if not self.finetune.freeze:
            return 0
        depth = variant(self.model.name).depth
        freed = [phase for phase in self.finetune.unfreeze if phase.epoch <= epoch]
        if not freed:
            return depth + 1
        return 0 if freed[-1].stem else depth + 1 - freed[-1].blocks

    def to_dict(self) -> dict[str, Any]:
        """Return the complete recipe as JSON and YAML can write it."""
        return strict_yaml.plain(self)

    def settings(self) -> dict[str, Any]:
        """Return every setting by its full key, such as ``optimizer.lr``."""
        return strict_yaml.flat(self.to_dict())

    def to_yaml(self) -> str:
        """Return the complete recipe as YAML, every key written out."""
        return strict_yaml.dump(self.to_dict())


def load(path: PathLike, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply overrides of the form ``key.sub=value`` (the value as YAML would read it).

    ``path`` may also name a recipe that comes with the package, such as ``digits`` or ``configs/digits.yaml``.

    Raises:
        UserError: not readable, an unknown key (with the nearest name), a missing one, or a value that makes no sense.
    """
    file = _find(path)
    try:
        tree = strict_yaml.load(read_text(file, MAX_BYTES))
    except UserError as error:
        raise UserError(f"cannot read the recipe {file}: {error}") from error
    try:
        return _overridden(strict_yaml.mapping(tree, "the recipe"), overrides)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def from_dict(tree: Mapping[str, Any]) -> Recipe:
    """Return the recipe that ``Recipe.to_dict`` took apart.

    Raises:
        UserError: as ``load``.
    """
    return strict_yaml.make(Recipe, tree)


def from_yaml(text: str) -> Recipe:
    """Return the recipe that ``Recipe.to_yaml`` wrote.

    Raises:
        UserError: as ``load``.
    """
    return from_dict(strict_yaml.mapping(strict_yaml.load(text), "the recipe"))


def override(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """Return a recipe with overrides of the form that ``load`` takes.

    Raises:
        UserError: as ``load``.
    """
    return _overridden(recipe.to_dict(), overrides)


def _overridden(tree: dict[str, Any], overrides: Iterable[str]) -> Recipe:
    for text in overrides:
        _override(tree, text)
    return from_dict(tree)


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Return a line ``key: old -> new`` for every setting that differs."""
    a, b = old.settings(), new.settings()
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


def _find(path: PathLike) -> Path:
    path = Path(path)
    if path.exists():
        return path
    own = shipped("configs") / f"{path.stem}.yaml"
    if path.parent in (Path("."), Path("configs")) and own.is_file():
        return own
    names = ", ".join(sorted(p.stem for p in shipped("configs").glob("*.yaml")))
    raise UserError(f"there is no recipe {path}; give a YAML file, or one that comes with the package: {names}")


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"the override {override!r} is not of the form key.sub=value")
    try:
        value = strict_yaml.load(text)
    except UserError as error:
        raise UserError(f"the value of {key} is no YAML: {shown(text)}") from error
    if isinstance(value, str) and value.startswith("~/"):  # a shell does so only where a word begins with it
        value = os.path.expanduser(value)
    *groups, name = key.split(".")
    for group in groups:
        if not isinstance(tree.get(group), dict):
            if tree.get(group) is not None:
                raise UserError(f"{key} cannot be set: {group} is {shown(tree[group])}")
            tree[group] = {}
        tree = tree[group]
    tree[name] = value
