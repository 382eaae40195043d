"""Optimisers, and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .recipe import Recipe, Schedule


def lr_factor(schedule: Schedule, step: int, counts: Sequence[int]) -> float:
    """Return the share of the largest learning rate that step ``step`` (from 0) of a run takes.

    ``onecycle`` is the official ConvMixer schedule, piecewise linear through (0, 0), (2/5, 1),
    (4/5, 1/20), (1, 0), read at the end of the step as there. The others rise linearly over the
    warm-up, to 1 at its last step; then ``cosine`` falls to 0, ``constant`` stays, and ``step`` is
    multiplied by gamma at every milestone.

    Args:
        counts: steps of every epoch. Where they differ, onecycle and cosine go by steps, while
            the warm-up and the milestones take the epochs they name.
    """
    total = sum(counts)
    if schedule.name == "onecycle":
        return float(np.interp((step + 1) / total, [0, 2 / 5, 4 / 5, 1], [0, 1, 1 / 20, 0]))
    whole, part = divmod(schedule.warmup_epochs, 1)
    warmup = sum(counts[: int(whole)]) + (round(part * counts[int(whole)]) if part else 0)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "step":
        epoch = bisect.bisect_right(list(itertools.accumulate(counts)), step)
        falls = epoch // schedule.every if schedule.every else bisect.bisect_right(schedule.milestones, epoch)
        return schedule.gamma**falls
    return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / max(total - warmup, 1), 1)))


def ema_decay(decay: float, step: int) -> float:
    """Return the share of the old average that stays in it after ``step`` steps (1 after the first).

    It rises to ``decay`` as (1 + step) / (10 + step), as in TensorFlow's ``ExponentialMovingAverage``: the
    average is over the last tenth of the run so far, and what the network started from is soon forgotten.
    """
    return min(decay, (1 + step) / (10 + step))


def layer_rate(recipe: Recipe, layer: int, depth: int) -> float:
    """Return the learning rate of a layer (see ``model.layer_id``) by that of the schedule, which the head takes."""
    return recipe.finetune.layer_decay ** (depth + 1 - layer)


def create_optimizer(recipe: Recipe, network: Any, counts: Sequence[int]) -> Any:
    """Return Paddle's optimiser for ``network`` with the recipe's schedule, which moves once a step.

    Args:
        counts: steps of every epoch.
    """
    import paddle

    from .gradients import Gradients
    from .model import layer_id

    settings, counts = recipe.optimizer, tuple(counts)
    common = {
        "learning_rate": paddle.optimizer.lr.LambdaDecay(
            settings.lr, lambda step: lr_factor(recipe.schedule, step, counts)
        ),
        "grad_clip": Gradients(settings.clip_norm),
    }
    # Parameter groups would say the following better, but paddle.Model refuses them.
    for name, parameter in network.named_parameters():
        layer = layer_id(name, len(network.blocks))
        parameter.optimize_attr["learning_rate"] = layer_rate(recipe, layer, len(network.blocks))
    # Biases and norms, the tensors of one axis, are not decayed.
    decayed = {p.name for p in network.parameters() if p.ndim > 1}
    if settings.name == "adamw":
        return paddle.optimizer.AdamW(
            parameters=network.parameters(),
            weight_decay=settings.weight_decay,
            epsilon=settings.epsilon,
            apply_decay_param_fun=decayed.__contains__,
            **common,
        )
    if settings.name == "lamb":  # what is not decayed is not adapted to its norm either, and moves as with adam
        return paddle.optimizer.Lamb(
            parameters=network.parameters(),
            lamb_weight_decay=settings.weight_decay,
            epsilon=settings.epsilon,
            exclude_from_weight_decay_fn=lambda parameter: parameter.name not in decayed,
            **common,
        )
    for parameter in network.parameters():
        if parameter.name not in decayed:
            parameter.regularizer = paddle.regularizer.L2Decay(0.0)
    common.update(parameters=network.parameters(), weight_decay=settings.weight_decay or None)
    if settings.name == "adam":
        return paddle.optimizer.Adam(epsilon=settings.epsilon, **common)
    return paddle.optimizer.Momentum(momentum=0.9, **common)
