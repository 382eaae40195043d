"""``ppconvmixer inspect``: what a recipe will do, and what a network is and does."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .arguments import add_command, add_recipe, check_picture, natural, positive, say


def add(commands: Any) -> None:
    """Add the command, with a command of its own for everything there is to see."""
    command = commands.add_parser(
        "inspect", help="look at a recipe, a network or a run", description="Look at a recipe, a network or a run."
    )
    aspects = command.add_subparsers(dest="aspect", metavar="WHAT", required=True)
    _add_schedule(aspects)
    _add_diagnose(aspects)


def _add_schedule(aspects: Any) -> None:
    command = add_command(aspects, _schedule, "schedule", "show the learning rate of every layer over a run")
    add_recipe(command)
    command.add_argument("--pictures", type=positive, metavar="N", help="assume N training pictures, with no data")
    command.add_argument("--output", metavar="schedule.png", help="draw it")
    command.add_argument("--json", action="store_true", help="print figures for programs in place of the table")


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


def _add_diagnose(aspects: Any) -> None:
    command = add_command(aspects, _diagnose, "diagnose", "name what ails a run of finetune, and what to change")
    command.add_argument("folder", metavar="RUN", help="its folder; or a folder or file of VisualDL records, for less")
    command.add_argument(
        "--data", metavar="DIR|TAR", help="where its pictures are now (default: where its recipe says they are)"
    )
    command.add_argument(
        "--limit", type=natural, default=2000, metavar="N",
        help="judge the labels of N training pictures, spread evenly (default: 2000); 0 of all",
    )  # fmt: skip
    command.add_argument("--output", metavar="diagnosis.png", help="draw its curves")
    command.add_argument("--json", action="store_true", help="print what is found for programs in place of the table")


def _diagnose(options: argparse.Namespace) -> None:
    from .insight import diagnose, evidence

    check_picture(options.output, [options.folder])
    run = evidence.gather(Path(options.folder), options.data, options.limit)
    facts = diagnose.describe(run)
    if options.output:
        diagnose.draw(run, facts, options.output)
    say(json.dumps(facts, allow_nan=False) if options.json else diagnose.table(facts))
