"""The command ``ppconvmixer``: the one place that parses arguments, prints and exits."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import errno
import io
import json
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, Optional

from . import __version__, card, checkpoint, distributed, download, inspection, labels, layouts, peers, views, zoo
from .arguments import (
    add_checkpoint,
    add_command,
    add_network,
    add_recipe,
    add_views,
    check_outputs,
    check_picture,
    named_data,
    natural,
    open_checkpoint,
    open_network,
    open_pictures,
    positive,
    read_images,
    say,
    share,
)
from .errors import UserError, brief, printable, said, unknown, unreadable
from .exported import is_graph
from .files import PathLike, atomic_write, read_text, sha256, table_path, write_text

logger = logging.getLogger("ppconvmixer")

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

    command = add_command(commands, _models, "models", "list the models of the zoo")
    command.add_argument("pattern", nargs="?", default="*", help="names to list, with shell wildcards")
    command.add_argument("--pretrained", action="store_true", help="only those with published or shipped weights")

    command = add_command(commands, _eval, "eval", "measure accuracy and loss of a checkpoint on labelled pictures")
    add_network(command)
    add_views(command)
    command.add_argument("--data", metavar="DIR|TAR", help="folder or tar archive of the pictures, read in place")
    command.add_argument("--list", metavar="FILE", help="lines 'path label'; without it, DATA has one folder a class")
    command.add_argument("-c", "--config", metavar="RECIPE", help="evaluate on the validation part of a recipe instead")
    command.add_argument(
        "--labels", choices=labels.NAMES,
        help="judge by ReaL's labels of ImageNet's validation set; or evaluate on ImageNet-V2, -A, -R or -Sketch",
    )  # fmt: skip
    command.add_argument(
        "--labels-file", metavar="FILE",
        help="real: its real.json; a, r: the WordNet ids to choose among, one a line (default: all that have a folder)",
    )  # fmt: skip
    command.add_argument("--batch-size", type=positive, default=32, metavar="N")
    command.add_argument("--workers", type=natural, default=2, metavar="N", help="processes that read pictures")
    command.add_argument("--limit", type=natural, default=0, metavar="N", help="only the first N pictures")
    command.add_argument(
        "--skip-broken", action="store_true", help="leave out pictures that cannot be read, and count them"
    )
    command.add_argument("--output", metavar="result.json", help="write the figures as JSON")
    command.add_argument("--predictions", metavar="out.csv", help="write the five most likely classes of every picture")
    command.add_argument("--logits", metavar="out.npy", help="write the logits, float32 (samples, classes)")

    command = add_command(commands, _finetune, "finetune", "train a recipe, from scratch or from a checkpoint")
    add_recipe(command)
    command.add_argument("--output", metavar="DIR", help="the run folder (default: runs/NAME-OF-THE-RECIPE)")
    command.add_argument("--resume", action="store_true", help="go on with the run there where it was last saved")
    command.add_argument(
        "--allow-changes", action="store_true", help="with --resume: go on although recipe or pictures changed"
    )
    command.add_argument("--overwrite", action="store_true", help="replace the run there")

    inspection.add(commands)

    command = add_command(commands, _predict, "predict", "classify pictures")
    add_network(command)
    add_views(command)
    command.add_argument("images", nargs="*", metavar="IMAGE")

    command = add_command(commands, _convert, "convert", "write a checkpoint in another layout or kind of file")
    command.add_argument("source", metavar="SRC", help="a checkpoint of any layout and kind")
    command.add_argument(
        "target", metavar="DST", help="a .pdparams file (Paddle's form) or a .safetensors one (torch's form)"
    )
    command.add_argument("--model", metavar="NAME", help="check that the checkpoint fits this model")
    command.add_argument(
        "--layout", choices=tuple(layouts.LAYOUTS), default=layouts.OURS, help="names to write (default: timm)"
    )
    command.add_argument("--overwrite", action="store_true", help="replace DST where it exists")

    command = add_command(commands, _average, "average", "write the mean of several checkpoints")
    command.add_argument("sources", nargs="+", metavar="SRC", help="checkpoints of the same network, with their cards")
    command.add_argument("target", metavar="DST", help="the .pdparams file to write, with a card beside it")
    command.add_argument("--model", metavar="NAME", help="a model of the zoo (default: what their cards say)")
    command.add_argument("--overwrite", action="store_true", help="replace DST where it exists")

    command = add_command(commands, _prune, "prune", "make a checkpoint smaller: fewer weights, or fewer channels")
    add_checkpoint(command)
    command.add_argument("target", metavar="DST", help="the .pdparams file to write, with a card beside it")
    how = command.add_mutually_exclusive_group(required=True)
    how.add_argument("--sparsity", type=share, metavar="S", help="set this share of the weights to 0, the least ones")
    how.add_argument("--dim", type=positive, metavar="N", help="keep N channels; needs --data")
    command.add_argument("--data", metavar="DIR|TAR", help="pictures to fit the channels on, of what they are used for")
    command.add_argument("--limit", type=positive, metavar="N", help="so many of them (default: 256)")
    command.add_argument("--overwrite", action="store_true", help="replace DST where it exists")

    command = add_command(commands, _export, "export", "write a network as a file that other engines run")
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

    command = add_command(
        commands, _report, "report", "measure a checkpoint in float32, fewer bits, channels and weights"
    )
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

    command = add_command(commands, _serve, "serve", "answer requests over HTTP with the classes of a picture")
    add_network(command)
    command.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    command.add_argument("--port", type=natural, default=8000, metavar="N", help="default: 8000; 0 takes a free one")

    command = add_command(
        commands, _benchmark, "benchmark", "time the networks here against stock Paddle and other engines"
    )
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


# --- models ---------------------------------------------------------------------------------------


def _models(options: argparse.Namespace) -> None:
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


# --- eval -----------------------------------------------------------------------------------------


def _eval(options: argparse.Namespace) -> None:
    from . import export
    from .evaluate import evaluate
    from .loader import Samples
    from .transforms import eval_transform

    network = open_network(options)
    seen = views.parse(options.tta, network.name, network.input)
    outputs = [path for path in (options.output, options.predictions, options.logits) if path]
    inputs = [network.path, *named_data(options), options.classes, options.labels_file]
    beside = map(str, export.files(network.path)) if is_graph(options.model) else _cards([network.path])
    check_outputs(outputs, [*inputs, *beside])
    digest = sha256(network.path)  # now, of what was read: a run under way may replace the file
    if options.labels_file and not options.labels:
        raise UserError("--labels is missing: whose labels --labels-file holds")
    judged = _relabelled(options, network) if options.labels else labels.Relabelled(open_pictures(options, network))
    pictures = judged.pictures
    distributed.start()
    engine = network.engine(options.engine)
    if judged.chosen is not None:
        engine = labels.Restricted(engine, judged.chosen)
    samples = Samples(pictures, eval_transform(network.input, options.backend))
    found = evaluate(
        *(engine, samples, options.batch_size, options.workers, options.limit, options.skip_broken),
        keep_logits=bool(options.logits),
        views=seen,
    )
    metrics = found.metrics()
    if distributed.RANK:
        return
    weights = {"path": str(network.path), "sha256": digest}
    if is_graph(options.model):  # a program may be the same for any weights, which have a file of their own
        weights["checkpoint"] = network.checkpoint
    result = {
        "model": network.name,
        "weights": weights,
        "engine": engine.name,
        **metrics,
        "backend": options.backend,
        "input": dataclasses.asdict(network.input),
        "views": [dataclasses.asdict(view) for view in seen],
        "data": {"path": options.data, "list": options.list, "recipe": options.config},
        **({"labels": _labels_of(options, network, judged)} if options.labels else {}),
        "version": __version__,
    }
    if options.output:
        write_text(options.output, json.dumps(result, indent=2) + "\n")
    if options.predictions:
        write_text(options.predictions, _predictions(found, pictures.names))
    if options.logits:
        import numpy as np

        with atomic_write(options.logits) as stream:
            np.save(stream, found.logits)
    if metrics["k"] < 5:
        logger.info("the model has %d classes, so top-5 is top-%d", engine.num_classes, metrics["k"])
    told = f" in {len(seen)} views" if len(seen) > 1 else ""
    told += f", labels {options.labels}" if options.labels else ""
    told += f" ({judged.left_out} pictures without any left out)" if judged.left_out else ""
    told += f", {len(judged.chosen)} classes to choose among" if judged.chosen is not None else ""
    expected = result.get("labels", {}).get("published")
    say(
        f"{network.name}: {metrics['samples']} pictures{told}, {metrics['skipped']} skipped; "
        f"top-1 {100 * metrics['top1']:.2f} %, top-{metrics['k']} {100 * metrics['top5']:.2f} %, "
        f"loss {metrics['loss']:.4f}, {metrics['images_per_second']:.1f} img/s"
        + (f"; published weights of it have top-1 {100 * expected:.2f} % (timm)" if expected else "")
    )


def _relabelled(options: argparse.Namespace, network: Any) -> labels.Relabelled:
    """Return the pictures of ``--data`` with the labels that ``--labels`` names."""
    from . import datasets, sources

    if options.config or not options.data:
        raise UserError(
            f"--labels {options.labels} needs --data, the folder or tar archive of the pictures, and no recipe"
        )
    source = sources.open_source(options.data)
    if options.list and options.labels != "real":
        raise UserError(f"the labels {options.labels} are the names of the folders; leave --list out")
    pictures = datasets.from_list(source, options.list) if options.list else datasets.unlabelled(source)
    return labels.relabel(options.labels, pictures, network.classes, options.labels_file)


def _labels_of(options: argparse.Namespace, network: Any, judged: labels.Relabelled) -> dict[str, Any]:
    """Return what ``result.json`` says of ``--labels``: the files with their digests, None where none is given.

    ``published`` is the accuracy of the published weights of this network by these labels, a fraction, or None.
    """
    files = {"file": options.labels_file, "classes": options.classes}
    published = zoo.manifest().get(zoo.canonical(network.name), {}).get("top1_by_labels", {}).get(options.labels)
    digests = {key: {"path": path, "sha256": sha256(path)} if path else None for key, path in files.items()}
    chosen = None if judged.chosen is None else len(judged.chosen)
    told = {"name": options.labels, **digests, "left_out": judged.left_out, "chosen": chosen}
    return {**told, "published": published}


def _predictions(found: Any, names: Sequence[str]) -> str:
    import numpy as np

    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    places = range(1, found.k + 1)
    rows.writerow(["path", "label", *(f"class_{i}" for i in places), *(f"probability_{i}" for i in places)])
    for index, label, classes, probabilities in zip(found.indices, found.labels, found.classes, found.probabilities):
        label = " ".join(map(str, dict.fromkeys(np.ravel(label).tolist())))  # ReaL has several
        rows.writerow([table_path(names[index]), label, *classes, *(f"{p:.6f}" for p in probabilities)])
    return text.getvalue()


# --- finetune -------------------------------------------------------------------------------------


def _finetune(options: argparse.Namespace) -> None:
    from . import recipe as recipes
    from .finetune import finetune

    if options.resume and options.overwrite:
        raise UserError("--resume goes on with a run and --overwrite replaces it; give one of them")
    if options.allow_changes and not options.resume:
        raise UserError("--allow-changes says what --resume may put up with; give both")
    recipe = recipes.load(options.config, options.override)
    folder = Path(options.output or Path("runs") / Path(options.config).stem)
    result = finetune(recipe, folder, options.resume, options.overwrite, options.allow_changes)
    say(
        f"best epoch {result['best_epoch']}: top-1 {100 * result['top1']:.2f} %, loss {result['loss']:.4f} "
        f"on {result['samples']} pictures; weights: {result['weights']['path']}"
    )


# --- predict --------------------------------------------------------------------------------------


def _predict(options: argparse.Namespace) -> None:
    import numpy as np

    from .evaluate import check_sizes, no_number, see, top_k
    from .transforms import decode, eval_transform

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


# --- convert --------------------------------------------------------------------------------------


def _convert(options: argparse.Namespace) -> None:
    target = Path(options.target)
    frameworks = {".pdparams": "paddle", ".safetensors": "torch"}
    if target.suffix not in frameworks:
        raise UserError(f"cannot write {target}: name a file ending in {' or '.join(frameworks)}")
    described = target.with_suffix(".json")
    shared = os.path.realpath(described) == os.path.realpath(Path(options.source).with_suffix(".json"))
    check_outputs([options.target], [options.source, *_cards([options.source])])
    if not shared:
        check_outputs([str(described)], [options.source])
    if target.exists() and not options.overwrite:
        raise UserError(f"{target} exists; choose another name, or replace it with --overwrite")
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


# --- average --------------------------------------------------------------------------------------


def _average(options: argparse.Namespace) -> None:
    from . import average
    from .trained import Trained

    target = _target(options, options.sources)
    if len(options.sources) < 2:
        raise UserError("name two checkpoints or more, and the file to write last")
    average.write(target, [Trained(source, options.model) for source in options.sources])
    say(f"the mean of {len(options.sources)} checkpoints -> {target}")


def _cards(weights: Sequence[Optional[PathLike]]) -> list[str]:
    """Return the cards of checkpoints, of those that have one."""
    beside = [Path(path).with_suffix(".json") for path in weights if path and Path(path).is_file()]
    return [str(path) for path in beside if path.is_file()]


def _target(
    options: argparse.Namespace, weights: Sequence[Optional[str]], others: Sequence[Optional[str]] = ()
) -> Path:
    """Return the checkpoint to write, once it is known that it and its card can be written and replace nothing."""
    target = Path(options.target)
    if target.suffix != ".pdparams":
        raise UserError(f"cannot write {target}: name a file ending in .pdparams")
    written = [str(target), str(target.with_suffix(".json"))]
    check_outputs(written, [*weights, *_cards(weights), *others])
    present = [path for path in written if Path(path).exists()]
    if present and not options.overwrite:
        raise UserError(f"{present[0]} exists; choose another name, or replace it with --overwrite")
    return target


# --- prune ----------------------------------------------------------------------------------------


def _prune(options: argparse.Namespace) -> None:
    from . import prune, run_state

    target = _target(options, [options.weights], [options.data, options.classes])
    if options.dim and not options.data:
        raise UserError("--data is missing: pictures of the kind the network is used for, a folder or tar archive")
    for flag, value in (("--data", options.data), ("--limit", options.limit)):
        if options.sparsity and value:
            raise UserError(f"{flag} has no effect with --sparsity; leave it out")
    network = open_checkpoint(options)
    model, name = network.create(), network.name
    if options.dim:
        model = prune.narrow(model, options.dim, read_images(options.data, network.input, options.limit or 256))
        name = zoo.spelled(dataclasses.replace(zoo.variant(name), dim=options.dim))
    state = run_state.to_arrays(model.state_dict())
    if options.sparsity:
        state = prune.sparsify(state, options.sparsity)
    prune.write(target, state, name, network)
    count = sum(value.size for key, value in state.items() if not key.endswith(("._mean", "._variance")))
    zeros = f", {100 * prune.sparsity(state):.1f} % of the weights are 0" if options.sparsity else ""
    say(f"{network.path} -> {target}: {name}, {count:,} parameters{zeros}")


# --- export ---------------------------------------------------------------------------------------


def _export(options: argparse.Namespace) -> None:
    from . import export, web

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
    inputs = [options.weights, options.classes, options.calibrate, *_cards([options.weights])]
    check_outputs(list(map(str, written)), inputs)
    present = [str(path) for path in written if path.exists()]
    if present and not options.overwrite:
        raise UserError(f"{present[0]} exists; choose another name, or replace it with --overwrite")
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


# --- report ---------------------------------------------------------------------------------------


def _report(options: argparse.Namespace) -> None:
    from . import benchmark, datasets, deployment, deployment_page, sources
    from . import recipe as recipes
    from .finetune import count_classes, open_data
    from .loader import Samples, evenly, some
    from .transforms import eval_transform

    network = open_checkpoint(options)
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
    folder, digest = Path(options.output), sha256(network.path)
    _check_report(folder, digest, options.overwrite)
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
    material = deployment.Material(
        network,
        some(Samples(fitted, transform), deployment.FIT),
        Samples(judged, transform),
        deployment.trained_on(recipe, options.epochs) if options.epochs else None,
    )
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


# --- serve ----------------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> None:
    import socket

    from .serve import create_app

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


# --- benchmark ------------------------------------------------------------------------------------


def _benchmark(options: argparse.Namespace) -> None:
    from . import benchmark, performance

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
