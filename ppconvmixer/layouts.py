"""The names ConvMixer's parameters go by in every published layout, and the way between them.

A layout is three templates. ``i`` counts the blocks from 0, ``d`` is the depth. The framework is a
second matter: torch says ``running_mean``, ``running_var`` and keeps a linear weight as (out, in);
Paddle says ``_mean``, ``_variance`` and keeps it as (in, out).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Optional

import numpy as np

from .checkpoint import State
from .errors import UserError, brief, shown, unknown


@dataclasses.dataclass(frozen=True)
class Layout:
    """Templates of the names of the stem, the blocks and the head."""

    stem: str
    block: str
    head: str
    block_offset: int = 0
    head_offset: int = 0

    def modules(self, depth: int) -> dict[str, str]:
        """Return the name in this layout of every module that has parameters, by our name."""
        names = {f"stem.{j}": f"{self.stem}{j}" for j in (0, 2)}
        for i in range(depth):
            block = self.block.format(i=i + self.block_offset)
            names.update({f"blocks.{i}.{part}": f"{block}.{part}" for part in ("0.fn.0", "0.fn.2", "1", "3")})
        names["head"] = self.head.format(d=depth + self.head_offset)
        return names


OURS = "timm"
LAYOUTS = {
    OURS: Layout("stem.", "blocks.{i}", "head"),
    "official": Layout("", "{i}", "{d}", block_offset=3, head_offset=5),  # also the article's and PaddleViT's
    "paddle-toolbox": Layout("stem.", "blocks.{i}", "classifer.1"),  # spelled so there
    "mmpretrain": Layout("backbone.stem.", "backbone.stages.{i}", "head.fc"),
}
_STATISTICS = {"_mean": "running_mean", "_variance": "running_var"}  # Paddle's name: torch's


@dataclasses.dataclass(frozen=True)
class Translation:
    """A state under our names and in Paddle's form, and how it was found."""

    state: State
    layout: str
    framework: str
    names: Mapping[str, str]
    """Our name of every entry, by the name in the file."""
    left_out: tuple[str, ...]
    """Names in the file that are no part of a ConvMixer."""


def to_ours(state: State) -> Translation:
    """Recognise the layout and the framework by the names and translate to ours.

    Raises:
        UserError: the names are those of no known layout, or of both frameworks at once.
    """
    paddle, torch = (any(n.endswith(f".{s}") for n in state for s in names) for names in zip(*_STATISTICS.items()))
    if paddle and torch:
        raise UserError("the checkpoint mixes Paddle's and torch's names of batch-norm statistics")
    framework = "torch" if torch else "paddle"
    layout = max(LAYOUTS, key=lambda name: len(_match(state, name, framework)))
    names = _match(state, layout, framework)
    if not any(ours.startswith("stem.0.") for ours in names.values()):
        first = ", ".join(brief(name) for name in list(state)[:3]) or "none"
        raise UserError(
            f"this is no ConvMixer checkpoint: its names begin with {first}; known layouts: {', '.join(LAYOUTS)}"
        )
    ours = {ours: _transposed(ours, state[theirs], framework) for theirs, ours in names.items()}
    for name, value in ours.items():
        if not value.size:  # its other axes could claim a network of any size
            raise UserError(f"this is no ConvMixer checkpoint: {name} is empty, of shape {shown(value.shape)}")
    stem, head = ours.get("stem.0.weight"), ours.get("head.weight")
    if np.ndim(stem) != 4 or (head is not None and (head.ndim != 2 or len(head) != len(stem))):
        shapes = " and ".join("none" if value is None else shown(value.shape) for value in (stem, head))
        raise UserError(f"this is no ConvMixer checkpoint: its stem and head have the shapes {shapes}")
    return Translation(ours, layout, framework, names, tuple(n for n in state if n not in names))


def from_ours(state: State, layout: str, framework: str) -> State:
    """Translate our state to the names and the form of ``layout`` and ``framework`` ("paddle" or "torch").

    For torch every batch norm gets the ``num_batches_tracked`` (int64, 0) that strict loading asks for.

    Raises:
        UserError: unknown layout, or an entry that is no part of a ConvMixer.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    names = {ours: theirs for theirs, ours in _names(layout, depth(state), framework)}
    result = {}
    for ours, value in state.items():
        if ours not in names:
            raise UserError(f"{ours} is no part of a ConvMixer; it has no name in the layout {layout}")
        result[names[ours]] = _transposed(ours, value, framework)
        if framework == "torch" and ours.endswith("._variance"):
            result[names[ours].replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return result


def depth(state: State) -> int:
    """Return the number of blocks of a state under our names."""
    return len({name.split(".")[1] for name in state if name.startswith("blocks.")})


def classes(state: State) -> Optional[int]:
    """Return the number of classes of a state under our names; None where it has no head."""
    return state["head.weight"].shape[1] if np.ndim(state.get("head.weight")) == 2 else None


def shape(state: State) -> dict[str, int]:
    """Return what a state under our names says of its network's shape; nothing where it is no complete ConvMixer."""
    stem, mixer = state.get("stem.0.weight"), state.get("blocks.0.0.fn.0.weight")
    if np.ndim(stem) != 4 or np.ndim(mixer) != 4:
        return {}
    return {
        **{"dim": stem.shape[0], "depth": depth(state)},
        **{"kernel_size": mixer.shape[2], "patch_size": stem.shape[2]},
    }


def describe(state: State) -> str:
    """Say in a few words which network a state under our names belongs to."""
    if not (found := shape(state)):
        return "no complete ConvMixer"
    return (
        f"ConvMixer-{found['dim']}/{found['depth']}, kernel {found['kernel_size']}, patch {found['patch_size']}, "
        f"{state['stem.0.weight'].shape[1]} channels, {classes(state) or 0} classes"
    )


def _names(layout: str, depth: int, framework: str) -> Iterator[tuple[str, str]]:
    """Yield (name in the layout, our name) of every parameter and statistic."""
    for ours, theirs in LAYOUTS[layout].modules(depth).items():
        norm = ours.endswith((".2", ".3"))
        for leaf in ("weight", "bias", *(_STATISTICS if norm else ())):
            yield f"{theirs}.{_STATISTICS.get(leaf, leaf) if framework == 'torch' else leaf}", f"{ours}.{leaf}"


def _match(state: State, layout: str, framework: str) -> dict[str, str]:
    """Return our name of every entry that has one, if the state were in ``layout``."""
    depth = 0
    while f"{LAYOUTS[layout].block.format(i=depth + LAYOUTS[layout].block_offset)}.0.fn.0.weight" in state:
        depth += 1
    return {theirs: ours for theirs, ours in _names(layout, depth, framework) if theirs in state}


def _transposed(ours: str, value: np.ndarray, framework: str) -> np.ndarray:
    return value.T if ours == "head.weight" and framework == "torch" else value
