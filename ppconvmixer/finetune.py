"""Train a recipe with ``paddle.Model`` into a run folder."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Optional

import numpy as np

from . import card, datasets, distributed, zoo
from . import recipe as recipes
from .datasets import Pictures
from .errors import UserError
from .files import sha256, write_text
from .loader import Samples, TrainBatches
from .recipe import Recipe
from .transforms import eval_transform, train_transform
from .zoo import InputSpec

logger = logging.getLogger("ppconvmixer")

RUN_FILES = (
    *("recipe.yaml", "environment.json", "log.txt", "visualdl", "result.json", "state.safetensors"),
    *("best.pdparams", "best.json", "last.pdparams", "last.json"),
)
"""What a run folder holds; ``--overwrite`` removes these and nothing else."""


def open_data(recipe: Recipe) -> tuple[Pictures, Pictures]:
    """Return the training and the validation pictures of a recipe.

    Raises:
        UserError: they cannot be found or read, or validation has classes that training has not.
    """
    data = recipe.data
    if data.dataset == "digits":
        return datasets.hold_out(datasets.digits(), data.val_fraction, recipe.train.seed)
    source = datasets.open_source(data.path)
    if data.dataset == "cifar10":
        return datasets.cifar10(source, "train"), datasets.cifar10(source, "test")

    def part(name: Optional[str], classes: Optional[tuple[str, ...]] = None) -> Pictures:
        if data.dataset == "folder":
            return datasets.from_folders(source, name or "", classes)
        return datasets.from_csv(source, name, classes) if data.dataset == "csv" else datasets.from_list(source, name)

    train = part(data.train)
    if data.val is None:
        return datasets.hold_out(train, data.val_fraction, recipe.train.seed)
    return train, part(data.val, train.classes)


def finetune(recipe: Recipe, folder: Path, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Run ``recipe``; weights, cards, curves, log and figures go to ``folder``.

    Args:
        resume: go on after the last whole epoch of the run in ``folder``.
        overwrite: replace the run in ``folder``.

    Returns:
        The figures of the best epoch, as in ``result.json``.

    Raises:
        UserError: a setting, path or picture is wrong, or ``folder`` holds a run that this call must not touch.
        KeyboardInterrupt: after Ctrl-C; the checkpoints of the last whole epoch are there.
    """
    distributed.start()
    train, val = open_data(recipe)
    classes = train.classes
    num_classes = len(classes) if classes else int(train.labels.max()) + 1
    val.check_labels(num_classes)
    logger.info("%d pictures to train on, %d to evaluate on, %d classes", len(train), len(val), num_classes)
    if not distributed.RANK:
        _prepare(folder, recipe, resume, overwrite)
    distributed.gather(None)  # nobody goes on before the folder is ready
    log = None if distributed.RANK else logging.FileHandler(folder / "log.txt", encoding="utf-8")
    if log:
        log.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(log)
    logger.info("curves: visualdl --logdir %s --port 8040   then open http://127.0.0.1:8040", folder / "visualdl")
    try:
        return _train(recipe, folder, resume, train, val, num_classes)
    finally:
        if log:
            logger.removeHandler(log)
            log.close()


def _train(
    recipe: Recipe, folder: Path, resume: bool, train: Pictures, val: Pictures, num_classes: int
) -> dict[str, Any]:
    import paddle

    from . import callbacks as c
    from .optim import create_optimizer

    settings, spec = recipe.train, recipe.input_spec()
    samples = Samples(train, train_transform(spec, recipe.augment), spec.size, seed=settings.seed)
    data = TrainBatches(samples, settings.batch_size, recipe.data.workers)
    amp = _amp(settings.amp)
    paddle.seed(settings.seed)
    network = _network(recipe, train.classes, num_classes)
    model = paddle.Model(network)
    model.prepare(
        create_optimizer(recipe, network, len(data)),
        paddle.nn.CrossEntropyLoss(
            **({"label_smoothing": settings.label_smoothing} if settings.label_smoothing else {})
        ),
        paddle.metric.Accuracy(name="top1"),
        amp_configs=amp,
    )
    state = c.load_state(folder / "state.safetensors", model) if resume else c.RunState()
    data.epoch = state.epochs
    facts = card.Card(
        recipe.model.name, dataclasses.asdict(spec), train.classes, facts={"recipe": dataclasses.asdict(recipe)}
    )
    steps = [
        c.Count(state, settings.seed),
        c.Evaluate(state, Samples(val, eval_transform(spec), spec.size), recipe, amp),
        c.EarlyStopping(state, settings.patience),
        c.VisualDL(state, folder / "visualdl", recipe, _sheet(samples, spec)),
        c.ModelCheckpoint(state, folder, facts),
        c.Tell(state, settings.epochs, settings.batch_size),
    ]
    left = settings.epochs - state.epochs
    if settings.patience and state.epochs and state.epochs - state.best_epoch >= settings.patience:
        left = 0
    if left > 0:
        model.fit(data, epochs=left, callbacks=steps, verbose=0, shuffle=False)
    else:
        logger.info("the run in %s is complete; nothing is left to do", folder)
    best = folder / "best.pdparams"
    distributed.gather(None)  # rank 0 has written it
    result = {
        "model": recipe.model.name,
        "weights": {"path": str(best), "sha256": sha256(best)},
        "engine": "dygraph",
        **state.best_metrics,
        "best_epoch": state.best_epoch,
        "epochs": state.epochs,
        "training_seconds": state.seconds,
    }
    if not distributed.RANK:
        write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")
    return result


def _network(recipe: Recipe, classes: Optional[tuple[str, ...]], num_classes: int) -> Any:
    """Make the network; a checkpoint's head stays only if it tells the same classes apart."""
    settings = recipe.model
    network = zoo.create_model(settings.name, num_classes=num_classes, drop_rate=settings.drop_rate)
    if settings.weights:
        weights = zoo.find_weights(settings.name, settings.weights)
        logger.info("%s: %s", weights, zoo.load_weights(network, weights, reset_head=True))
        theirs = card.read(weights).classes
        if theirs and classes and theirs != classes and len(theirs) == num_classes:
            network.reset_classifier(num_classes)
            logger.warning("the head of %s is for other classes; this model's is freshly initialised", weights)
    return network


def _amp(level: str) -> str:
    import paddle

    if level != "O0" and not paddle.get_device().startswith("gpu"):
        logger.warning("mixed precision (train.amp %s) needs a GPU; this run trains in float32", level)
        return "O0"
    return level


def _prepare(folder: Path, recipe: Recipe, resume: bool, overwrite: bool) -> None:
    """Make the run folder ready, or refuse to touch what is in it."""
    present = [name for name in RUN_FILES if (folder / name).exists()]
    if resume:
        if not (folder / "state.safetensors").is_file():
            raise UserError(f"there is nothing to resume in {folder}; leave --resume out to start")
        changed = recipes.differences(recipes.load(folder / "recipe.yaml"), recipe)
        changed = [line for line in changed if not line.startswith("data.workers:")]
        if changed:
            raise UserError(f"the recipe differs from the one of the run in {folder}: {'; '.join(changed)}")
        return
    if present and not overwrite:
        raise UserError(
            f"{folder} already holds a run; choose another --output, go on with --resume or replace it with --overwrite"
        )
    for name in present:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_text(folder / "recipe.yaml", recipe.to_yaml())
    write_text(folder / "environment.json", json.dumps(_environment(recipe), indent=2) + "\n")


def _environment(recipe: Recipe) -> dict[str, Any]:
    """Return what a later reader needs to know of where the run was made."""
    import paddle

    versions = {}
    for name in ("ppconvmixer", "numpy", "pillow", "visualdl", "scikit-learn"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "command": sys.argv,
        "seed": recipe.train.seed,
        "git_revision": _git_revision(),
        "versions": {"python": platform.python_version(), "paddle": paddle.__version__, **versions},
        "platform": platform.platform(),
        "device": paddle.get_device(),
        "processes": distributed.WORLD,
        "cpus": os.cpu_count(),
    }


def _git_revision() -> Optional[str]:
    """Return the revision of the clone this code runs from; None where it is installed."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None


def _sheet(samples: Samples, spec: InputSpec, columns: int = 8, rows: int = 4) -> np.ndarray:
    """Return a contact sheet of augmented pictures, uint8 (H, W, 3)."""
    count = min(columns * rows, len(samples))
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (spec.mean, spec.std))
    sheet = np.full((rows, columns, spec.size, spec.size, 3), 255, np.uint8)
    picked = np.linspace(0, len(samples) - 1, count).astype(int)
    for place, index in enumerate(picked):
        image, *_, readable = samples[(0, int(index))]
        if readable:
            pixels = np.clip((image * std + mean) * 255 + 0.5, 0, 255).astype(np.uint8)
            sheet[divmod(place, columns)] = pixels.transpose(1, 2, 0)
    return sheet.transpose(0, 2, 1, 3, 4).reshape(rows * spec.size, columns * spec.size, 3)
