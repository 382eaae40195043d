"""What several commands share: the arguments they take, and how they speak."""

from __future__ import annotations

import argparse
from typing import Any

from .. import distributed, layouts, views
from ..engines import ENGINES
from ..errors import brief, printable


def add_command(commands: Any, run: Any, name: str, summary: str) -> argparse.ArgumentParser:
    """Add a command that ``run`` does with the parsed options, and return its parser."""
    command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    command.set_defaults(run=run, parser=command)
    return command


def add_recipe(
    command: argparse.ArgumentParser, required: bool = True, help: str = "a YAML file, or the name of a shipped one"
) -> None:
    """Add a recipe, and what is changed in it."""
    command.add_argument("-c", "--config", metavar="RECIPE", required=required, help=help)
    command.add_argument(
        *("-o", "--override"), metavar="KEY=VALUE", nargs="+", action="extend", default=[],
        help="change a setting, such as train.epochs=3",
    )  # fmt: skip


def add_checkpoint(command: argparse.ArgumentParser, also: str = "") -> None:
    """Add what names a checkpoint; ``also`` says what else ``--model`` may be."""
    command.add_argument(
        "--model", metavar="NAME", help=f"a model of the zoo (default: what the checkpoint's card says){also}"
    )
    command.add_argument(
        "--weights",
        metavar="FILE",
        help="a checkpoint in any layout; or 'pretrained' for the model's own, shipped or downloaded once; "
        f"or the one published as {', '.join(layouts.LAYOUTS)}",
    )
    command.add_argument(
        "--classes", metavar="FILE", help="names of the classes, one a line (default: the checkpoint's card)"
    )


def add_network(command: argparse.ArgumentParser) -> None:
    """Add what names a network to run, and how it is run."""
    add_checkpoint(command, " or a file that export wrote, which needs no weights")
    command.add_argument(
        "--backend", choices=("pil", "cv2"), default="pil", help="decode and resize with Pillow (exact) or OpenCV"
    )
    command.add_argument("--engine", choices=("auto", *ENGINES), default="auto", help="what runs the network")


def add_views(command: argparse.ArgumentParser) -> None:
    """Add how a picture is seen."""
    command.add_argument(
        "--tta", metavar="VIEWS", nargs="?", const=views.USUAL, default="1",
        help="average the probabilities over views of every picture: scales, and flip for each mirrored as well; "
        f"alone it means {views.USUAL}",
    )  # fmt: skip


def add_results(command: argparse.ArgumentParser, name: str) -> None:
    """Add where the figures of a command go."""
    command.add_argument("--output", metavar=f"{name}.png", help="draw them")
    command.add_argument("--json", action="store_true", help="print figures for programs in place of the table")


# --- what argparse turns texts into, or refuses by its ArgumentTypeError ------------------------------


def positive(text: str) -> int:
    """Return a whole number from 1 on."""
    number = natural(text)
    if not number:
        raise argparse.ArgumentTypeError("want 1 or more")
    return number


def natural(text: str) -> int:
    """Return a whole number from 0 on."""
    if not text.isdecimal() or len(text) > 12:
        raise argparse.ArgumentTypeError(f"want a whole number of at most 12 digits, got {brief(repr(text))}")
    return int(text)


def share(text: str) -> float:
    """Return a number between 0 and 1."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 1e-9 <= number <= 1 - 1e-9:
        raise argparse.ArgumentTypeError(f"want a number between 0 and 1, got {text!r}")
    return number


# --- how they speak -----------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print a result, from the first process only."""
    if not distributed.RANK:
        print("\n".join(map(printable, text.split("\n"))))
