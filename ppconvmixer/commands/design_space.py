"""``ppconvmixer inspect design-space``: many networks compared, by cost and by accuracy."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from .. import distributed, zoo
from ..errors import UserError
from .arguments import add_command, add_recipe, add_results, natural, positive, say
from .outputs import check_picture

_TRAINING = {"eta": 2, "finalists": 4, "tolerance": 5.0, "runs": "runs/design-space"}  # what --budget takes, by default


def add(aspects: Any) -> None:
    """Add the command to those of ``inspect``."""
    command = add_command(
        aspects, _run, "design-space", "compare networks: what they cost here, and how accurate they become"
    )
    for name, what in (
        ("dim", "widths of a grid of candidates"),
        ("depth", "their depths"),
        ("kernel", "their kernel sizes (default: 5)"),
        ("patch", "their patch sizes (default: 2)"),
    ):
        command.add_argument(f"--{name}", type=positive, nargs="+", default=[], metavar="N", help=what)
    command.add_argument(
        "--network", nargs="+", default=[], metavar="NAME",
        help="more candidates: models of the zoo, or shapes spelled out, such as convmixer_192_8_ks5_p2",
    )  # fmt: skip
    command.add_argument(
        "--size", type=positive, metavar="N", help="pixels of the pictures (default: 32, or a recipe's)"
    )
    command.add_argument("--rounds", type=natural, default=5, metavar="N", help="samples of every speed; 0 times none")
    add_recipe(command, required=False)
    command.add_argument("--budget", type=positive, metavar="EPOCHS", help="train the candidates, so long in all")
    command.add_argument(
        "--eta", type=int, choices=(2, 3, 4), help=f"keep one of so many (default: {_TRAINING['eta']})"
    )
    command.add_argument(
        "--finalists", type=positive, metavar="N", help=f"until N are left (default: {_TRAINING['finalists']})"
    )
    command.add_argument(
        "--runs", metavar="DIR",
        help="folder of the runs; what is there is not repeated, and what was begun goes on "
        f"(default: {_TRAINING['runs']})",
    )  # fmt: skip
    command.add_argument(
        "--tolerance", type=float, metavar="POINTS",
        help=f"accuracy that the light recommendation may lose (default: {_TRAINING['tolerance']:g})",
    )  # fmt: skip
    limits = command.add_mutually_exclusive_group()
    limits.add_argument("--limit-ms", type=float, metavar="MS", help="networks that take no longer for one picture")
    limits.add_argument("--limit-parameters", type=positive, metavar="N", help="or have no more parameters")
    limits.add_argument("--limit-macs", type=positive, metavar="N", help="or no more multiply-accumulates")
    add_results(command, "front")


def _run(options: argparse.Namespace) -> None:
    from .. import recipe as recipes
    from ..finetune import count_classes, open_data
    from ..insight import design_space as space
    from ..insight import design_space_page as page
    from ..insight.trials import Trials

    if bool(options.dim) != bool(options.depth) or not (options.dim or options.network):
        raise UserError("a grid of candidates needs --dim and --depth; single ones are named with --network")
    if not options.dim and (options.kernel or options.patch):
        raise UserError("--kernel and --patch are of a grid of candidates, which needs --dim and --depth")
    if not options.config and (options.budget or options.override):
        raise UserError("--budget and -o need a recipe to train by; give one with -c")
    for name, usual in _TRAINING.items():
        if getattr(options, name) is None:
            setattr(options, name, usual)
        elif not options.budget:
            raise UserError(f"--{name} has no effect without --budget, by which candidates are trained; leave it out")
    if options.config and options.size:
        raise UserError("the recipe says how large the pictures are; give -o input.size=N in place of --size")
    if not 0 <= options.tolerance <= 100:
        raise UserError(f"--tolerance is {options.tolerance}; want 0 to 100 points of accuracy")
    if distributed.WORLD > 1:
        raise UserError("candidates are compared in a single process; start the command without a launcher")
    check_picture(options.output, [options.config])
    spec, classes, tournament = dataclasses.replace(zoo.CIFAR10, size=options.size or zoo.CIFAR10.size), 10, None
    if options.config:
        recipe = recipes.load(options.config, options.override)
        data = open_data(recipe)
        spec, classes = recipe.input_spec(), count_classes(data[0])
        if options.budget:
            trials, share = Trials(recipe, data, Path(options.runs)), options.tolerance / 100
            tournament = space.Tournament(trials, options.budget, options.eta, options.finalists, share)
    grid = space.grid(options.dim, options.depth, options.kernel or [5], options.patch or [2])
    names = [*grid, *options.network]
    candidates = space.shapes(names, spec, classes)
    facts = space.describe(candidates, _limit(options), options.rounds, tournament)
    if options.output:
        page.draw(facts, options.output)
    say(json.dumps(facts) if options.json else page.table(facts))


def _limit(options: argparse.Namespace) -> Any:
    """Return what counts as cost: what is limited, or else the latency, or, where that is not measured, the MACs."""
    from ..insight.design_space import Limit

    if options.limit_parameters:
        return Limit("parameters", options.limit_parameters)
    if options.limit_macs:
        return Limit("macs", options.limit_macs)
    if options.limit_ms is None:
        return Limit("latency_ms" if options.rounds else "macs")
    if not 0 < options.limit_ms < math.inf:
        raise UserError(f"--limit-ms is {options.limit_ms}; want a number above 0")
    if not options.rounds:
        raise UserError("--limit-ms needs measured times; give --rounds 1 or more")
    return Limit("latency_ms", options.limit_ms)
