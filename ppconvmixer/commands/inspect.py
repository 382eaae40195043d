"""``ppconvmixer inspect``: what a recipe will do, and what a network is and does."""

from __future__ import annotations

import argparse
import functools
import json
import logging
from pathlib import Path
from typing import Any, Optional

from ..errors import UserError
from . import design_space
from .arguments import add_checkpoint, add_command, add_recipe, add_results, natural, positive, say, share
from .inputs import open_checkpoint, read_images, read_labelled, read_pictures
from .outputs import check_picture

logger = logging.getLogger("ppconvmixer")


def add(commands: Any) -> None:
    """Add the command, with a command of its own for everything there is to see."""
    command = commands.add_parser(
        "inspect", help="look at a recipe, a network or a run", description="Look at a recipe, a network or a run."
    )
    aspects = command.add_subparsers(dest="aspect", metavar="WHAT", required=True)
    _add_schedule(aspects)
    _add_diagnose(aspects)
    _add_complexity(aspects)
    _add_features(aspects)
    _add_gradcam(aspects)
    _add_kernels(aspects)
    _add_receptive_field(aspects)
    _add_mixing(aspects)
    _add_robustness(aspects)
    design_space.add(aspects)


def _add_network(command: argparse.ArgumentParser, name: str, pictures: int = 0) -> None:
    """Add what names a network, and by how many pictures it is judged if by any, and where its figures go."""
    add_checkpoint(command)
    if pictures:
        command.add_argument("--data", metavar="DIR|TAR", required=True, help="pictures: a folder or tar archive")
        summary = f"take N of them, from all over (default: {pictures})"
        command.add_argument("--limit", type=positive, default=pictures, metavar="N", help=summary)
    add_results(command, name)


def _inputs(options: argparse.Namespace) -> list[Optional[str]]:
    """Return the files that a command reads."""
    return [getattr(options, name, None) for name in ("weights", "classes", "data")]


def _add_schedule(aspects: Any) -> None:
    command = add_command(aspects, _schedule, "schedule", "show the learning rate of every layer over a run")
    add_recipe(command)
    command.add_argument("--pictures", type=positive, metavar="N", help="assume N training pictures, with no data")
    add_results(command, "schedule")


def _schedule(options: argparse.Namespace) -> None:
    from .. import phases, rates
    from .. import recipe as recipes
    from ..finetune import open_data

    recipe = recipes.load(options.config, options.override)
    check_picture(options.output, [options.config])
    samples = range(options.pictures) if options.pictures else open_data(recipe)[0]
    facts = rates.describe(recipe, phases.create(recipe, lambda _: samples).counts)
    if options.output:
        rates.draw(facts, options.output)
    say(json.dumps(facts) if options.json else rates.table(facts))


def _add_features(aspects: Any) -> None:
    command = add_command(aspects, _features, "features", "show what every block makes of a picture")
    add_checkpoint(command)
    command.add_argument("image", metavar="IMAGE")
    command.add_argument(
        "--blocks", type=int, nargs="+", metavar="N", help="these, from 0, or from -1 back (default: eight of them)"
    )
    command.add_argument("--channels", type=natural, metavar="N", help="draw so many of each (default: 4)")
    add_results(command, "features")


def _features(options: argparse.Namespace) -> None:
    if options.channels is not None and not options.output:
        raise UserError("--channels has no effect without --output, for which they are drawn; give both or neither")
    network = open_checkpoint(options)
    check_picture(options.output, [str(network.path), options.image, options.classes])
    (picture,) = read_pictures([options.image])

    from ..insight import features
    from ..transforms import eval_transform

    transform = eval_transform(network.input)
    crop = transform.crop(picture)
    maps = features.look(network.create(), transform.finish(crop[None])[0], options.blocks)
    facts = features.describe(maps)
    if options.output:
        features.draw(crop, maps, options.output, 4 if options.channels is None else options.channels)
    say(json.dumps({"model": network.name, "blocks": facts}) if options.json else features.table(facts))


def _add_gradcam(aspects: Any) -> None:
    command = add_command(aspects, _gradcam, "gradcam", "show where in pictures the evidence for a class is")
    add_checkpoint(command)
    command.add_argument("images", nargs="+", metavar="IMAGE")
    command.add_argument(
        "--class", dest="label", metavar="NAME|NUMBER", help="the class (default: every picture's most likely one)"
    )
    command.add_argument(
        "--block", type=int, default=-1, metavar="N", help="whose map, from 0, or from -1 back (default: -1, the last)"
    )
    add_results(command, "gradcam")


def _gradcam(options: argparse.Namespace) -> None:
    network = open_checkpoint(options)
    check_picture(options.output, [str(network.path), *options.images, options.classes])

    from ..insight import gradcam

    label = None if options.label is None else gradcam.class_number(options.label, network)
    if options.output:
        gradcam.check(options.images)
    pictures = read_pictures(options.images)
    found = gradcam.look(network, pictures, options.block, label)
    facts = gradcam.describe(network, options.images, options.block, found)
    if options.output:
        gradcam.draw(network, pictures, facts, options.output)
    say(json.dumps(facts) if options.json else gradcam.table(facts))


def _add_complexity(aspects: Any) -> None:
    command = add_command(
        aspects, _complexity, "complexity", "count what networks cost: parameters, MACs, activations, memory"
    )
    command.add_argument(
        "networks", nargs="*", metavar="NETWORK",
        help="a model of the zoo, a name that spells one out, a checkpoint, or one of paddle.vision.models; several "
        "are compared by cost and published accuracy (default: all whose accuracy on ImageNet is published)",
    )  # fmt: skip
    command.add_argument("--size", type=positive, metavar="N", help="pixels (default: what the network is made for)")
    command.add_argument("--batch-size", type=positive, metavar="N", help="pictures in memory at once (default: 1)")
    how = command.add_mutually_exclusive_group()
    how.add_argument("--by-layer", action="store_true", help="a line for every layer of a network")
    how.add_argument(
        "--scale", choices=("dim", "depth", "patch_size", "kernel_size"), help="how the cost of a ConvMixer grows"
    )
    how.add_argument(
        "--separable", action="store_true", help="compare its convolutions with standard ones in their place"
    )
    add_results(command, "complexity")


def _complexity(options: argparse.Namespace) -> None:
    from ..insight import complexity, networks, scaling, tradeoff

    one = len(options.networks) == 1
    if not one and (options.by_layer or options.scale or options.separable):
        raise UserError("--by-layer, --scale and --separable are about one network; name one")
    if options.batch_size and (options.scale or options.separable):
        raise UserError("--batch-size has no effect with --scale and --separable, which take one picture; leave it out")
    batch_size = options.batch_size or 1
    check_picture(options.output, options.networks)
    chosen = options.networks or networks.compared(options.size)
    left_out = [] if options.networks else [name for name in networks.compared() if name not in chosen]
    if left_out:
        logger.warning("left out, as Paddle lacks them and other sizes are published: %s", ", ".join(left_out))
    found = [networks.find(name, options.size) for name in chosen]
    if one and found[0].create is None and (options.by_layer or options.batch_size):
        raise UserError(
            f"Paddle has no {found[0].name}, and only its totals are published; leave --by-layer and --batch-size out"
        )
    if options.scale:
        facts, table, draw = scaling.describe(found[0], options.scale), scaling.table, scaling.draw
    elif options.separable:
        facts, table, draw = scaling.separate(found[0]), scaling.separable_table, scaling.draw_separable
    elif one:
        facts, draw = complexity.describe(found[0], batch_size), complexity.draw
        table = functools.partial(complexity.table, by_layer=options.by_layer)
    else:
        facts, table, draw = tradeoff.describe(found, batch_size), tradeoff.table, tradeoff.draw
    if options.output:
        draw(facts, options.output)
    say(json.dumps(facts) if options.json else table(facts))


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
    from ..insight import receptive_field

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
    from ..insight import robustness

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
    from ..insight import kernels

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
    from ..insight import diversity

    facts = {"model": network.name, **diversity.describe(network.create(), images)}
    if options.output:
        diversity.draw(facts, options.output)
    say(json.dumps(facts) if options.json else diversity.table(facts))


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
    from ..insight import diagnose, evidence

    check_picture(options.output, [options.folder])
    run = evidence.gather(Path(options.folder), options.data, options.limit)
    facts = diagnose.describe(run)
    if options.output:
        diagnose.draw(run, facts, options.output)
    say(json.dumps(facts, allow_nan=False) if options.json else diagnose.table(facts))
