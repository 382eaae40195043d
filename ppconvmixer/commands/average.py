"""``ppconvmixer average``: the mean of several checkpoints."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import UserError
from .arguments import add_command, say
from .outputs import check_target


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, _run, "average", "write the mean of several checkpoints")
    command.add_argument("sources", nargs="+", metavar="SRC", help="checkpoints of the same network, with their cards")
    command.add_argument("target", metavar="DST", help="the .pdparams file to write, with a card beside it")
    command.add_argument("--model", metavar="NAME", help="a model of the zoo (default: what their cards say)")
    command.add_argument("--overwrite", action="store_true", help="replace DST where it exists")


def _run(options: argparse.Namespace) -> None:
    from .. import average
    from ..trained import Trained

    target = check_target(options, options.sources)
    if len(options.sources) < 2:
        raise UserError("name two checkpoints or more, and the file to write last")
    average.write(target, [Trained(source, options.model) for source in options.sources])
    say(f"the mean of {len(options.sources)} checkpoints -> {target}")
