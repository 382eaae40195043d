"""Optimisers, and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .recipe import Recipe


def lr_factor(name: str, step: int, total: int, warmup: int = 0) -> float:
    """Return the share of the largest learning rate that step ``step`` (from 0) of ``total`` takes.

    ``onecycle`` is the official ConvMixer schedule, piecewise linear through (0, 0), (2/5, 1),
    (4/5, 1/20), (1, 0), read at the end of the step as there. ``cosine`` falls from 1 to 0 after a
    linear rise over ``warmup`` steps; ``constant`` stays at 1 after it.
    """
    if name == "onecycle":
        return float(np.interp((step + 1) / total, [0, 2 / 5, 4 / 5, 1], [0, 1, 1 / 20, 0]))
    if step < warmup:
        return (step + 1) / warmup
    if name == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / max(total - warmup, 1), 1)))


def create_optimizer(recipe: Recipe, network: Any, steps_per_epoch: int) -> Any:
    """Return Paddle's optimiser for ``network`` with the recipe's schedule, which moves once a step."""
    import paddle

    settings, schedule = recipe.optimizer, recipe.schedule
    total = recipe.train.epochs * steps_per_epoch
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    common = {
        "learning_rate": paddle.optimizer.lr.LambdaDecay(
            settings.lr, lambda step: lr_factor(schedule.name, step, total, warmup)
        ),
        "grad_clip": paddle.nn.ClipGradByGlobalNorm(settings.clip_norm) if settings.clip_norm else None,
    }
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
    for parameter in network.parameters():
        if parameter.name not in decayed:  # parameter groups would say it better, but paddle.Model refuses them
            parameter.regularizer = paddle.regularizer.L2Decay(0.0)
    common.update(parameters=network.parameters(), weight_decay=settings.weight_decay or None)
    if settings.name == "adam":
        return paddle.optimizer.Adam(epsilon=settings.epsilon, **common)
    return paddle.optimizer.Momentum(momentum=0.9, **common)
