"""Where a run stands: everything ``--resume`` needs, in one file that is whole or known to be damaged.

A run folder keeps the last two, ``state-<steps taken>.safetensors``. Each carries the SHA-256 of its
own content, so that a damaged newest one gives way to the one before.

No random state is kept, because there is none to keep: every draw of the data depends on (seed,
epoch, index) and every draw of the network (dropout, drop path) on (seed, step), see ``callbacks.Count``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from . import checkpoint
from .errors import UserError, said

if TYPE_CHECKING:
    import paddle

    from .trainer import Trainer

logger = logging.getLogger("ppconvmixer")

KEPT = 2
MAX_HEADER = 16 << 20
"""Bytes of a state's header; with optimiser, masters and average, the most blocks, 999, take seven million."""
MASTER = "fp32_master_0"
"""What Paddle adds to the name of a parameter in 16 bits for its counterpart in 32."""


def merit(values: Any, monitor: str) -> np.ndarray:
    """Return how good monitored figures are, the larger the better; what is no number is worse than every number."""
    return np.where(np.isfinite(values), np.negative(values) if monitor == "loss" else values, -np.inf)


@dataclasses.dataclass
class RunState:
    """How far a run is, and its best epoch so far."""

    epochs: int = 0
    """Epochs that are trained and evaluated."""
    step: int = 0
    """Steps taken in the epoch under way."""
    steps: int = 0
    """Steps taken in all."""
    loss_sum: float = 0.0
    """Sum of the losses of the epoch under way, over its pictures."""
    hits: float = 0.0
    """Pictures of the epoch under way that were told right, of ``images``."""
    images: int = 0
    epoch_seconds: float = 0.0
    """Time the steps of the epoch under way took."""
    waiting_seconds: float = 0.0
    """Of these, the time they waited for pictures."""
    seconds: float = 0.0
    """Time the steps of all epochs before took."""
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The evaluation of the last whole epoch."""
    ema_metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    """That of the moving average of the weights, where there is one."""
    best: Optional[float] = None
    """The monitored figure of the best epoch."""
    best_epoch: int = 0
    best_metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    best_ema: Optional[float] = None
    """``train.ema`` of the best epoch."""

    def improves(self, value: float, monitor: str) -> bool:
        """Tell whether ``value`` beats the best so far: top1 by being larger, loss by being smaller."""
        return self.best is None or bool(merit(value, monitor) > merit(self.best, monitor))

    def forget_best(self) -> None:
        """Look for the best epoch anew: what is judged by other pictures cannot be compared."""
        self.best, self.best_epoch, self.best_metrics, self.best_ema = None, self.epochs, {}, None

    def end_epoch(self) -> None:
        """Count the epoch under way as whole."""
        self.seconds += self.epoch_seconds
        self.epochs, self.step = self.epochs + 1, 0
        self.loss_sum, self.hits, self.images, self.epoch_seconds, self.waiting_seconds = 0.0, 0.0, 0, 0.0, 0.0


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a state file holds.

    Args:
        arrays: float32 by ``model/…``, ``ema/…``, ``optimizer/…`` and ``master/…``.
        facts: what the caller of ``save`` gave.
    """

    path: Path
    arrays: checkpoint.State
    run: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any]
    facts: dict[str, Any]


def files(folder: Path) -> list[Path]:
    """Return the state files of a run folder, the newest first; a copy that a user made under another name is none."""
    found = folder.glob("state-*.safetensors")
    return sorted((path for path in found if re.fullmatch(r"state-\d{10}\.safetensors", path.name)), reverse=True)


def save(folder: Path, model: Trainer, state: RunState, facts: Mapping[str, Any]) -> None:
    """Write weights, average, optimiser, schedule, loss scale, counters and ``facts``, then drop what is too old.

    Raises:
        UserError: a weight is no number, or the file cannot be written; the files before are then as they were.
    """
    optimizer = model._optimizer.state_dict()
    schedule, masters = optimizer.pop("LR_Scheduler", {}), optimizer.pop("master_weights", {})
    arrays = {f"model/{name}": value for name, value in to_arrays(model.network.state_dict()).items()}
    if model.average is not None:
        arrays |= {f"ema/{name}": value for name, value in to_arrays(model.average.state_dict()).items()}
    for name, parameter in model.network.named_parameters():
        if parameter.name in masters:
            arrays[f"master/{name}"] = _array(masters[parameter.name])
        for key, value in optimizer.items():
            if key.startswith(f"{parameter.name}_"):
                arrays[f"optimizer/{name}/{key[len(parameter.name) + 1 :]}"] = _array(value)
    poisoned = [name for name, value in arrays.items() if not np.isfinite(value).all()]
    if poisoned:
        raise UserError(
            f"{poisoned[0]} holds numbers that are not finite after step {state.steps}; nothing was saved over the "
            "state before; try a smaller optimizer.lr or optimizer.clip_norm"
        )
    scaler = getattr(model, "_scaler", None)
    records = {
        "run": dataclasses.asdict(state),
        "schedule": schedule,
        "scaler": {k: np.asarray(v).item() for k, v in scaler.state_dict().items()} if scaler else {},
        "facts": dict(facts),
    }
    text = json.dumps(records)
    metadata = {"ppconvmixer": text, "sha256": _digest(arrays, text)}
    checkpoint.write(folder / f"state-{state.steps:010d}.safetensors", arrays, metadata)
    for old in files(folder)[KEPT:]:
        old.unlink()


def read(folder: Path) -> Optional[Saved]:
    """Return the newest state of a run folder that is whole; None where none was saved yet.

    Raises:
        UserError: there are some, and all are damaged.
    """
    reasons = []
    for path in files(folder):
        try:
            saved = _read(path)
        except (UserError, KeyError, TypeError, ValueError) as error:
            reasons.append(f"{path.name}: {error}")
            continue
        if reasons:
            logger.warning("damaged: %s; going on from the state before it, %s", "; ".join(reasons), path.name)
        return saved
    if reasons:
        raise UserError(
            f"every saved state in {folder} is damaged ({'; '.join(reasons)}); start again with --overwrite"
        )
    return None


def restore(saved: Saved, model: Trainer) -> RunState:
    """Bring ``model``, its optimiser and its average to where ``save`` found them; returns the counters.

    The optimiser's entries are kept by the structural names of the parameters: Paddle's automatic
    ones change with every layer built earlier in the process.

    Raises:
        UserError: it is the state of another network or optimiser.
    """
    import paddle

    try:
        recipe = saved.facts.get("recipe", {})
        state = RunState(**{"best_ema": recipe.get("train", {}).get("ema"), **saved.run})  # an older one lacks it
        wanted = model.network.state_dict()
        network = {name: saved.arrays[f"model/{name}"] for name in wanted}
        for name, value in wanted.items():
            if network[name].shape != tuple(value.shape):
                raise ValueError(f"{name} is {network[name].shape} and not {tuple(value.shape)}")
        average = {name: saved.arrays.get(f"ema/{name}", value) for name, value in network.items()}
        parameters = dict(model.network.named_parameters())
        optimizer: dict[str, Any] = {"LR_Scheduler": saved.schedule}
        for key, value in saved.arrays.items():
            part, name, *entry = key.split("/")
            if part == "optimizer":
                optimizer[f"{parameters[name].name}_{entry[0]}"] = paddle.to_tensor(value)
            elif part == "master":
                masters = optimizer.setdefault("master_weights", {})
                masters[parameters[name].name] = master = paddle.to_tensor(value)
                master.name = f"{parameters[name].name}_{MASTER}"  # by which the optimiser finds the entries of it
        model.network.set_state_dict({name: _like(network[name], value) for name, value in wanted.items()})
        if model.average is not None:  # begins here where the run had none until now
            now = model.average.state_dict()
            model.average.set_state_dict({name: _like(average[name], value) for name, value in now.items()})
        model._optimizer.set_state_dict(optimizer)
        moved = {key.split("/")[1] for key in saved.arrays if key.startswith("optimizer/")}
        _take_up(model._optimizer, [parameters[name] for name in parameters if name in moved])
        if saved.scaler:
            model._scaler = paddle.amp.GradScaler()
            model._scaler.load_state_dict({**saved.scaler, "scale": [saved.scaler["scale"]]})
    except (AssertionError, KeyError, TypeError, ValueError) as error:  # the first is Paddle's
        mixed = any(key.startswith("master/") for key in saved.arrays)
        if mixed and not getattr(model._optimizer, "_multi_precision", False):
            remedy = "it was saved with train.amp O2, so go on with that, on a GPU"
        else:
            remedy = "start again with --overwrite"
        raise UserError(f"{saved.path} does not fit this recipe ({said(error)}); {remedy}") from error
    return state


def _like(value: np.ndarray, tensor: paddle.Tensor) -> paddle.Tensor:
    """Return ``value`` in the precision of ``tensor``, of a network in mixed precision perhaps."""
    import paddle

    return paddle.to_tensor(value).astype(tensor.dtype)


def _take_up(optimizer: Any, parameters: list[paddle.Tensor]) -> None:
    """Have the optimiser make the entries of ``parameters`` out of what it was given.

    By itself it would with the next step, and then ask for entries of layers that were frozen until now.
    """
    import paddle
    from paddle.base.layer_helper import LayerHelper

    optimizer.helper = LayerHelper(type(optimizer).__name__)
    optimizer._create_accumulators(paddle.static.default_main_program().global_block(), parameters)


def to_arrays(tensors: Mapping[str, Any]) -> checkpoint.State:
    """Return the tensors as float32 arrays, whatever precision the training runs in."""
    return {name: _array(value) for name, value in tensors.items()}


def _array(tensor: Any) -> np.ndarray:
    return tensor.astype("float32").numpy()


def _read(path: Path) -> Saved:
    arrays, metadata = checkpoint.read(path, MAX_HEADER), checkpoint.read_metadata(path, MAX_HEADER)
    text = metadata["ppconvmixer"]
    if _digest(arrays, text) != metadata["sha256"]:
        raise UserError("its content is not what was written")
    return Saved(path, arrays, **json.loads(text))


def _digest(arrays: checkpoint.State, text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"\n{name} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]))
    return digest.hexdigest()
