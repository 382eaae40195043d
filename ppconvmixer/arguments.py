"""What several commands share: their arguments, what these name, and what is checked before the work."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

from . import distributed, figures, layouts, views, zoo
from .datasets import PICTURE_SUFFIXES
from .engines import ENGINES
from .errors import UserError, brief, printable, unreadable
from .exported import Exported, is_graph
from .trained import Trained


def add_command(commands: Any, run: Any, name: str, summary: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    command.set_defaults(run=run, parser=command)
    return command


def add_recipe(
    command: argparse.ArgumentParser, required: bool = True, help: str = "a YAML file, or the name of a shipped one"
) -> None:
    command.add_argument("-c", "--config", metavar="RECIPE", required=required, help=help)
    command.add_argument(
        *("-o", "--override"), metavar="KEY=VALUE", nargs="+", action="extend", default=[],
        help="change a setting, such as train.epochs=3",
    )  # fmt: skip


def add_checkpoint(command: argparse.ArgumentParser, also: str = "") -> None:
    command.add_argument(
        "--model", metavar="NAME", help=f"a model of the zoo (default: what the checkpoint's card says){also}"
    )
    command.add_argument(
        "--weights",
        metavar="FILE",
        help="a checkpoint in any layout; or 'pretrained' for the model's own, shipped or downloaded once; "
        f"or the one published as {', '.join(layouts.LAYOUTS)}",
    )
    command.add_argument(
        "--classes", metavar="FILE", help="names of the classes, one a line (default: the checkpoint's card)"
    )


def add_network(command: argparse.ArgumentParser) -> None:
    add_checkpoint(command, " or a file that export wrote, which needs no weights")
    command.add_argument(
        "--backend", choices=("pil", "cv2"), default="pil", help="decode and resize with Pillow (exact) or OpenCV"
    )
    command.add_argument("--engine", choices=("auto", *ENGINES), default="auto", help="what runs the network")


def add_views(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--tta", metavar="VIEWS", nargs="?", const=views.USUAL, default="1",
        help="average the probabilities over views of every picture: scales, and flip for each mirrored as well; "
        f"alone it means {views.USUAL}",
    )  # fmt: skip


def positive(text: str) -> int:
    number = natural(text)
    if not number:
        raise argparse.ArgumentTypeError("want 1 or more")
    return number


def share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 1e-9 <= number <= 1 - 1e-9:
        raise argparse.ArgumentTypeError(f"want a number between 0 and 1, got {text!r}")
    return number


def natural(text: str) -> int:
    if not text.isdecimal() or len(text) > 12:
        raise argparse.ArgumentTypeError(f"want a whole number of at most 12 digits, got {brief(repr(text))}")
    return int(text)


def say(text: str) -> None:
    if not distributed.RANK:
        print("\n".join(map(printable, text.split("\n"))))


def open_network(options: argparse.Namespace) -> Union[Trained, Exported]:
    """Return the network a command is about: a checkpoint, or an exported file in the place of the model's name."""
    if is_graph(options.model):
        if options.weights:
            raise UserError(f"{options.model} holds its weights; leave --weights out")
        return Exported(options.model, options.classes)
    return open_checkpoint(options)


def open_checkpoint(options: argparse.Namespace) -> Trained:
    if not options.weights:
        raise UserError("--weights is missing: a checkpoint, or 'pretrained' (see ppconvmixer models --pretrained)")
    if os.path.isdir(options.weights):
        raise UserError(f"{options.weights} is a folder; give a checkpoint in it, such as the best.pdparams of a run")
    if is_graph(options.weights):
        raise UserError(f"{options.weights} is an exported network; eval, predict and serve take it as --model")
    if zoo.is_tag(options.weights):  # before a download, not after it
        for name in ("data", "list", "calibrate", "classes", "labels_file"):
            path = getattr(options, name, None)
            if path and not os.path.exists(path):
                raise UserError(f"there is nothing at {path}; see --{name.replace('_', '-')}")
    return Trained(options.weights, options.model, options.classes)


def open_pictures(options: argparse.Namespace, network: Union[Trained, Exported]) -> Any:
    from . import datasets, recipe, sources
    from .finetune import open_data

    if options.config:
        if options.data or options.list:
            raise UserError("give either --data or -c, not both")
        pictures = open_data(recipe.load(options.config, getattr(options, "override", ())))[1]
        if pictures.classes and network.classes and pictures.classes != network.classes:
            raise UserError(f"{network.path} tells other classes apart by its card than {options.config} has")
        if pictures.classes and len(pictures.classes) != network.num_classes:
            raise UserError(
                f"{options.config} has pictures of {len(pictures.classes)} classes, and {network.path} tells "
                f"{network.num_classes} apart; give the recipe with the pictures it is for"
            )
        return pictures
    if not options.data:
        raise UserError("--data is missing: the folder or tar archive of the pictures (or -c, a recipe)")
    source = sources.open_source(options.data)
    if options.list:
        return datasets.from_list(source, options.list)
    pictures = datasets.from_folders(source, classes=network.classes)
    if len(pictures.classes) != network.num_classes:
        raise UserError(
            f"{options.data} has {len(pictures.classes)} class folders, the model {network.num_classes} classes; "
            "name the folders in the order of the model's classes with --classes FILE, or the pictures with --list FILE"
        )
    return pictures


def named_data(options: argparse.Namespace) -> list[Optional[str]]:
    """Return the files and folders of pictures and labels that ``--data``, ``--list`` and ``-c`` name."""
    from . import recipe

    named = [options.data, options.list, options.config]
    if options.config:
        data = recipe.load(options.config, getattr(options, "override", ())).data
        named += [data.path, data.train, data.val]
    return named


def check_outputs(outputs: Sequence[str], inputs: Sequence[Optional[str]]) -> None:
    """Find out before the work, not after it, that a result cannot be written or would replace an input."""
    from . import run_folder

    taken = {os.path.realpath(path): path for path in inputs if path}
    folders = {Path(path) for path in taken if os.path.isdir(path)}
    for output in outputs:
        path = Path(os.path.realpath(output))
        if os.path.islink(output):  # the file would take its place
            raise UserError(f"cannot write {output}, which is a link; name the file it leads to, or another")
        if str(path) in taken:
            raise UserError(f"{output} is an input of this command; write to another file")
        if path.exists() and path.suffix.lower() in PICTURE_SUFFIXES and not folders.isdisjoint(path.parents):
            raise UserError(f"{output} may be a picture that this command reads; write to another file")
        if run_folder.holds(path):
            raise UserError(f"{output} is of the training run in {path.parent}; write to another file")
        taken[str(path)] = output
        folder = next((parent for parent in path.parents if parent.exists()), path)
        other = path.exists() and not path.is_file()  # a folder, or a device, which a file would take the place of
        if other or not folder.is_dir() or not os.access(folder, os.W_OK):
            raise UserError(f"cannot write {output}; name a file in a folder you may write to")


def read_images(data: str, spec: zoo.InputSpec, count: int) -> Any:
    """Return the network's input made of so many pictures below a folder or in a tar archive."""
    return _read_some(data, spec, count)[1]


def read_pictures(paths: Sequence[str]) -> list[Any]:
    """Return the pictures of these files, decoded to RGB, or a UserError that names all that cannot be read."""
    from .transforms import decode

    pictures, broken = [], []
    for path in paths:
        try:
            pictures.append(decode(Path(path).read_bytes()))
        except (UserError, OSError) as error:
            broken.append(f"{path}: {getattr(error, 'strerror', None) or error}")
    if broken:
        raise unreadable(broken, len(paths))
    return pictures


def read_labelled(data: str, network: Trained, count: int) -> tuple[Any, Any]:
    """Return the network's input as ``read_images`` does, and the labels, int64.

    The labels are None, unless every picture lies in a folder that is called like one of the network's classes.
    """
    import numpy as np

    names, images = _read_some(data, network.input, count)
    number = {name: i for i, name in enumerate(network.classes or ())}
    folders = [Path(name).parent.name for name in names]
    labels = np.array([number[name] for name in folders], np.int64) if number.keys() >= set(folders) else None
    return images, labels


def _read_some(data: str, spec: zoo.InputSpec, count: int) -> tuple[Sequence[str], Any]:
    from . import datasets, sources
    from .loader import Samples, evenly, some
    from .transforms import eval_transform

    pictures = datasets.unlabelled(sources.open_source(data))
    pictures = pictures.subset(evenly(len(pictures), count))
    return pictures.names, some(Samples(pictures, eval_transform(spec)), count)


def check_picture(path: Optional[str], inputs: Sequence[Optional[str]] = ()) -> None:
    """Find out before the work, not after it, that a picture cannot be drawn to where it should go, if anywhere."""
    if path:
        figures.check(path)
        check_outputs([path], inputs)
