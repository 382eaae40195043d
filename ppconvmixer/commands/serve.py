"""``ppconvmixer serve``: a network behind HTTP."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import UserError, said
from .arguments import add_command, add_network, natural, say
from .inputs import open_network


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, _run, "serve", "answer requests over HTTP with the classes of a picture")
    add_network(command)
    command.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    command.add_argument("--port", type=natural, default=8000, metavar="N", help="default: 8000; 0 takes a free one")


def _run(options: argparse.Namespace) -> None:
    import socket

    from ..serve import create_app

    if not options.host:  # which would be any address
        raise UserError("--host is empty; give 127.0.0.1 for this machine alone, or 0.0.0.0 for everybody")
    app = create_app(open_network(options), options.engine, options.backend)
    import uvicorn

    try:
        listener = socket.create_server((options.host, options.port))
    except (OSError, OverflowError, TypeError) as error:  # the last of a name that is none
        raise UserError(f"cannot listen at {options.host}, port {options.port}: {said(error)}") from error
    with listener:
        say(f"http://{options.host}:{listener.getsockname()[1]}/predict takes pictures; stop with Ctrl-C")
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
