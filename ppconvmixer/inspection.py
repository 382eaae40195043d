"""``ppconvmixer inspect``: what a recipe will do, and what a network is and does."""

from __future__ import annotations

import argparse
import json
from typing import Any, Optional

from .arguments import (
    add_checkpoint,
    add_command,
    add_recipe,
    check_picture,
    open_checkpoint,
    positive,
    read_images,
    read_labelled,
    say,
    share,
)
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
    _add_receptive_field(aspects)
    _add_robustness(aspects)
    _add_kernels(aspects)
    _add_mixing(aspects)


def _add_network(command: argparse.ArgumentParser, name: str, pictures: int = 0) -> None:
    """Add what names a network, and by how many pictures it is judged if by any, and where its figures go."""
    add_checkpoint(command)
    if pictures:
        command.add_argument("--data", metavar="DIR|TAR", required=True, help="pictures: a folder or tar archive")
        summary = f"take N of them, from all over (default: {pictures})"
        command.add_argument("--limit", type=positive, default=pictures, metavar="N", help=summary)
    command.add_argument("--output", metavar=f"{name}.png", help="draw it")
    command.add_argument("--json", action="store_true", help="print figures for programs in place of the table")


def _inputs(options: argparse.Namespace) -> list[Optional[str]]:
    """Return the files that a command reads."""
    return [getattr(options, name, None) for name in ("weights", "classes", "data")]


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


def _add_receptive_field(aspects: Any) -> None:
    name = "receptive-field"
    command = add_command(aspects, _receptive_field, name, "show how far every layer can see, and how far it does")
    _add_network(command, name, pictures=32)
    summary = "of the gradient, that the effective field holds (default: 0.95)"
    command.add_argument("--share", type=share, default=0.95, metavar="S", help=summary)
    summary = "mirror the pictures at their edges up to this side (default: what the field needs, up to 3 times theirs)"
    command.add_argument("--size", type=positive, metavar="PIXELS", help=summary)


def _receptive_field(options: argparse.Namespace) -> None:
    check_picture(options.output, _inputs(options))
    network = open_checkpoint(options)
    images = read_images(options.data, network.input, options.limit)
    from .insight import receptive_field

    model = network.create()
    mass = receptive_field.gradients(model, images, options.size)
    facts = {"model": network.name, "pictures": len(images), **receptive_field.describe(model, mass, options.share)}
    if options.output:
        receptive_field.draw(facts, mass, options.output)
    say(json.dumps(facts) if options.json else receptive_field.table(facts))


def _add_robustness(aspects: Any) -> None:
    command = add_command(aspects, _robustness, "robustness", "measure what shifts, scales and rotations change")
    _add_network(command, "robustness", pictures=200)
    command.add_argument(
        "--against", metavar="NAME", help="compare with a ResNet of paddle.vision.models, such as resnet18"
    )
    command.add_argument(
        "--against-weights", metavar="FILE", help="its weights as Paddle saves them (default: random ones)"
    )


def _robustness(options: argparse.Namespace) -> None:
    check_picture(options.output, [*_inputs(options), options.against_weights])
    if options.against_weights and not options.against:
        raise UserError("--against is missing: the network that --against-weights are of")
    network = open_checkpoint(options)
    images, labels = read_labelled(options.data, network, options.limit)
    from .insight import robustness

    networks = [
        robustness.of_convmixer(network.name, network.create()),
        robustness.untrained(network.name, images),
    ]
    if options.against:
        networks.append(robustness.of_paddle(options.against, images, options.against_weights))
    facts = robustness.describe(networks, images, labels)
    if options.output:
        robustness.draw(facts, options.output)
    say(json.dumps(facts) if options.json else robustness.table(facts))


def _add_kernels(aspects: Any) -> None:
    command = add_command(aspects, _kernels, "kernels", "show the filters and kernels of a network")
    _add_network(command, "kernels")


def _kernels(options: argparse.Namespace) -> None:
    check_picture(options.output, _inputs(options))
    network = open_checkpoint(options)
    from .insight import kernels

    model = network.create()
    facts = {"model": network.name, **kernels.describe(model)}
    if options.output:
        kernels.draw(facts, model, options.output)
    say(json.dumps(facts) if options.json else kernels.table(facts))


def _add_mixing(aspects: Any) -> None:
    summary = "measure how alike positions, channels and layers are, and what blocks add"
    command = add_command(aspects, _mixing, "mixing", summary)
    _add_network(command, "mixing", pictures=32)


def _mixing(options: argparse.Namespace) -> None:
    check_picture(options.output, _inputs(options))
    network = open_checkpoint(options)
    images = read_images(options.data, network.input, options.limit)
    from .insight import diversity

    facts = {"model": network.name, **diversity.describe(network.create(), images)}
    if options.output:
        diversity.draw(facts, options.output)
    say(json.dumps(facts) if options.json else diversity.table(facts))
