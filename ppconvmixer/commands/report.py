"""``ppconvmixer report``: a checkpoint in many forms, measured."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, printable
from ..files import read_text, sha256, write_text
from .arguments import add_checkpoint, add_command, add_recipe, natural, positive, say
from .inputs import open_checkpoint, open_pictures

if TYPE_CHECKING:
    from ..deployment import Material
    from ..trained import Trained


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, _run, "report", "measure a checkpoint in float32, fewer bits, channels and weights")
    add_checkpoint(command)
    add_recipe(command, required=False, help="judge by its validation part, fit on its training part")
    command.add_argument("--data", metavar="DIR|TAR", help="without a recipe: what to judge by, as in eval")
    command.add_argument("--list", metavar="FILE", help="lines 'path label'; without it, DATA has one folder a class")
    command.add_argument("--calibrate", metavar="DIR|TAR", help="without a recipe: what to fit on, other pictures")
    command.add_argument("--epochs", type=natural, default=0, metavar="N", help="train pruned networks on (default: 0)")
    command.add_argument("--limit", type=natural, default=0, metavar="N", help="judge by N pictures, from all over")
    command.add_argument("--rounds", type=positive, default=5, metavar="N", help="samples of every speed (default: 5)")
    command.add_argument(
        "--output", metavar="DIR", default="runs/report", help="folder to write (default: runs/report)"
    )
    command.add_argument("--overwrite", action="store_true", help="replace a report on something else there")


def _run(options: argparse.Namespace) -> None:
    from .. import benchmark, deployment, deployment_page

    network = open_checkpoint(options)
    _check_pictures(options)
    folder, digest = Path(options.output), sha256(network.path)
    _check_report(folder, digest, options.overwrite)
    material = _material(options, network)
    forms = folder / f"forms-{digest[:8]}"  # what was trained on from another checkpoint is none of this one's
    try:
        forms.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error
    report = {
        "model": network.name,
        "weights": {"path": str(network.path), "sha256": digest},
        "data": printable(options.config or options.data),
        "command": options.spelled,
        "machine": benchmark.machine(),
        "versions": benchmark.versions(),
        "forms": deployment.measure(material, forms, options.rounds),
    }
    write_text(folder / "report.json", json.dumps(report, indent=2) + "\n")
    deployment_page.write(report, folder)
    for form in report["forms"]:
        speed = form["images_per_second"]  # None where it is not timed
        say(f"{form['form']:30} {100 * form['top1']:6.2f} %  {'-' if speed is None else f'{speed:.1f}':>8} img/s")
    say(f"{folder / 'report.html'}")


def _check_pictures(options: argparse.Namespace) -> None:
    """Refuse what does not go together, and to fit on the pictures that are judged by."""
    if options.config and (options.calibrate or options.data):
        raise UserError("a recipe says what to judge by and to fit on; leave --data and --calibrate out")
    if not options.config and not options.calibrate:
        raise UserError("--calibrate is missing: pictures to fit on, other ones than those of --data (or -c, a recipe)")
    if options.calibrate and options.data:
        fit, judge = (Path(os.path.realpath(path)) for path in (options.calibrate, options.data))
        if fit == judge or fit in judge.parents or judge in fit.parents:
            raise UserError(
                f"--calibrate holds pictures of --data, {options.data}; fit on others than those to judge by"
            )
    for flag, value in (("--epochs", options.epochs), ("-o", options.override)):
        if value and not options.config:
            raise UserError(f"{flag} needs a recipe; give one with -c")


def _material(options: argparse.Namespace, network: Trained) -> Material:
    """Return the network with the pictures to judge by and to fit on."""
    from .. import datasets, deployment, sources
    from .. import recipe as recipes
    from ..finetune import count_classes, open_data
    from ..loader import Samples, evenly, some
    from ..transforms import eval_transform

    judged = open_pictures(options, network)
    if options.limit:
        judged = judged.subset(evenly(len(judged), options.limit))
    recipe = recipes.load(options.config, options.override) if options.config else None
    fitted = open_data(recipe)[0] if recipe else datasets.unlabelled(sources.open_source(options.calibrate))
    if options.epochs and count_classes(fitted) != network.num_classes:
        raise UserError(
            f"{options.config} has pictures of {count_classes(fitted)} classes to train on, and {network.path} tells "
            f"{network.num_classes} apart; give a recipe with the pictures it is for, or leave --epochs out"
        )
    transform = eval_transform(network.input)
    return deployment.Material(
        network,
        some(Samples(fitted, transform), deployment.FIT),
        Samples(judged, transform),
        deployment.trained_on(recipe, options.epochs) if options.epochs else None,
    )


def _check_report(folder: Path, digest: str, overwrite: bool) -> None:
    """Refuse to write over a report that is not of this checkpoint, be it of another one or of a training run."""
    mine = folder / "report.json"
    try:
        same = json.loads(read_text(mine, 1 << 24))["weights"]["sha256"] == digest if mine.exists() else False
    except (ValueError, KeyError, TypeError, RecursionError):
        same = False
    names = ("report.json", "report.md", "report.html", "latency.png", "pruning.png")
    present = [name for name in names if (folder / name).exists()]
    if present and not same and not overwrite:
        raise UserError(
            f"{folder / present[0]} is of something else; choose another --output, or replace it with --overwrite"
        )
