"""What several commands write, and what is found out before the work."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from .. import figures
from ..datasets import PICTURE_SUFFIXES
from ..errors import UserError
from ..files import PathLike


def check_outputs(outputs: Sequence[str], inputs: Sequence[Optional[str]]) -> None:
    """Find out before the work, not after it, that a result cannot be written or would replace an input."""
    from .. import run_folder

    taken = {os.path.realpath(path): path for path in inputs if path}
    folders = {Path(path) for path in taken if os.path.isdir(path)}
    for output in outputs:
        path = Path(os.path.realpath(output))
        if os.path.islink(output):  # the file would take its place
            raise UserError(f"cannot write {output}, which is a link; name the file it leads to, or another")
        if str(path) in taken:
            raise UserError(f"{output} is an input of this command; write to another file")
        if path.exists() and path.suffix.lower() in PICTURE_SUFFIXES and not folders.isdisjoint(path.parents):
            raise UserError(f"{output} may be a picture that this command reads; write to another file")
        if run_folder.holds(path):
            raise UserError(f"{output} is of the training run in {path.parent}; write to another file")
        taken[str(path)] = output
        folder = next((parent for parent in path.parents if parent.exists()), path)
        other = path.exists() and not path.is_file()  # a folder, or a device, which a file would take the place of
        if other or not folder.is_dir() or not os.access(folder, os.W_OK):
            raise UserError(f"cannot write {output}; name a file in a folder you may write to")


def check_picture(path: Optional[str], inputs: Sequence[Optional[str]] = ()) -> None:
    """Find out before the work, not after it, that a picture cannot be drawn to where it should go, if anywhere."""
    if path:
        figures.check(path)
        check_outputs([path], inputs)


def check_new(paths: Sequence[Path], overwrite: bool) -> None:
    """Find out before the work that one of the files to write is there already and is not to be replaced."""
    present = [path for path in paths if path.exists()]
    if present and not overwrite:
        raise UserError(f"{present[0]} exists; choose another name, or replace it with --overwrite")


def check_target(
    options: argparse.Namespace, weights: Sequence[Optional[str]], others: Sequence[Optional[str]] = ()
) -> Path:
    """Return the checkpoint to write, once it is known that it and its card can be written and replace nothing."""
    target = Path(options.target)
    if target.suffix != ".pdparams":
        raise UserError(f"cannot write {target}: name a file ending in .pdparams")
    written = [target, target.with_suffix(".json")]
    check_outputs(list(map(str, written)), [*weights, *cards(weights), *others])
    check_new(written, options.overwrite)
    return target


def cards(weights: Sequence[Optional[PathLike]]) -> list[str]:
    """Return the cards of checkpoints, of those that have one."""
    beside = [Path(path).with_suffix(".json") for path in weights if path and Path(path).is_file()]
    return [str(path) for path in beside if path.is_file()]
