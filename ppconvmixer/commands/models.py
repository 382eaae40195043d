"""``ppconvmixer models``: what the zoo has."""

from __future__ import annotations

import argparse
from typing import Any

from .. import download, zoo
from ..errors import UserError
from .arguments import add_command, say


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, _run, "models", "list the models of the zoo")
    command.add_argument("pattern", nargs="?", default="*", help="names to list, with shell wildcards")
    command.add_argument("--pretrained", action="store_true", help="only those with published or shipped weights")


def _run(options: argparse.Namespace) -> None:
    names = zoo.list_models(options.pattern, options.pretrained)
    if not names:
        raise UserError(f"no model matches {options.pattern!r}; ppconvmixer models lists all")
    say(f"{'model':27}{'input':>6}{'params':>9}{'GMACs':>8}  {'top-1 / top-5':34}{'at hand'}")
    for name in names:
        variant, known = zoo.VARIANTS[name], zoo.manifest().get(name)
        figures = f"{100 * known['top1']:.2f} % / {100 * known['top5']:.2f} %, {known['data']}" if known else "-"
        counts = f"{variant.parameters() / 1e6:8.2f}M{variant.macs() / 1e9:8.2f}"
        say(f"{name:27}{variant.input.size:6}{counts}  {figures:34}{', '.join(zoo.present(name)) or '-'}")
    tags = dict.fromkeys(file.layout for name in names for file in zoo.published(name))
    if tags:
        say(f"published weights: --weights pretrained, or one of {', '.join(tags)}")
    say(f"cache: {download.home()}")
