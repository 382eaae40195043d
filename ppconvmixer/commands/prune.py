"""``ppconvmixer prune``: fewer weights, or fewer channels."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from .. import zoo
from ..errors import UserError
from .arguments import add_checkpoint, add_command, positive, say, share
from .inputs import open_checkpoint, read_images
from .outputs import check_target


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, _run, "prune", "make a checkpoint smaller: fewer weights, or fewer channels")
    add_checkpoint(command)
    command.add_argument("target", metavar="DST", help="the .pdparams file to write, with a card beside it")
    how = command.add_mutually_exclusive_group(required=True)
    how.add_argument("--sparsity", type=share, metavar="S", help="set this share of the weights to 0, the least ones")
    how.add_argument("--dim", type=positive, metavar="N", help="keep N channels; needs --data")
    command.add_argument("--data", metavar="DIR|TAR", help="pictures to fit the channels on, of what they are used for")
    command.add_argument("--limit", type=positive, metavar="N", help="so many of them (default: 256)")
    command.add_argument("--overwrite", action="store_true", help="replace DST where it exists")


def _run(options: argparse.Namespace) -> None:
    from .. import prune, run_state

    target = check_target(options, [options.weights], [options.data, options.classes])
    if options.dim and not options.data:
        raise UserError("--data is missing: pictures of the kind the network is used for, a folder or tar archive")
    for flag, value in (("--data", options.data), ("--limit", options.limit)):
        if options.sparsity and value:
            raise UserError(f"{flag} has no effect with --sparsity; leave it out")
    network = open_checkpoint(options)
    model, name = network.create(), network.name
    if options.dim:
        model = prune.narrow(model, options.dim, read_images(options.data, network.input, options.limit or 256))
        name = zoo.spelled(dataclasses.replace(zoo.variant(name), dim=options.dim))
    state = run_state.to_arrays(model.state_dict())
    if options.sparsity:
        state = prune.sparsify(state, options.sparsity)
    prune.write(target, state, name, network)
    count = sum(value.size for key, value in state.items() if not key.endswith(("._mean", "._variance")))
    zeros = f", {100 * prune.sparsity(state):.1f} % of the weights are 0" if options.sparsity else ""
    say(f"{network.path} -> {target}: {name}, {count:,} parameters{zeros}")
