"""What happens around the steps of ``paddle.Model.fit``: count, evaluate, stop, tell, save; ``curves`` draws.

``fit`` counts epochs and steps from 0 whatever came before, so the callbacks share a ``RunState``
that counts from the beginning of the run. They run in the order of the list: each may read what
those before it put into the state and into ``logs``.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import numpy as np
import paddle

from . import card, checkpoint, distributed, per_class, prune, run_folder, run_state
from .curves import VisualDL, loss_of
from .engines import Dygraph
from .errors import UserError
from .evaluate import Evaluation, evaluate
from .files import write_text
from .loader import Samples
from .optim import ema_decay
from .phases import Epochs
from .progress import Progress
from .recipe import Recipe
from .run_state import RunState
from .stopping import StopWish
from .trainer import Trainer

logger = logging.getLogger("ppconvmixer")


class Count(paddle.callbacks.Callback):
    """Counts steps, pictures and seconds, and seeds Paddle (dropout, drop path) by the step.

    So a run that goes on in the middle of an epoch draws and counts what an unbroken one does. The figures are of all
    processes together; ``logs`` gets the mean of their losses, and as ``losses`` that of each.
    """

    def __init__(self, state: RunState, data: Epochs, seed: int):
        super().__init__()
        self.state, self.data, self.seed = state, data, seed

    def on_epoch_begin(self, epoch: int, logs: Optional[dict] = None) -> None:
        (accuracy,) = self.model._metrics
        accuracy.total, accuracy.count = [self.state.hits], [self.state.images]
        self.since = time.monotonic()

    def on_train_batch_begin(self, step: int, logs: Optional[dict] = None) -> None:
        (number,) = np.random.SeedSequence((self.seed, self.state.steps, distributed.RANK)).generate_state(1)
        paddle.seed(int(number))

    def on_train_batch_end(self, step: int, logs: Optional[dict] = None) -> None:
        state, now = self.state, time.monotonic()
        state.epoch_seconds += now - self.since
        state.waiting_seconds += self.data.waited
        self.since = now
        (accuracy,) = self.model._metrics
        mine = loss_of(logs), float(accuracy.total[0]) - state.hits, int(accuracy.count[0]) - state.images
        logs["losses"], hits, images = zip(*distributed.gather(mine))
        logs["loss"] = sum(logs["losses"]) / len(logs["losses"])
        state.loss_sum += logs["loss"] * sum(images)
        state.hits, state.images = state.hits + sum(hits), state.images + sum(images)
        accuracy.total, accuracy.count = [state.hits], [state.images]
        logs["top1"] = accuracy.accumulate()
        state.step += 1
        state.steps += 1

    def on_epoch_end(self, epoch: int, logs: Optional[dict] = None) -> None:
        state = self.state
        logs["train"] = {
            "loss": state.loss_sum / state.images,
            "top1": state.hits / state.images,
            "images_per_second": state.images / state.epoch_seconds,
            "waiting": state.waiting_seconds / state.epoch_seconds,
        }
        state.end_epoch()


class Thaw(paddle.callbacks.Callback):
    """Trains more layers from the epochs on that the recipe says."""

    def __init__(self, state: RunState, recipe: Recipe):
        super().__init__()
        self.state, self.recipe = state, recipe

    def on_epoch_begin(self, epoch: int, logs: Optional[dict] = None) -> None:
        network, layers = self.model.network, self.recipe.frozen_layers(self.state.epochs)
        if layers == network.frozen:
            return
        network.freeze(layers)
        logger.info("epoch %d: all but the lowest %d layers are trained from now on", self.state.epochs + 1, layers)


class Check(paddle.callbacks.Callback):
    """Stops at a loss that is no number and names the pictures it came from."""

    def __init__(self, state: RunState, data: Epochs, folder: Path):
        super().__init__()
        self.state, self.data, self.folder = state, data, folder

    def on_train_batch_end(self, step: int, logs: Optional[dict] = None) -> None:
        bad = [rank for rank, loss in enumerate(logs["losses"]) if not math.isfinite(loss)]
        if not bad:
            return
        loss, indices = logs["losses"][bad[0]], distributed.gather(self.data.current)[bad[0]]
        names = [self.data.batches[0].samples.pictures.names[i] for i in indices]
        file = self.folder / run_folder.NOT_FINITE
        if not distributed.RANK:
            write_text(file, "".join(f"{name}\n" for name in names))
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise UserError(
            f"the loss is {loss} in epoch {self.state.epochs + 1}, step {self.state.step}; the batch held {shown} "
            f"(all in {file}); what was saved before is kept; try a smaller optimizer.lr or optimizer.clip_norm"
        )


class KeepZeros(paddle.callbacks.Callback):
    """Puts the weights that were 0 at the start back to 0 after every step; going on, they are 0 still."""

    def on_train_begin(self, logs: Optional[dict] = None) -> None:
        network = self.model.network
        self.pruned = [
            (value, (value != 0).astype(value.dtype))
            for name, value in network.named_parameters()
            if prune.is_weight(name, value)
        ]
        zeros = prune.sparsity(run_state.to_arrays(network.state_dict()))
        logger.info("%.1f %% of the weights are 0 and stay so", 100 * zeros)

    def on_train_batch_end(self, step: int, logs: Optional[dict] = None) -> None:
        with paddle.no_grad():
            for value, mask in self.pruned:
                value.multiply_(mask)


class Average(paddle.callbacks.Callback):
    """Lets the network ``Trainer.average`` follow as the exponential moving average of the weights.

    Batch-norm statistics are averaged like weights: so they are, to the first order, those of the averaged
    network; those of the moment belong to weights that are some steps ahead. Where mixed precision (O2) keeps the
    weights in float16, their float32 masters are averaged: most steps are too small for float16 to show.
    """

    def __init__(self, state: RunState, decay: float):
        super().__init__()
        self.state, self.decay = state, decay

    def on_train_batch_end(self, step: int, logs: Optional[dict] = None) -> None:
        share = 1 - ema_decay(self.decay, self.state.steps)
        theirs, masters = self.model.network.state_dict(), self.model._optimizer._master_weights
        with paddle.no_grad():
            for name, value in self.model.average.state_dict().items():
                value.lerp_(masters.get(theirs[name].name, theirs[name]).astype("float32"), share)


class Evaluate(paddle.callbacks.Callback):
    """Evaluates after every epoch with the very loop of ``ppconvmixer eval``.

    ``paddle.Model.evaluate`` would return the loss of the last batch, and with several processes
    each would evaluate batch-norm statistics of its own.
    """

    def __init__(self, state: RunState, samples: Samples, recipe: Recipe, amp: str, wish: StopWish):
        super().__init__()
        self.state, self.samples, self.recipe, self.amp, self.wish = state, samples, recipe, amp, wish

    def on_epoch_end(self, epoch: int, logs: Optional[dict] = None) -> None:
        state, monitor = self.state, self.recipe.train.monitor
        found = self._evaluation(self.model.network)
        state.metrics = judged = found.metrics()
        if self.model.average is not None:
            found = self._evaluation(self.model.average)
            state.ema_metrics = judged = found.metrics()
        if state.improves(judged[monitor], monitor):
            state.best, state.best_epoch, state.best_metrics = judged[monitor], state.epochs + 1, judged
            state.best_ema = self.recipe.train.ema
        logs["judged"] = found

    def _evaluation(self, network: Any) -> Evaluation:
        distributed.average_statistics(network)
        engine = _Interruptible(network, self.amp, self.wish)
        few = network.num_classes <= per_class.SHOWN
        settings = self.recipe.phases()[-1].batch_size, self.recipe.data.workers
        return evaluate(engine, self.samples, *settings, keep_logits=few)


class _Interruptible(Dygraph):
    """Stops between two batches; several processes must go on together, and stop after the next step."""

    def __init__(self, network: Any, amp: str, wish: StopWish):
        super().__init__(network, amp)
        self.wish = wish

    def __call__(self, images: Any) -> np.ndarray:
        if distributed.WORLD == 1:
            self.wish.grant(self.wish.signal)
        return super().__call__(images)


class EarlyStopping(paddle.callbacks.Callback):
    """Stops after ``patience`` epochs without a better one; 0 never stops."""

    def __init__(self, state: RunState, patience: int):
        super().__init__()
        self.state, self.patience = state, patience

    def on_epoch_end(self, epoch: int, logs: Optional[dict] = None) -> None:
        if self.patience and self.state.epochs - self.state.best_epoch >= self.patience:
            logger.info("no better epoch for %d epochs: stopping", self.patience)
            self.model.stop_training = True


class Tell(paddle.callbacks.Callback):
    """Tells a person how the run goes."""

    def __init__(self, state: RunState, data: Epochs):
        super().__init__()
        self.state, self.data, self.epochs = state, data, len(data.counts)
        self.progress: Optional[Progress] = None

    def close(self) -> None:
        """Take the bar off the terminal, however the training ended."""
        if self.progress is not None:
            self.progress.close()

    def on_epoch_begin(self, epoch: int, logs: Optional[dict] = None) -> None:
        if not distributed.RANK:
            batches = self.data.batches[self.state.epochs]
            total = min(len(batches) * batches.global_batch, len(batches.samples))
            left = total - self.state.images
            self.progress = Progress(left, f"epoch {self.state.epochs + 1}/{self.epochs}")

    def on_train_batch_end(self, step: int, logs: Optional[dict] = None) -> None:
        if not distributed.RANK:
            self.progress.advance(len(self.data.current) * distributed.WORLD, loss=loss_of(logs), top1=logs["top1"])

    def on_epoch_end(self, epoch: int, logs: Optional[dict] = None) -> None:
        if distributed.RANK:
            return
        self.progress.close()
        state, train = self.state, logs["train"]
        logger.info(
            "epoch %d/%d: train loss %.4f, top-1 %.2f %%, %.1f img/s; eval %s%s%s",
            *(state.epochs, self.epochs, train["loss"], 100 * train["top1"], train["images_per_second"]),
            _told(state.metrics),
            f"; moving average {_told(state.ema_metrics)}" if state.ema_metrics else "",
            " (best so far)" if state.best_epoch == state.epochs else "",
        )


class Save(paddle.callbacks.Callback):
    """Saves the state after every epoch and every so many minutes, and stops after a step when somebody wants to.

    The last and the best weights, with their cards, are written after the state they are taken
    from, so that a run that is cut off in between can write them again.

    Args:
        facts: what the state shall also say; the size of the curves is added.
    """

    def __init__(
        self, state: RunState, folder: Path, facts: Mapping[str, Any], curves: VisualDL, wish: StopWish, minutes: float
    ):
        super().__init__()
        self.state, self.folder, self.facts, self.curves = state, folder, facts, curves
        self.wish, self.seconds, self.saved = wish, 60 * minutes, time.monotonic()

    def on_train_batch_end(self, step: int, logs: Optional[dict] = None) -> None:
        due = time.monotonic() - self.saved >= self.seconds
        votes = distributed.gather((due, self.wish.signal))
        if votes[0][0]:
            self.save()
        for _, signal in votes:  # all processes stop after the same step
            self.wish.grant(signal)

    def on_epoch_end(self, epoch: int, logs: Optional[dict] = None) -> None:
        self.save()
        export(self.folder, self.model, self.state, self.facts)

    def save(self) -> None:
        """Save the state as it is now; all processes must call this together."""
        for network in filter(None, (self.model.network, self.model.average)):
            distributed.average_statistics(network)
        if not distributed.RANK:
            facts = {key: value for key, value in self.facts.items() if key != "card"}  # long, and made anew
            run_state.save(self.folder, self.model, self.state, {**facts, "curves": self.curves.flush()})
        self.saved = time.monotonic()


def export(folder: Path, model: Trainer, state: RunState, facts: Mapping[str, Any]) -> None:
    """Write the weights of the epoch that just ended as the last, and as the best if they are, with their cards.

    With a moving average, that is the best, while the last are the weights as the optimiser left them;
    the card's ``ema`` says which.
    """
    if distributed.RANK:
        return
    ema = facts["recipe"]["train"]["ema"]
    _export(folder / "last.pdparams", model.network, facts, {**state.metrics, "epoch": state.epochs, "ema": None})
    if state.best_metrics and state.best_epoch == state.epochs:
        best = model.average or model.network
        _export(folder / "best.pdparams", best, facts, {**state.best_metrics, "epoch": state.epochs, "ema": ema})


def _export(path: Path, network: Any, facts: Mapping[str, Any], more: Mapping[str, Any]) -> None:
    checkpoint.write(path, run_state.to_arrays(network.state_dict()))
    about = card.Card(**facts["card"])
    card.write(path, dataclasses.replace(about, facts={**about.facts, **more}))


def _told(metrics: Mapping[str, Any]) -> str:
    return f"loss {metrics['loss']:.4f}, top-1 {100 * metrics['top1']:.2f} %"
