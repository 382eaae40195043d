"""``ppconvmixer benchmark``: ours against stock Paddle and other engines."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from .. import peers
from ..errors import UserError, unknown
from ..files import write_text
from .arguments import add_command, positive, say
from .outputs import check_outputs, check_picture


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, _run, "benchmark", "time the networks here against stock Paddle and other engines")
    command.add_argument(
        "parts", nargs="*", metavar="PART", help=f"what to time: {', '.join(peers.PARTS)} (default: all)"
    )
    command.add_argument("--model", metavar="NAME", help="this model instead of the usual ones (not in scaling)")
    command.add_argument(
        "--batch-size", type=positive, nargs="+", metavar="N", help="these batches instead (not in scaling)"
    )
    command.add_argument(
        "--contenders",
        nargs="+",
        metavar="NAME",
        help="only these, such as ppconvmixer 'ONNX Runtime' (default: all; scaling is of ours)",
    )
    command.add_argument("--rounds", type=positive, default=5, metavar="N", help="samples of each (default: 5)")
    command.add_argument("--seconds", type=positive, default=1, metavar="S", help="of a sample, at least (default: 1)")
    command.add_argument("--output", metavar="result.json", help="write everything as JSON")
    command.add_argument("--markdown", metavar="page.md", help="write a page of tables")
    command.add_argument("--picture", metavar="page.png", help="draw how cost grows (part scaling)")


def _run(options: argparse.Namespace) -> None:
    from .. import benchmark, performance

    parts = options.parts or peers.PARTS
    for part in parts:
        if part not in peers.PARTS:
            raise unknown("part", part, peers.PARTS)
    if options.picture and "scaling" not in parts:
        raise UserError("--picture draws the part scaling, which is not among those to time; leave one out")
    outputs = {name: Path(path) for name in ("output", "markdown", "picture") if (path := getattr(options, name))}
    check_outputs([str(path) for path in outputs.values()], [])
    check_picture(options.picture)
    if set(parts) == {"scaling"}:
        for flag in ("model", "batch_size", "contenders"):
            if getattr(options, flag):
                raise UserError(f"--{flag.replace('_', '-')} has no effect on scaling, which varies a network of ours")
    report = benchmark.benchmark(
        parts, options.model, options.batch_size, options.contenders, options.rounds, options.seconds
    )
    for comparison in report["comparisons"]:
        say(benchmark.line(comparison))
    if "output" in outputs:
        write_text(outputs["output"], json.dumps(report, indent=2) + "\n")
    if "picture" in outputs:
        performance.draw(report, outputs["picture"])
    if "markdown" in outputs:
        picture = outputs.get("picture")
        shown = picture and os.path.relpath(picture, outputs["markdown"].parent)
        write_text(outputs["markdown"], performance.markdown(report, options.spelled, shown))
