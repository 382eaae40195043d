"""``ppconvmixer inspect``: what a recipe will do, and what a network is and does."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from . import distributed, zoo
from .arguments import add_command, add_recipe, check_picture, natural, positive, say
from .errors import UserError


def add(commands: Any) -> None:
    """Add the command, with a command of its own for everything there is to see."""
    command = commands.add_parser(
        "inspect", help="look at a recipe, a network or a run", description="Look at a recipe, a network or a run."
    )
    aspects = command.add_subparsers(dest="aspect", metavar="WHAT", required=True)
    command = add_command(aspects, _schedule, "schedule", "show the learning rate of every layer over a run")
    add_recipe(command)
    command.add_argument("--pictures", type=positive, metavar="N", help="assume N training pictures, with no data")
    command.add_argument("--output", metavar="schedule.png", help="draw it")
    command.add_argument("--json", action="store_true", help="print figures for programs in place of the table")
    _add_design_space(aspects)


def _schedule(options: argparse.Namespace) -> None:
    from . import phases, rates
    from . import recipe as recipes
    from .finetune import open_data

    recipe = recipes.load(options.config, options.override)
    check_picture(options.output, [options.config])
    samples = range(options.pictures) if options.pictures else open_data(recipe)[0]
    facts = rates.describe(recipe, phases.create(recipe, lambda _: samples).counts)
    if options.output:
        rates.draw(facts, options.output)
    say(json.dumps(facts) if options.json else rates.table(facts))


# --- design-space ---------------------------------------------------------------------------------


def _add_design_space(aspects: Any) -> None:
    command = add_command(
        aspects, _design_space, "design-space", "compare networks: what they cost here, and how accurate they become"
    )
    for name, what, default in (
        ("dim", "widths of a grid of candidates", []),
        ("depth", "their depths", []),
        ("kernel", "their kernel sizes (default: 5)", [5]),
        ("patch", "their patch sizes (default: 2)", [2]),
    ):
        command.add_argument(f"--{name}", type=positive, nargs="+", default=default, metavar="N", help=what)
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
    command.add_argument("--eta", type=int, choices=(2, 3, 4), default=2, help="keep one of so many (default: 2)")
    command.add_argument(
        "--finalists", type=positive, default=3, metavar="N", help="as long as N are left (default: 3)"
    )
    command.add_argument(
        "--runs", default="runs/design-space", metavar="DIR",
        help="folder of the runs; what is there is not repeated, and what was begun goes on (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--tolerance", type=float, default=5.0, metavar="POINTS",
        help="accuracy that the light recommendation may lose (default: 5)",
    )  # fmt: skip
    limits = command.add_mutually_exclusive_group()
    limits.add_argument("--limit-ms", type=float, metavar="MS", help="networks that take no longer for one picture")
    limits.add_argument("--limit-parameters", type=positive, metavar="N", help="or have no more parameters")
    limits.add_argument("--limit-macs", type=positive, metavar="N", help="or no more multiply-accumulates")
    command.add_argument("--output", metavar="front.png", help="draw it")
    command.add_argument("--json", action="store_true", help="print figures for programs in place of the table")


def _design_space(options: argparse.Namespace) -> None:
    from . import recipe as recipes
    from .finetune import count_classes, open_data
    from .insight import design_space as space
    from .insight import design_space_page as page
    from .insight.trials import Trials

    if bool(options.dim) != bool(options.depth) or not (options.dim or options.network):
        raise UserError("a grid of candidates needs --dim and --depth; single ones are named with --network")
    if not options.config and (options.budget or options.override):
        raise UserError("--budget and -o need a recipe to train by; give one with -c")
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
    names = [*space.grid(options.dim, options.depth, options.kernel, options.patch), *options.network]
    candidates = space.shapes(names, spec, classes)
    facts = space.describe(candidates, _limit(options), options.rounds, tournament)
    if options.output:
        page.draw(facts, options.output)
    say(json.dumps(facts) if options.json else page.table(facts))


def _limit(options: argparse.Namespace) -> Any:
    """Return what counts as cost: what is limited, or else the latency, or, where that is not measured, the MACs."""
    from .insight.design_space import Limit

    if options.limit_parameters:
        return Limit("parameters", options.limit_parameters)
    if options.limit_macs:
        return Limit("macs", options.limit_macs)
    if options.limit_ms is None:
        return Limit("latency_ms" if options.rounds else "macs")
    if not options.limit_ms > 0:
        raise UserError(f"--limit-ms is {options.limit_ms}; want more than 0")
    if not options.rounds:
        raise UserError("--limit-ms needs measured times; give --rounds 1 or more")
    return Limit("latency_ms", options.limit_ms)
