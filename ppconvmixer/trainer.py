"""A step of training, as ``paddle.Model`` has it and as a recipe may ask for it."""

from __future__ import annotations

import math
from typing import Any, Callable, Optional

import numpy as np
import paddle

from .distill import Teacher
from .model import ConvMixer, layer_id, layer_name


class Trainer(paddle.Model):
    """A ``paddle.Model`` whose step is one or several batches of equal size, see ``phases.Epochs``.

    With several, their gradients add up to that of the mean loss over all their pictures, and the
    optimiser moves once. Batch norm takes every batch by itself. Paddle's ``accumulate_grad_batches``
    would take the sum, and count every batch as a step for the schedule.

    Args:
        average: a network of the same kind that is to hold the moving average of the weights.
        teacher: sees every batch before the network does; the loss may ask it.
    """

    share = 1.0
    """Of a batch in the loss of the step."""

    def __init__(self, network: ConvMixer, average: Optional[ConvMixer] = None, teacher: Optional[Teacher] = None):
        super().__init__(network)
        self.average, self.teacher = average, teacher

    def prepare(self, optimizer: Any, loss: Callable[..., paddle.Tensor], metric: Any, amp: str) -> None:
        """Set what ``fit`` needs; ``loss`` is the mean over a batch."""
        super().prepare(optimizer, lambda *outputs: loss(*outputs) * self.share, metric, amp_configs=amp)

    def train_batch(
        self, inputs: list[np.ndarray], labels: Optional[list[np.ndarray]] = None, update: bool = True
    ) -> tuple[list[np.ndarray], list[Any]]:
        """Train on the batches along the first axis of ``inputs`` and ``labels``; return loss and metrics."""
        batches = list(zip(*inputs, *labels))
        self.share = 1 / len(batches)
        total = np.float32(0)
        for number, (images, *targets) in enumerate(batches, 1):
            if self.teacher is not None:
                self.teacher.look(images)
            (loss,), metrics = super().train_batch([images], targets, update=number == len(batches))
            total = total + loss
        return [total], metrics

    def gradient_norm(self) -> Optional[float]:
        """Return the norm of the gradients of the last step before any cut.

        None where it is not finite: mixed precision scales the loss until that happens, and leaves the step out.
        """
        gradients = self._optimizer._grad_clip
        norm, gradients.norm = gradients.norm, None
        return float(norm) if norm is not None and math.isfinite(norm) else None

    def layer_norms(self) -> dict[str, float]:
        """Return the norms of the gradients of the last step by layer (see ``model.layer_name``), without frozen ones.

        Empty where one is not finite, as in ``gradient_norm``.
        """
        squares = self._optimizer._grad_clip.squares
        if not squares:
            return {}
        depth = len(self.network.blocks)
        layers = {parameter.name: layer_id(name, depth) for name, parameter in self.network.named_parameters()}
        values = paddle.stack(list(squares.values())).numpy().astype(np.float64)
        sums = np.bincount([layers[name] for name in squares], values, depth + 2)
        if not np.isfinite(sums).all():
            return {}
        return {layer_name(layer, depth): math.sqrt(sums[layer]) for layer in sorted({layers[n] for n in squares})}
