"""What happens around the steps of ``paddle.Model.fit``: evaluate, stop, save, draw, tell.

``fit`` counts epochs from 0 whatever came before, so the callbacks share a ``RunState`` that counts
from the beginning of the run. They run in the order of the list: each may read what those before
it put into ``logs``.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from pathlib import Path
from typing import Any, Optional

import numpy as np
import paddle

from . import card, checkpoint, distributed
from .engines import Dygraph
from .errors import UserError
from .evaluate import evaluate
from .loader import Samples
from .progress import Progress
from .recipe import Recipe

logger = logging.getLogger("ppconvmixer")


@dataclasses.dataclass
class RunState:
    """How far a run is, and its best epoch so far."""

    epochs: int = 0
    steps: int = 0
    best: Optional[float] = None
    """The monitored figure of the best epoch."""
    best_epoch: int = 0
    best_metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def improves(self, value: float, monitor: str) -> bool:
        """Tell whether ``value`` beats the best so far: top1 by being larger, loss by being smaller."""
        return self.best is None or (value < self.best if monitor == "loss" else value > self.best)


class Count(paddle.callbacks.Callback):
    """Counts steps, epochs and seconds, averages the loss of the epoch, and stops at a loss that is no number.

    It also seeds Paddle (dropout) by the epoch, so that a resumed run draws what an unbroken one draws.
    """

    def __init__(self, state: RunState, seed: int):
        super().__init__()
        self.state, self.seed = state, seed

    def on_epoch_begin(self, epoch: int, logs: Optional[dict] = None) -> None:
        paddle.seed(self.seed + self.state.epochs)
        self.losses: list[float] = []
        self.images = 0
        self.started = time.monotonic()

    def on_train_batch_end(self, step: int, logs: Optional[dict] = None) -> None:
        (loss,) = np.ravel(logs["loss"])
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} in epoch {self.state.epochs + 1}, step {step + 1}; "
                "the checkpoints of the epochs before are kept; try a smaller optimizer.lr or optimizer.clip_norm"
            )
        self.losses.append(float(loss))
        self.images += logs["batch_size"] * distributed.WORLD
        self.state.steps += 1

    def on_epoch_end(self, epoch: int, logs: Optional[dict] = None) -> None:
        seconds = time.monotonic() - self.started
        self.state.epochs += 1
        self.state.seconds += seconds
        logs.update(train_loss=float(np.mean(self.losses)), images_per_second=self.images / seconds)


class Evaluate(paddle.callbacks.Callback):
    """Evaluates after every epoch with the very loop of ``ppconvmixer eval``.

    ``paddle.Model.evaluate`` would return the loss of the last batch, and with several processes
    each would evaluate batch-norm statistics of its own.
    """

    def __init__(self, state: RunState, samples: Samples, recipe: Recipe, amp: str):
        super().__init__()
        self.state, self.samples, self.recipe, self.amp = state, samples, recipe, amp

    def on_epoch_end(self, epoch: int, logs: Optional[dict] = None) -> None:
        network, train, workers = self.model.network, self.recipe.train, self.recipe.data.workers
        distributed.average_statistics(network)
        metrics = evaluate(Dygraph(network, self.amp), self.samples, train.batch_size, workers).metrics()
        logs["metrics"] = metrics
        logs["is_best"] = self.state.improves(metrics[train.monitor], train.monitor)
        if logs["is_best"]:
            self.state.best, self.state.best_epoch = metrics[train.monitor], self.state.epochs
            self.state.best_metrics = metrics


class EarlyStopping(paddle.callbacks.Callback):
    """Stops after ``patience`` epochs without a better one; 0 never stops."""

    def __init__(self, state: RunState, patience: int):
        super().__init__()
        self.state, self.patience = state, patience

    def on_epoch_end(self, epoch: int, logs: Optional[dict] = None) -> None:
        if self.patience and self.state.epochs - self.state.best_epoch >= self.patience:
            logger.info("no better epoch for %d epochs: stopping", self.patience)
            self.model.stop_training = True


class ModelCheckpoint(paddle.callbacks.Callback):
    """Keeps the last and the best weights with their cards, and all that ``--resume`` needs in one file."""

    def __init__(self, state: RunState, folder: Path, facts: card.Card):
        super().__init__()
        self.state, self.folder, self.card = state, folder, facts

    def on_epoch_end(self, epoch: int, logs: Optional[dict] = None) -> None:
        if distributed.RANK:
            return
        weights = _arrays(self.model.network.state_dict())
        facts = {**self.card.facts, **logs["metrics"], "epoch": self.state.epochs}
        for name in ("last", "best") if logs["is_best"] else ("last",):
            checkpoint.write(self.folder / f"{name}.pdparams", weights)
            card.write(self.folder / f"{name}.pdparams", dataclasses.replace(self.card, facts=facts))
        save_state(self.folder / "state.safetensors", self.model, self.state)


class VisualDL(paddle.callbacks.Callback):
    """Draws loss, accuracy, learning rate and throughput; once, augmented pictures and the recipe."""

    def __init__(self, state: RunState, folder: Path, recipe: Recipe, pictures: np.ndarray):
        super().__init__()
        self.state, self.folder, self.recipe, self.pictures = state, folder, recipe, pictures

    def on_train_begin(self, logs: Optional[dict] = None) -> None:
        if distributed.RANK:
            return
        from visualdl import LogWriter

        self.writer = LogWriter(logdir=str(self.folder), flush_secs=10)
        if not self.state.steps:
            self.writer.add_image("train/augmented pictures", self.pictures, step=0)
            self.writer.add_text("recipe", self.recipe.to_yaml(), step=0)

    def on_train_batch_begin(self, step: int, logs: Optional[dict] = None) -> None:
        self.learning_rate = self.model._optimizer.get_lr()

    def on_train_batch_end(self, step: int, logs: Optional[dict] = None) -> None:
        self._add("train", self.state.steps, loss=float(np.ravel(logs["loss"])[0]), top1=logs["top1"])
        self._add("train", self.state.steps, learning_rate=self.learning_rate)

    def on_epoch_end(self, epoch: int, logs: Optional[dict] = None) -> None:
        metrics = {name: logs["metrics"][name] for name in ("loss", "top1", "top5", "images_per_second")}
        self._add("eval", self.state.epochs, **metrics)
        self._add("train", self.state.epochs, images_per_second=logs["images_per_second"])

    def on_train_end(self, logs: Optional[dict] = None) -> None:
        if not distributed.RANK:
            self.writer.close()

    def _add(self, part: str, step: int, **figures: float) -> None:
        if not distributed.RANK:
            for name, value in figures.items():
                self.writer.add_scalar(f"{part}/{name}", float(value), step)


class Tell(paddle.callbacks.Callback):
    """Tells a person how the run goes."""

    def __init__(self, state: RunState, epochs: int, batch_size: int):
        super().__init__()
        self.state, self.epochs, self.batch_size = state, epochs, batch_size * distributed.WORLD

    def on_epoch_begin(self, epoch: int, logs: Optional[dict] = None) -> None:
        if not distributed.RANK:
            total = self.params["steps"] * self.batch_size
            self.progress = Progress(total, f"epoch {self.state.epochs + 1}/{self.epochs}")

    def on_train_batch_end(self, step: int, logs: Optional[dict] = None) -> None:
        if not distributed.RANK:
            self.progress.advance(self.batch_size, loss=float(np.ravel(logs["loss"])[0]), top1=logs["top1"])

    def on_epoch_end(self, epoch: int, logs: Optional[dict] = None) -> None:
        if distributed.RANK:
            return
        self.progress.close()
        metrics = logs["metrics"]
        logger.info(
            "epoch %d/%d: train loss %.4f, top-1 %.2f %%, %.1f img/s; eval loss %.4f, top-1 %.2f %%%s",
            *(self.state.epochs, self.epochs, logs["train_loss"], 100 * logs["top1"], logs["images_per_second"]),
            *(metrics["loss"], 100 * metrics["top1"], " (best so far)" if logs["is_best"] else ""),
        )


def save_state(path: Path, model: paddle.Model, state: RunState) -> None:
    """Write weights, optimiser, schedule and counters to one ``.safetensors`` file, atomically."""
    optimizer = model._optimizer.state_dict()
    schedule = optimizer.pop("LR_Scheduler", {})
    arrays = {f"model/{name}": value for name, value in _arrays(model.network.state_dict()).items()}
    for name, parameter in model.network.named_parameters():
        for key, value in optimizer.items():
            if key.startswith(f"{parameter.name}_"):
                arrays[f"optimizer/{name}/{key[len(parameter.name) + 1 :]}"] = _array(value)
    records = {"run": dataclasses.asdict(state), "schedule": schedule}
    checkpoint.write(path, arrays, {"ppconvmixer": json.dumps(records)})


def load_state(path: Path, model: paddle.Model) -> RunState:
    """Bring ``model`` and its optimiser to where ``save_state`` left them; returns the counters.

    The optimiser's entries are kept by the structural names of the parameters: Paddle's automatic
    ones change with every layer built earlier in the process.

    Raises:
        UserError: unreadable, or of another network or optimiser.
    """
    arrays = checkpoint.read(path)
    try:
        records = json.loads(checkpoint.read_metadata(path)["ppconvmixer"])
        state = RunState(**records["run"])
        network = {name: arrays[f"model/{name}"] for name in model.network.state_dict()}
        parameters = dict(model.network.named_parameters())
        optimizer = {"LR_Scheduler": records["schedule"]}
        for key, value in arrays.items():
            part, name, *entry = key.split("/")
            if part == "optimizer":
                optimizer[f"{parameters[name].name}_{entry[0]}"] = paddle.to_tensor(value)
        model.network.set_state_dict(network)
        model._optimizer.set_state_dict(optimizer)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not belong to this recipe ({error}); start again with --overwrite") from error
    return state


def _arrays(tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: _array(value) for name, value in tensors.items()}


def _array(tensor: Any) -> np.ndarray:
    """Return float32 whatever precision the training ran in."""
    return tensor.astype("float32").numpy()
