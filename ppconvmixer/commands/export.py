"""``ppconvmixer export``: a file that other engines run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import UserError
from .arguments import add_checkpoint, add_command, positive, say
from .inputs import open_checkpoint, read_images
from .outputs import cards, check_new, check_outputs


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, _run, "export", "write a network as a file that other engines run")
    add_checkpoint(command)
    command.add_argument(
        "--format", choices=("paddle", "onnx", "openvino", "web"), required=True, help="whose file to write; see DST"
    )
    command.add_argument(
        "target", metavar="DST",
        help="a .onnx file; an .xml file for OpenVINO; for Paddle a .json file, or with Paddle 2 a .pdmodel file; "
        "for web a folder, with a page that classifies pictures in the browser",
    )  # fmt: skip
    command.add_argument(
        "--pixels", action="store_true",
        help="take pixels, uint8 N x H x W x 3, and give probabilities: normalisation and softmax in the graph "
        "(web always does)",
    )  # fmt: skip
    command.add_argument("--any-size", action="store_true", help="leave height and width of the images open")
    weights = command.add_mutually_exclusive_group()
    weights.add_argument("--half", action="store_true", help="keep the weights in 16 bits (not for paddle)")
    weights.add_argument("--int8", action="store_true", help="keep them in 8 bits; with --calibrate, the maps too")
    command.add_argument(
        "--calibrate", metavar="DIR|TAR", help="with --int8: pictures of the kind the network is used for"
    )
    command.add_argument("--limit", type=positive, metavar="N", help="so many of them (default: 128)")
    command.add_argument("--overwrite", action="store_true", help="replace DST where it exists")


def _run(options: argparse.Namespace) -> None:
    from .. import export, web

    page = options.format == "web"
    if options.calibrate and not options.int8:
        raise UserError("--calibrate has no effect without --int8; give both or neither")
    if options.limit and not options.calibrate:
        raise UserError("--limit has no effect without --calibrate; give both or neither")
    if page and options.any_size:
        raise UserError("--any-size has no effect with web, whose page brings pictures to one size; leave it out")
    bits = 8 if options.int8 else 16 if options.half else 32
    target = Path(options.target)
    if not page:
        export.check_suffix(target, options.format)
    written = web.files(target) if page else export.files(target)
    inputs = [options.weights, options.classes, options.calibrate, *cards([options.weights])]
    check_outputs(list(map(str, written)), inputs)
    check_new(written, options.overwrite)
    network = open_checkpoint(options)
    pictures = read_images(options.calibrate, network.input, options.limit or 128) if options.calibrate else None
    if page:
        found = web.write(network, target, bits, pictures)
    else:
        form = export.Form(options.format, options.pixels, options.any_size, bits)
        found = export.export(network, target, form, pictures)
    made = target if page else " ".join(map(str, written))
    say(
        f"{network.name} -> {made}: verified with {found.engine} on photographs, off by {found.difference:.1e}; "
        f"{round(found.same * found.pictures)} of {found.pictures} pictures have the same most likely class"
    )
    missing = [name for name in web.RUNTIME if not (target / name).exists()]
    if page and missing:
        say(f"The page needs {' and '.join(missing)} of the npm package onnxruntime-web beside it.")
