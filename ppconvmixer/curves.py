"""What a run draws while it goes: into one VisualDL file, and out of it into ``report.html``."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from . import distributed, graph, per_class, report
from .engines import Dygraph
from .errors import printable
from .evaluate import Evaluation
from .insight.maps import watched
from .loader import Samples, some
from .recipe import Recipe
from .records import FILE, LAYERS, Records
from .run_state import RunState

logger = logging.getLogger("ppconvmixer")

PICTURES = 8  # whose activations are shown
BUCKETS = 30  # of a histogram
EVERY = 10  # steps from one point of the curves of all layers to the next; 34 layers would otherwise fill the file


class VisualDL(paddle.callbacks.Callback):
    """Draws loss, accuracy, learning rate, gradient norms and throughput; once, augmented pictures, recipe and graph.

    VisualDL shows one file of a folder, the newest by name, so a run has one and goes on in it.

    Args:
        size: bytes of the file that belong to the state the run goes on from; later ones would be drawn twice.
    """

    def __init__(self, state: RunState, folder: Path, recipe: Recipe, pictures: np.ndarray, size: int):
        super().__init__()
        self.state, self.folder, self.recipe, self.pictures = state, folder, recipe, pictures
        self.file, self.size = folder / FILE, size
        self.writer: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        if distributed.RANK:
            return
        from visualdl import LogWriter

        present = self.file.stat().st_size if self.file.exists() else 0
        if present < self.size:
            logger.warning("%s lacks a part of the curves; the rest is drawn all the same", self.file)
        elif present > self.size:
            os.truncate(self.file, self.size)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that the file exists
            self.writer = LogWriter(logdir=str(self.folder), file_name=self.file.name)
        if not self.size:
            self.writer.add_image("train/augmented pictures", self.pictures, step=0)
            self.writer.add_text("recipe", self.recipe.to_yaml(), step=0)
            # Of these metrics, VisualDL shows the last values of the curves.
            part = "eval_ema" if self.recipe.train.ema else "eval"
            self.writer.add_hparams(_plain(self.recipe.settings()), [f"{part}/top1", f"{part}/loss"])
        if not (self.folder / graph.FILE).exists():
            graph.write(self.folder, self.model.network, self.recipe.input_spec())

    def on_train_batch_begin(self, step: int, logs: Any = None) -> None:
        self.learning_rate = self.model._optimizer.get_lr()

    def on_train_batch_end(self, step: int, logs: Any = None) -> None:
        figures = {"loss": loss_of(logs), "top1": logs["top1"], "learning_rate": self.learning_rate}
        norm, step = self.model.gradient_norm(), self.state.steps
        self.add("train", step, figures if norm is None else {**figures, "gradient_norm": norm})
        if norm is not None and step % EVERY == 1:
            self.add(LAYERS, step, self.model.layer_norms())

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        names = ("loss", "top1", "top5", "images_per_second")
        for part, metrics in (("eval", self.state.metrics), ("eval_ema", self.state.ema_metrics)):
            self.add(part, self.state.epochs, {name: metrics[name] for name in names if metrics})
        self.add("train", self.state.epochs, {name: logs["train"][name] for name in ("images_per_second", "waiting")})

    def add(self, part: str, step: int, figures: Mapping[str, float]) -> None:
        """Add a point to every curve of ``figures``."""
        if not distributed.RANK:
            for name, value in figures.items():
                self.writer.add_scalar(f"{part}/{name}", float(value), step)

    def flush(self) -> int:
        """Bring everything drawn so far to the file and return its size in bytes."""
        self.writer.flush()
        return self.file.stat().st_size

    def close(self) -> None:
        """End the writer's thread, however the training ended."""
        if self.writer is not None:
            self.writer.close()


class Classes(paddle.callbacks.Callback):
    """Draws which classes were taken for which, of the weights the epoch is judged by.

    For a few classes, also the accuracy and the precision-recall curve of each; for many, the accuracies as
    a histogram. The confusion matrix of the best epoch so far is also kept as a table.
    """

    def __init__(self, state: RunState, curves: VisualDL, names: Sequence[str]):
        super().__init__()
        self.state, self.curves, self.names = state, curves, names

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if distributed.RANK:
            return
        writer, judged, step = self.curves.writer, logs["judged"], self.state.epochs
        cells = judged.confusion()
        writer.add_image("eval/confusion", per_class.draw(cells, self.names), step)
        if self.state.best_epoch == step:
            writer.add_text(report.CONFUSION, _table(cells, self.names), step)
        pictures, right = per_class.pictures(cells, len(self.names))
        shares = right[pictures > 0] / pictures[pictures > 0]
        if len(self.names) > per_class.SHOWN:
            writer.add_histogram("eval/class accuracy", shares, step, buckets=BUCKETS)
            return
        for label, share in zip(np.flatnonzero(pictures).tolist(), shares.tolist()):
            self.curves.add("class accuracy", step, {self._tag(label): share})
        self._precision_and_recall(judged)

    def _precision_and_recall(self, judged: Evaluation) -> None:
        # Not by VisualDL's add_pr_curve, which asks NumPy for a name it dropped in 1.24.
        from visualdl.component.base_component import pr_curve_raw

        for label, scores in enumerate(judged.scores().T):
            points = {k: v.tolist() for k, v in per_class.curve(scores, judged.labels == label).items()}
            where = {"tag": f"{report.CURVES}/{self._tag(label)}", "step": self.state.epochs}
            record = pr_curve_raw(**where, walltime=round(1000 * time.time()), **points)
            self.curves.writer._get_file_writer().add_record(record)

    def _tag(self, label: int) -> str:
        """Return a name without the characters that VisualDL takes for its own."""
        return per_class.title(self.names, label).replace("%", "_").replace("/", "_")


class Histograms(paddle.callbacks.Callback):
    """After every so many epochs and the last, draws the weights, and what every block makes of some pictures.

    The network is that of the optimiser, not its moving average. Hooks take the activations, one evaluation long: with
    hooks the layers compute, without them the CPU operator does again.
    """

    def __init__(self, state: RunState, curves: VisualDL, samples: Samples, recipe: Recipe, amp: str):
        super().__init__()
        self.state, self.curves, self.amp = state, curves, amp
        self.every, self.epochs = recipe.train.histograms, recipe.epochs
        self.samples = samples

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        last = self.state.epochs == self.epochs or self.model.stop_training
        if distributed.RANK or not self.every or (self.state.epochs % self.every and not last):
            return
        network = self.model.network
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                self._add(f"weights/{name}", parameter)
        layers = {"stem": network.stem, **{f"blocks.{i}": block for i, block in enumerate(network.blocks)}}
        with watched(layers, lambda name, _, output: self._add(f"activations/{name}", output)):
            Dygraph(network, self.amp)(some(self.samples, PICTURES))

    def _add(self, tag: str, tensor: paddle.Tensor) -> None:
        values = tensor.astype("float32").numpy()
        if np.isfinite(values).all():
            self.curves.writer.add_histogram(tag, values, self.state.epochs, buckets=BUCKETS)


class Report(paddle.callbacks.Callback):
    """Writes ``report.html`` after every epoch."""

    def __init__(self, state: RunState, folder: Path, recipe: Recipe):
        super().__init__()
        self.state, self.folder, self.recipe = state, folder, recipe
        self.records = Records(folder / "visualdl" / FILE)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.write()

    def write(self) -> None:
        """Write what the run folder holds so far."""
        if not distributed.RANK and self.records.file.exists():
            report.write(self.folder, self.records.read(), self.recipe, self.state)


def class_names(classes: Any, count: int) -> list[str]:
    """Return the names of ``count`` classes as they can be shown; numbers where they have none."""
    return [printable(name) for name in classes] if classes else [str(i) for i in range(count)]


def loss_of(logs: Mapping[str, Any]) -> float:
    """Return the loss of a step out of what ``fit`` tells its callbacks."""
    return float(np.ravel(logs["loss"])[0])


def _table(cells: np.ndarray, names: Sequence[str]) -> str:
    """Return the confusion matrix as CSV, mistakes first."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["label", "predicted", "pictures", "class", "taken for"])
    right = cells[cells[:, 0] == cells[:, 1]]
    for label, predicted, count in np.concatenate([per_class.mistakes(cells), right]).tolist():
        rows.writerow([label, predicted, count, names[label], names[predicted]])
    return text.getvalue()


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings as VisualDL's table of hyper-parameters takes them: numbers and texts, no dot in a key."""
    return {
        key.replace(".", "/"): value if type(value) in (int, float) else str(value)
        for key, value in settings.items()
        if value not in (None, (), [], {})
    }
