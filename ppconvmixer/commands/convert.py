"""``ppconvmixer convert``: a checkpoint in another layout or kind of file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from .. import card, checkpoint, layouts, zoo
from ..errors import UserError, brief
from .arguments import add_command, say
from .outputs import cards, check_new, check_outputs


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, _run, "convert", "write a checkpoint in another layout or kind of file")
    command.add_argument("source", metavar="SRC", help="a checkpoint of any layout and kind")
    command.add_argument(
        "target", metavar="DST", help="a .pdparams file (Paddle's form) or a .safetensors one (torch's form)"
    )
    command.add_argument("--model", metavar="NAME", help="check that the checkpoint fits this model")
    command.add_argument(
        "--layout", choices=tuple(layouts.LAYOUTS), default=layouts.OURS, help="names to write (default: timm)"
    )
    command.add_argument("--overwrite", action="store_true", help="replace DST where it exists")


def _run(options: argparse.Namespace) -> None:
    target = Path(options.target)
    frameworks = {".pdparams": "paddle", ".safetensors": "torch"}
    if target.suffix not in frameworks:
        raise UserError(f"cannot write {target}: name a file ending in {' or '.join(frameworks)}")
    described = target.with_suffix(".json")
    shared = os.path.realpath(described) == os.path.realpath(Path(options.source).with_suffix(".json"))
    written = [options.target] if shared else [options.target, str(described)]
    check_outputs(written, [options.source, *cards([options.source])])
    check_new([target], options.overwrite)
    translation, found = zoo.translate(options.source), card.read(options.source)
    if described.exists() and not shared and (found == card.Card() or not options.overwrite):
        raise UserError(f"{described} would pass for the card of {target}; choose another name, or move it away")
    if translation.left_out:
        raise UserError(
            f"{options.source} has entries that are no part of a ConvMixer: "
            f"{', '.join(map(brief, translation.left_out[:3]))}"
        )
    if options.model:
        channels = translation.state["stem.0.weight"].shape[1]
        classes = layouts.classes(translation.state) or 0
        zoo.fill(zoo.create_model(options.model, num_classes=classes, in_chans=channels), translation, options.source)
    framework = frameworks[target.suffix]
    state = layouts.from_ours(translation.state, options.layout, framework)
    checkpoint.write(target, state, {"format": "pt"})
    if found != card.Card() and not shared:  # it stays that of the source, and says so to whoever reads the other
        card.write(target, found)
    say(
        f"{options.source} ({translation.layout}, {translation.framework}) -> "
        f"{target} ({options.layout}, {framework}): "
        f"{layouts.describe(translation.state)}, {len(state)} entries"
    )
