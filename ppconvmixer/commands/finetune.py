"""``ppconvmixer finetune``: train a recipe into a run folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import UserError
from .arguments import add_command, add_recipe, say


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, _run, "finetune", "train a recipe, from scratch or from a checkpoint")
    add_recipe(command)
    command.add_argument("--output", metavar="DIR", help="the run folder (default: runs/NAME-OF-THE-RECIPE)")
    command.add_argument("--resume", action="store_true", help="go on with the run there where it was last saved")
    command.add_argument(
        "--allow-changes", action="store_true", help="with --resume: go on although recipe or pictures changed"
    )
    command.add_argument("--overwrite", action="store_true", help="replace the run there")


def _run(options: argparse.Namespace) -> None:
    from .. import recipe as recipes
    from ..finetune import finetune

    if options.resume and options.overwrite:
        raise UserError("--resume goes on with a run and --overwrite replaces it; give one of them")
    if options.allow_changes and not options.resume:
        raise UserError("--allow-changes says what --resume may put up with; give both")
    recipe = recipes.load(options.config, options.override)
    folder = Path(options.output or Path("runs") / Path(options.config).stem)
    result = finetune(recipe, folder, options.resume, options.overwrite, options.allow_changes)
    say(
        f"best epoch {result['best_epoch']}: top-1 {100 * result['top1']:.2f} %, loss {result['loss']:.4f} "
        f"on {result['samples']} pictures; weights: {result['weights']['path']}"
    )
