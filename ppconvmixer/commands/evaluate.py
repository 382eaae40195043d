"""``ppconvmixer eval``: accuracy and loss of a checkpoint or an exported graph."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import __version__, distributed, labels, views, zoo
from ..errors import UserError
from ..exported import is_graph
from ..files import atomic_write, sha256, table_path, write_text
from .arguments import add_command, add_network, add_views, natural, positive, say
from .inputs import named_data, open_network, open_pictures
from .outputs import cards, check_outputs

if TYPE_CHECKING:
    from ..evaluate import Evaluation

logger = logging.getLogger("ppconvmixer")


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, _run, "eval", "measure accuracy and loss of a checkpoint on labelled pictures")
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


def _run(options: argparse.Namespace) -> None:
    from .. import export
    from ..evaluate import evaluate
    from ..loader import Samples
    from ..transforms import eval_transform

    network = open_network(options)
    seen = views.parse(options.tta, network.name, network.input)
    outputs = [path for path in (options.output, options.predictions, options.logits) if path]
    inputs = [network.path, *named_data(options), options.classes, options.labels_file]
    beside = map(str, export.files(network.path)) if is_graph(options.model) else cards([network.path])
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
    _write(options, result, found, pictures.names)
    if metrics["k"] < 5:
        logger.info("the model has %d classes, so top-5 is top-%d", engine.num_classes, metrics["k"])
    say(_line(result))


def _write(options: argparse.Namespace, result: dict[str, Any], found: Evaluation, names: Sequence[str]) -> None:
    """Write the files that are asked for."""
    if options.output:
        write_text(options.output, json.dumps(result, indent=2) + "\n")
    if options.predictions:
        write_text(options.predictions, _predictions(found, names))
    if options.logits:
        import numpy as np

        with atomic_write(options.logits) as stream:
            np.save(stream, found.logits)


def _line(result: dict[str, Any]) -> str:
    """Return the figures of ``result.json`` as a line."""
    views, judged = len(result["views"]), result.get("labels", {})
    told = f" in {views} views" if views > 1 else ""
    told += f", labels {judged['name']}" if judged else ""
    told += f" ({judged['left_out']} pictures without any left out)" if judged.get("left_out") else ""
    told += f", {judged['chosen']} classes to choose among" if judged.get("chosen") is not None else ""
    expected = judged.get("published")
    return (
        f"{result['model']}: {result['samples']} pictures{told}, {result['skipped']} skipped; "
        f"top-1 {100 * result['top1']:.2f} %, top-{result['k']} {100 * result['top5']:.2f} %, "
        f"loss {result['loss']:.4f}, {result['images_per_second']:.1f} img/s"
        + (f"; published weights of it have top-1 {100 * expected:.2f} % (timm)" if expected else "")
    )


def _relabelled(options: argparse.Namespace, network: Any) -> labels.Relabelled:
    """Return the pictures of ``--data`` with the labels that ``--labels`` names."""
    from .. import datasets, sources

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


def _predictions(found: Evaluation, names: Sequence[str]) -> str:
    import numpy as np

    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    places = range(1, found.k + 1)
    rows.writerow(["path", "label", *(f"class_{i}" for i in places), *(f"probability_{i}" for i in places)])
    for index, label, classes, probabilities in zip(found.indices, found.labels, found.classes, found.probabilities):
        label = " ".join(map(str, dict.fromkeys(np.ravel(label).tolist())))  # ReaL has several
        rows.writerow([table_path(names[index]), label, *classes, *(f"{p:.6f}" for p in probabilities)])
    return text.getvalue()
