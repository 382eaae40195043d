"""What several commands read: networks and pictures."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

from .. import zoo
from ..errors import UserError, unreadable
from ..exported import Exported, is_graph
from ..trained import Trained


def open_network(options: argparse.Namespace) -> Union[Trained, Exported]:
    """Return the network a command is about: a checkpoint, or an exported file in the place of the model's name."""
    if is_graph(options.model):
        if options.weights:
            raise UserError(f"{options.model} holds its weights; leave --weights out")
        return Exported(options.model, options.classes)
    return open_checkpoint(options)


def open_checkpoint(options: argparse.Namespace) -> Trained:
    """Return the checkpoint a command is about, downloaded if need be once all else that it names is there."""
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
    """Return the labelled pictures that ``--data`` and ``--list``, or ``-c``, name, for the classes of ``network``."""
    from .. import datasets, recipe, sources
    from ..finetune import open_data

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
    from .. import recipe

    named = [options.data, options.list, options.config]
    if options.config:
        data = recipe.load(options.config, getattr(options, "override", ())).data
        named += [data.path, data.train, data.val]
    return named


def read_images(data: str, spec: zoo.InputSpec, count: int) -> Any:
    """Return the network's input made of so many pictures below a folder or in a tar archive."""
    return _read_some(data, spec, count)[1]


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


def read_pictures(paths: Sequence[str]) -> list[Any]:
    """Return the pictures of these files, decoded to RGB, or a UserError that names all that cannot be read."""
    from ..transforms import decode

    pictures, broken = [], []
    for path in paths:
        try:
            pictures.append(decode(Path(path).read_bytes()))
        except (UserError, OSError) as error:
            broken.append(f"{path}: {getattr(error, 'strerror', None) or error}")
    if broken:
        raise unreadable(broken, len(paths))
    return pictures


def _read_some(data: str, spec: zoo.InputSpec, count: int) -> tuple[Sequence[str], Any]:
    from .. import datasets, sources
    from ..loader import Samples, evenly, some
    from ..transforms import eval_transform

    pictures = datasets.unlabelled(sources.open_source(data))
    pictures = pictures.subset(evenly(len(pictures), count))
    return pictures.names, some(Samples(pictures, eval_transform(spec)), count)
