"""What differs when ``python -m paddle.distributed.launch`` runs several processes; one process works the same way."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

RANK = int(os.environ.get("PADDLE_TRAINER_ID", "0"))
WORLD = int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def start() -> None:
    """Join the other processes; without them, do nothing."""
    if WORLD > 1:
        import paddle.distributed

        if not paddle.distributed.is_initialized():
            paddle.distributed.init_parallel_env()


def gather(value: Any) -> list[Any]:
    """Return the value of every process, by rank, to every process."""
    if WORLD == 1:
        return [value]
    import paddle.distributed

    values: list[Any] = []
    paddle.distributed.all_gather_object(values, value)
    return values


def average_statistics(network: Any) -> None:
    """Replace batch-norm's running means and variances by their mean over the processes.

    Every process sees other pictures, so its statistics drift from the others'; without this, each
    rank evaluates, and rank 0 saves, another model.
    """
    if WORLD == 1:
        return
    names = [n for n in network.state_dict() if n.endswith(("._mean", "._variance"))]
    ours = {n: network.state_dict()[n].numpy() for n in names}
    everyone = gather(ours)
    for name in names:
        network.state_dict()[name].set_value(np.mean([state[name] for state in everyone], axis=0, dtype=np.float32))
