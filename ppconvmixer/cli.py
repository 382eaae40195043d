"""The command ``ppconvmixer``: the one place that parses arguments, prints and exits."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn, Optional

from . import __version__, distributed
from .commands import (
    average,
    benchmark,
    convert,
    evaluate,
    export,
    finetune,
    inspect,
    models,
    predict,
    prune,
    report,
    serve,
)
from .errors import UserError, brief, printable

logger = logging.getLogger("ppconvmixer")

COMMANDS = (models, evaluate, finetune, inspect, predict, convert, average, prune, export, report, serve, benchmark)

_BAD_PATHS = (errno.ENAMETOOLONG, errno.EACCES)  # of such a path nobody can even ask whether there is something


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run one command and return its exit code: 0, 2 for a mistake of the user, 130 after Ctrl-C, 143 after SIGTERM."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options, unknown_ones = _parser().parse_known_args(arguments)
    if unknown_ones:  # told here, the help that is named is the command's
        options.parser.error(f"unrecognized arguments: {' '.join(map(printable, unknown_ones))}")
    options.spelled = printable(shlex.join(["ppconvmixer", *arguments]))
    _configure_output()
    for stream in (sys.stdout, sys.stderr):  # of an old terminal, say, that shows no Chinese names
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        options.run(options)
        sys.stdout.flush()
        return 0
    except UserError as error:
        print(f"ppconvmixer: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name != "paddle":  # which the user chooses, for a CPU or a GPU; it is no plain requirement
            raise
        print(
            "ppconvmixer: error: PaddlePaddle is not installed; pip install 'ppconvmixer[gpu]', or 'ppconvmixer[cpu]' "
            "on a machine without a GPU",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt as stop:
        print("ppconvmixer: stopped", file=sys.stderr)
        return 128 + getattr(stop, "signal", signal.SIGINT)
    except BrokenPipeError:  # `ppconvmixer models | head`
        _forget_output()
        return 0
    except OSError as error:
        if error.errno == errno.ENOSPC and not error.filename:  # `ppconvmixer models > file`
            _forget_output()
            print(f"ppconvmixer: error: cannot print: {error.strerror}", file=sys.stderr)
            return 2
        if error.errno not in _BAD_PATHS or not error.filename:
            raise
        print(f"ppconvmixer: error: {brief(str(error.filename))}: {error.strerror}; give another path", file=sys.stderr)
        return 2


def _forget_output() -> None:
    """Send what is still to be printed nowhere; Python would try again at its end, and fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line instead of argparse's usage and line."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ppconvmixer", description="The PaddlePaddle home of ConvMixer.")
    parser.add_argument("--version", action="version", version=f"ppconvmixer {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser


class _Formatter(logging.Formatter):
    """The message alone, without what a name from a file could do to the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, record.message.split("\n")))


def _configure_output() -> None:
    """Messages go to stderr as they are, from the first process only; Paddle's remarks on itself stay away."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.ERROR if distributed.RANK else logging.INFO)
    os.environ.setdefault("GLOG_minloglevel", "2")  # Paddle's C++ reads it when it is imported, which is later
    warnings.filterwarnings("ignore", message="No ccache found")
    warnings.filterwarnings("ignore", message="To copy construct from a tensor")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of a strange picture; it is read or refused
    warnings.filterwarnings("ignore", message="When training, we now always track global mean and variance")
