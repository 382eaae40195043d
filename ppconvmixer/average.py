"""The mean of several checkpoints of one network (a model soup)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import card, checkpoint
from .errors import UserError
from .files import sha256
from .trained import Trained


def average(networks: Sequence[Trained]) -> dict[str, np.ndarray]:
    """Return the mean of the weights, and of the norms' running statistics, of several checkpoints, under our names.

    It computes something where all were trained on from the same weights, and is then often better than any of them
    (Wortsman et al. 2022, arXiv 2203.05482); the mean of strangers computes nothing.

    Raises:
        UserError: they are of different networks, not complete, or tell different classes apart.
    """
    first, *others = networks
    for other in others:
        for what in ("name", "num_classes", "classes", "input"):
            mine, theirs = getattr(first, what), getattr(other, what)
            if mine != theirs:
                raise UserError(f"{other.path} differs from {first.path} in its {what}: {theirs}, not {mine}")
    for network in networks:
        network.create()  # names what is missing or of another shape
    states = [network.translation.state for network in networks]
    return {
        name: np.mean([np.asarray(state[name], np.float64) for state in states], axis=0).astype(np.float32)
        for name in states[0]
    }


def write(path: Path, networks: Sequence[Trained]) -> None:
    """Write the mean of several checkpoints with its card, which names them by their SHA-256.

    Raises:
        UserError: as ``average``, or a file cannot be written.
    """
    first = networks[0]
    checkpoint.write(path, average(networks))
    facts = {"average_of": [sha256(network.path) for network in networks]}
    card.write(path, card.Card(first.name, dataclasses.asdict(first.input), first.classes, facts=facts))
