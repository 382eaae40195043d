"""``ppconvmixer predict``: the classes of pictures."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from .. import views
from ..errors import UserError, unreadable
from .arguments import add_command, add_network, add_views, say
from .inputs import open_network


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, _run, "predict", "classify pictures")
    add_network(command)
    add_views(command)
    command.add_argument("images", nargs="*", metavar="IMAGE")


def _run(options: argparse.Namespace) -> None:
    import numpy as np

    from ..evaluate import check_sizes, no_number, see, top_k
    from ..transforms import decode, eval_transform

    network = open_network(options)
    try:
        seen = views.parse(options.tta, network.name, network.input)
    except UserError:  # of `--tta photo.jpg`, argparse took the first picture for the views
        if not Path(options.tta).is_file():
            raise
        options.images.insert(0, options.tta)
        seen = views.parse(views.USUAL, network.name, network.input)
    if not options.images:
        raise UserError("no picture is named; give the files to classify")
    specs = {view.size: dataclasses.replace(network.input, size=view.size) for view in seen}
    transforms = {size: eval_transform(spec, options.backend) for size, spec in specs.items()}
    engine = network.engine(options.engine)
    check_sizes(engine, transforms.keys() - {network.input.size})
    broken = []
    for path in options.images:
        try:
            picture = decode(Path(path).read_bytes(), options.backend)
            images = {size: transform(picture)[np.newaxis] for size, transform in transforms.items()}
        except (UserError, OSError) as error:
            broken.append(f"{path}: {getattr(error, 'strerror', None) or error}")
            continue
        classes, probabilities = top_k(see(engine, images, seen))
        if not np.isfinite(probabilities).all():
            raise no_number(path)
        say(path)
        for number, probability in zip(classes[0], probabilities[0]):
            print(f"  {100 * probability:6.2f} %  {network.classes[number] if network.classes else f'class {number}'}")
    if broken:
        raise unreadable(broken, len(options.images))
