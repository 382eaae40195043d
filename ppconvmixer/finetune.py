"""Train a recipe with ``paddle.Model`` into a run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import logging.handlers
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from . import card, datasets, distributed, phases, run_folder, run_state, sources, zoo
from . import recipe as recipes
from .datasets import Pictures
from .errors import UnreadablePictures, UserError, brief, shown
from .files import sha256, write_text
from .loader import Kept, Samples, evenly
from .losses import create_loss
from .mixing import Mixing
from .optim import ema_decay
from .recipe import Phase, Recipe
from .stopping import Stopped, StopWish
from .transforms import eval_transform, to_pixels, train_transform

logger = logging.getLogger("ppconvmixer")

_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}
MAX_CLASSES = 1 << 16  # beyond, and beyond the number of pictures, numbers are names, such as those of WordNet


def open_data(recipe: Recipe) -> tuple[Pictures, Pictures]:
    """Return the training and the validation pictures of a recipe.

    Raises:
        UserError: they cannot be found or read, or validation has classes that training has not.
    """
    data = recipe.data
    if data.dataset == "digits":
        return datasets.hold_out(datasets.digits(), data.val_fraction, recipe.train.seed)
    source = sources.open_source(data.path)
    if data.dataset == "cifar10":
        return datasets.cifar10(source, "train"), datasets.cifar10(source, "test")

    def part(name: Optional[str], classes: Optional[tuple[str, ...]] = None) -> Pictures:
        if data.dataset == "folder":
            found = datasets.from_folders(source, name or "", classes)
            _check_parts(found.classes, data.path)
            return found
        return datasets.from_csv(source, name, classes) if data.dataset == "csv" else datasets.from_list(source, name)

    train = part(data.train)
    if data.val is None:
        return datasets.hold_out(train, data.val_fraction, recipe.train.seed)
    val = part(data.val, train.classes)
    if val.classes and not train.classes:
        raise UserError(f"{data.val} has names of classes where {data.train} has numbers; give both the same")
    return train, val


def finetune(
    recipe: Recipe, folder: Path, resume: bool = False, overwrite: bool = False, allow_changes: bool = False
) -> dict[str, Any]:
    """Run ``recipe``; weights, cards, curves, log and figures go to ``folder``.

    Args:
        resume: go on with the run in ``folder`` where it was last saved.
        overwrite: replace the run in ``folder``.
        allow_changes: go on although recipe, pictures or number of processes are not what they were.

    Returns:
        The figures of the best epoch, as in ``result.json``.

    Raises:
        UserError: a setting, path or picture is wrong, or ``folder`` holds a run that this call must not touch.
        Stopped: after Ctrl-C or SIGTERM; the state of the last step is saved.
    """
    if distributed.WORLD > 1 and len({recipe.frozen_layers(epoch) for epoch in range(recipe.epochs)}) > 1:
        raise UserError(  # its reducer knows the layers that were trained when it was made, and ends the process later
            "finetune.unfreeze needs a single process: Paddle's DataParallel does not take in layers that thaw later"
        )
    distributed.start()
    if resume and not (folder / "recipe.yaml").is_file():
        raise UserError(f"there is nothing to resume in {folder}; leave --resume out to start")
    train, val = open_data(recipe)
    num_classes = count_classes(train)
    if num_classes < 2:
        raise UserError(
            f"all pictures in {recipe.data.path} are of one class; data.path must hold one folder a class, two or more"
        )
    _check_numbers(recipe, train)
    val.check_labels(num_classes)
    both = sorted(set(train.names) & set(val.names))
    if both:
        logger.warning(
            "%d of the pictures to evaluate on are trained on as well, such as %s; the accuracy will be too good",
            *(len(both), shown(both[0])),
        )
    names = f": {brief(', '.join(train.classes))}" if train.classes else ""
    logger.info("%d pictures to train on, %d to evaluate on, %d classes%s", len(train), len(val), num_classes, names)
    pictures = run_folder.listing(train, val)
    teacher = run_folder.teacher(recipe)
    with contextlib.ExitStack() as block:
        if not distributed.RANK:
            block.enter_context(run_folder.locked(folder))
            run_folder.tidy(folder)
        write_log = block.enter_context(_logged())
        saved, changed = None, []
        if resume:
            saved = run_state.read(folder)
            changed = run_folder.changes(folder, recipe, pictures, teacher, saved)
            if saved and _classes(saved.facts, train) != list(train.classes or ()):
                before = brief(", ".join(saved.facts["classes"]))
                changed.append(f"classes: {before} -> {brief(', '.join(train.classes or ()))}")
            if changed and not allow_changes:
                raise UserError(
                    f"this is not the run in {folder} any more: {'; '.join(changed)}; "
                    "put it back, or go on with --allow-changes"
                )
            for line in changed:
                logger.warning("changed: %s", line)
        if saved is None and not distributed.RANK:
            run_folder.check_free(folder, recipe, overwrite or resume)
        # What is wrong with the recipe shows here, before anything is replaced.
        run = _prepare(recipe, train, val, saved)
        if not distributed.RANK:
            if saved is None:
                run_folder.clear(folder)
            described = saved and not changed and run_folder.describes(folder, recipe, pictures)
            if run.state.epochs < recipe.epochs and not described:
                run_folder.describe(folder, recipe, pictures)
            (folder / run_folder.NOT_FINITE).unlink(missing_ok=True)  # going on, the run gets another chance
        distributed.gather(None)  # nobody goes on before the folder is ready
        write_log(folder / "log.txt")
        wish = block.enter_context(StopWish())
        curves = shlex.quote(str(folder / "visualdl"))
        logger.info("curves: visualdl --logdir %s --port 8040   then open http://127.0.0.1:8040", curves)
        logger.info("the same pictures without a server, after every epoch: %s", folder / "report.html")
        facts = {
            "recipe": recipe.to_dict(),
            "pictures": run_folder.digest(pictures),
            "judge": run_folder.judge(val),
            "classes": list(train.classes or ()),
            "teacher": teacher,
            "processes": distributed.WORLD,
            "changed": _history(run, changed),
        }
        facts["card"] = _card(facts)
        return _train(run, folder, facts, wish)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What trains and by what, where the run stands, and the batches of every epoch."""

    recipe: Recipe
    train: Pictures
    val: Pictures
    saved: Optional[run_state.Saved]
    model: Any
    state: run_state.RunState
    data: phases.Epochs
    amp: str


def _prepare(recipe: Recipe, train: Pictures, val: Pictures, saved: Optional[run_state.Saved]) -> _Run:
    """Make network, optimiser, average and teacher, as new or as they were saved; nothing is written."""
    import paddle

    from .distill import create_teacher
    from .optim import create_optimizer
    from .trainer import Trainer

    settings, spec, num_classes = recipe.train, recipe.input_spec(), count_classes(train)
    kept = Kept(len(train))

    def samples(phase: Phase) -> Samples:
        resized = dataclasses.replace(spec, size=phase.size)
        return Samples(train, train_transform(resized, recipe.augment), seed=settings.seed, kept=kept)

    mixing = Mixing(recipe.augment, num_classes, settings.label_smoothing) if recipe.augment.mixes else None
    data = phases.create(recipe, samples, mixing)
    _check_reach(recipe, len(train), min(map(len, data.batches)), sum(data.counts))
    amp = _amp(settings.amp)
    paddle.seed(settings.seed)
    network = _network(recipe, train.classes, num_classes, filled=saved is None)
    network.freeze(recipe.frozen_layers(0))
    average = None
    if settings.ema:
        average = zoo.create_model(recipe.model.name, num_classes=num_classes)
        average.set_state_dict(network.state_dict())
    loss = create_loss(settings.label_smoothing, soft=recipe.augment.mixes)
    teacher = None
    if recipe.distill:
        teacher = create_teacher(recipe, network.num_classes, train.classes, amp)
        loss = teacher.loss(loss)
    model = Trainer(network, average, teacher)
    model.prepare(create_optimizer(recipe, network, data.counts), loss, paddle.metric.Accuracy(name="top1"), amp)
    if distributed.WORLD > 1:
        logger.info("%d processes: %s", distributed.WORLD, _shared_step(recipe))
    state = run_state.restore(saved, model) if saved else run_state.RunState()
    if saved:  # recipe and processes may have changed, see ``allow_changes``
        _go_on_by(recipe, model, state, data, saved.facts)
        judge = run_folder.judge(val)
        if saved.facts.get("judge", judge) != judge and state.epochs < recipe.epochs:  # an older state does not say
            logger.warning("other pictures judge the run now; its best epoch is looked for anew")
            state.forget_best()
    data.epoch, data.skip = state.epochs, state.step
    return _Run(recipe, train, val, saved, model, state, data, amp)


def _train(run: _Run, folder: Path, facts: dict[str, Any], wish: StopWish) -> dict[str, Any]:
    import paddle

    from . import callbacks as c
    from . import curves as drawn

    recipe, train, val, saved = run.recipe, run.train, run.val, run.saved
    settings, spec, num_classes = recipe.train, recipe.input_spec(), count_classes(train)
    model, state, data, amp = run.model, run.state, run.data, run.amp
    as_saved = saved and saved.facts["recipe"]["train"]["ema"] == settings.ema  # else the best was another network
    if state.epochs and as_saved and not saved.run["step"]:
        before = {**saved.facts, "classes": _classes(saved.facts, train)}
        before["card"] = _card(before)
        c.export(folder, model, state, before)  # the run may have been cut off just before
    judge = Samples(val, eval_transform(spec), kept=Kept(len(val)))
    sheet = _sheet(data.batches[0].samples)
    curves = drawn.VisualDL(state, folder / "visualdl", recipe, sheet, saved.facts["curves"] if saved else 0)
    report = drawn.Report(state, folder, recipe)
    tell = c.Tell(state, data)
    save = c.Save(state, folder, facts, curves, wish, settings.save_minutes)
    steps = [
        paddle.callbacks.LRScheduler(),  # Paddle would put it last, after the state was saved
        c.Thaw(state, recipe),
        c.Evaluate(state, judge, recipe, amp, wish),
        c.Count(state, data, settings.seed),
        c.Check(state, data, folder),
        *([c.KeepZeros()] if recipe.finetune.keep_zeros else []),
        *([c.Average(state, settings.ema)] if settings.ema else []),
        c.EarlyStopping(state, settings.patience),
        curves,
        drawn.Classes(state, curves, drawn.class_names(train.classes, num_classes)),
        drawn.Histograms(state, curves, judge, recipe, amp),
        tell,
        save,
        report,
    ]
    left = recipe.epochs - state.epochs
    if settings.patience and state.epochs and state.epochs - state.best_epoch >= settings.patience:
        left = 0
    if left > 0:
        try:
            model.fit(data, epochs=left, callbacks=steps, verbose=0, shuffle=False)
        except (Stopped, UnreadablePictures) as end:
            if distributed.WORLD > 1 and not isinstance(end, Stopped):  # the others know nothing of it
                raise
            save.save()
            report.write()
            logger.info("saved in %s after %d steps; add --resume to the command to go on", folder, state.steps)
            raise
        finally:
            tell.close()
            curves.close()
    else:
        report.write()  # the run may have been cut off just before it did
        logger.info("the run in %s is complete; nothing is left to do", folder)
    best = folder / "best.pdparams"
    distributed.gather(None)  # rank 0 has written it
    result = {
        "model": recipe.model.name,
        "weights": {"path": str(best), "sha256": sha256(best) if best.exists() else None},  # it may be moved away
        "engine": "dygraph",
        **state.best_metrics,
        "ema": state.best_ema,
        "best_epoch": state.best_epoch,
        "epochs": state.epochs,
        "training_seconds": state.seconds,
    }
    if not distributed.RANK:
        write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")
    return result


def _go_on_by(
    recipe: Recipe, model: Any, state: run_state.RunState, data: phases.Epochs, before: dict[str, Any]
) -> None:
    """Bring what was restored to where a run of this recipe would be; that of the same recipe is there already.

    Args:
        before: the facts of the state.
    """
    if state.step and state.epochs < len(data.counts):  # by other batches: the whole steps of the pictures seen
        was = recipes.from_dict(before["recipe"])
        batch = [part.batch_size for part in was.phases() for _ in range(part.epochs)][state.epochs]
        seen = state.step * batch * was.train.accumulate * before["processes"]
        state.step = min(seen // (data.batches[state.epochs].global_batch * data.accumulate), data.counts[state.epochs])
    else:
        state.step = 0
    model._optimizer._learning_rate.step(sum(data.counts[: state.epochs]) + state.step)
    state.best = state.best_metrics.get(recipe.train.monitor)
    if recipe.train.ema is None:
        state.ema_metrics = {}


class _Log(logging.FileHandler):
    """A file that may fail to grow: a full disk must not hide what else there is to say of it."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Leave the line out."""

    def close(self) -> None:
        """Close the file without what cannot be written any more."""
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def _logged() -> Iterator[Callable[[Path], None]]:
    """Give what copies all that is said inside the block to a file, before and after, of the first process only."""
    if distributed.RANK:
        yield lambda file: None
        return
    kept = logging.handlers.MemoryHandler(sys.maxsize, sys.maxsize, flushOnClose=False)
    logger.addHandler(kept)
    level = logger.level
    logger.setLevel(min(logging.INFO, level or logging.INFO))  # called from Python, nobody may have set it

    def write_to(file: Path) -> None:
        handler = _Log(file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        kept.setTarget(handler)
        kept.flush()
        kept.capacity = 1  # from now on, every line at once

    try:
        yield write_to
    finally:
        logger.setLevel(level)
        logger.removeHandler(kept)
        if kept.target:
            kept.target.close()
        kept.close()


def count_classes(train: Pictures) -> int:
    """Return how many classes a network for these training pictures tells apart."""
    return len(train.classes) if train.classes else int(train.labels.max()) + 1


def _check_reach(recipe: Recipe, pictures: int, batches: int, steps: int) -> None:
    """Say which settings come to less than they name with so few pictures, batches an epoch, or steps in the run."""
    ema, reached = recipe.train.ema, ema_decay(1.0, steps)
    if ema and ema > reached:
        logger.warning(
            "train.ema is %g, but comes to %.4f at most in %d steps, as every larger value does; take a smaller one",
            *(ema, reached, steps),
        )
    batch = max(phase.batch_size for phase in recipe.phases())
    if batch > pictures:
        logger.warning("a batch of %d is of the %d training pictures there are; take a smaller one", batch, pictures)
    if recipe.train.accumulate > batches:
        logger.warning(
            "train.accumulate is %d, but an epoch has %d batches, and a step ends with it; take a smaller one",
            *(recipe.train.accumulate, batches),
        )
    if recipe.schedule.name == "onecycle" and steps == 1:
        logger.warning("the only step of this run is the last of onecycle, at a rate of 0; take smaller batches")


def _check_numbers(recipe: Recipe, train: Pictures) -> None:
    """Refuse numbers of classes that run ahead of the pictures, names that no card holds, and say which have none."""
    count, found = count_classes(train), np.unique(train.labels)
    if sum(map(len, map(repr, train.classes or ()))) > card.MAX_BYTES // 4:  # a letter takes up to 6 bytes there
        raise UserError(f"the names of {count:,} classes are too long for a card; give shorter ones")
    if count > max(MAX_CLASSES, len(train)):
        place = int(train.labels.argmax())
        raise UserError(
            f"{brief(train.names[place])} has the label {train.labels[place]}, which makes {count:,} classes of "
            f"{len(train):,} training pictures; number the classes in {recipe.data.train or recipe.data.path} from 0 on"
        )
    if len(found) < count:
        without = np.setdiff1d(np.arange(count), found)[0]
        name = f" ({train.classes[without]})" if train.classes else ""
        logger.warning(
            "%d of %d classes have no training picture, such as %d%s", count - len(found), count, without, name
        )


def _check_parts(classes: tuple[str, ...], path: str) -> None:
    """Refuse to take the folders of the parts of a data set for those of classes."""
    parts = [name for name in classes if name.lower() in _PARTS]
    if len(parts) == len(classes) > 1:
        train = next((name for name in parts if name.lower().startswith("train")), parts[0])
        val = next((name for name in parts if name.lower().startswith("val")), next(p for p in parts if p != train))
        raise UserError(
            f"the folders {', '.join(parts)} of {path} are parts of a data set and no classes; "
            f"set data.train={train} data.val={val} data.val_fraction=null"
        )


def _history(run: _Run, changed: list[str]) -> list[dict[str, Any]]:
    """Return what changed under way, and after how much of the run: all that is not as the recipe says."""
    if run.saved is None:
        return []
    before = run.saved.facts.get("changed", [])  # an older state does not say
    now = {"epochs": run.state.epochs, "steps": run.state.steps, "changes": changed}
    return [*before, now] if changed else before


def _classes(facts: dict[str, Any], train: Pictures) -> list[str]:
    """Return the names of the classes of a saved state; an older one does not say."""
    return facts.get("classes", list(train.classes or ()))


def _card(facts: dict[str, Any]) -> dict[str, Any]:
    recipe = recipes.from_dict(facts["recipe"])
    about = {"recipe": facts["recipe"], **({"changed": facts["changed"]} if facts.get("changed") else {})}
    spec = dataclasses.asdict(recipe.input_spec())
    return dataclasses.asdict(card.Card(recipe.model.name, spec, tuple(facts["classes"]) or None, facts=about))


def _network(recipe: Recipe, classes: Optional[tuple[str, ...]], num_classes: int, filled: bool = True) -> Any:
    """Make the network; a checkpoint's head stays only if it tells the same classes apart.

    Args:
        filled: from the checkpoint; a saved state has all there is, and the checkpoint may be gone by then.
    """
    settings = recipe.model
    drops = {"drop_rate": settings.drop_rate, "drop_path": settings.drop_path}
    network = zoo.create_model(settings.name, num_classes=num_classes, **drops)
    if settings.weights and filled:
        weights = zoo.find_weights(settings.name, settings.weights)
        logger.info("%s: %s", weights, zoo.load_weights(network, weights, reset_head=True))
        found = card.read(weights)
        if found.model:
            _compare(recipe, weights, found)
        theirs = found.classes
        if theirs and classes and theirs != classes and len(theirs) == num_classes:
            network.reset_classifier(num_classes)
            logger.warning("the head of %s is for other classes; this model's is freshly initialised", weights)
    return network


def _compare(recipe: Recipe, weights: Path, found: card.Card) -> None:
    """Say where the network that weights were trained in is another one by its card than that of the recipe.

    Raises:
        UserError: its activation is, which the shapes do not tell; or the card makes no sense.
    """
    try:
        theirs, before = zoo.variant(found.model), zoo.input_spec(found.model, **found.input)
    except UserError as error:
        raise UserError(f"the card of {weights}: {error}") from error
    ours, now = zoo.variant(recipe.model.name), recipe.input_spec()
    if theirs.act != ours.act:
        raise UserError(
            f"{weights} is a {found.model} by its card, with {theirs.act}; {recipe.model.name} has {ours.act}. "
            f"Set model.name={found.model}"
        )
    for key in ("mean", "std"):
        was, wanted = list(getattr(before, key)), list(getattr(now, key))
        if was != wanted:
            logger.warning("%s was trained with input.%s=%s; this recipe has %s", weights, key, was, wanted)


def _shared_step(recipe: Recipe) -> str:
    """Say what several processes make of batch size and learning rate."""
    count, batches = recipe.train.accumulate, dict.fromkeys(phase.batch_size for phase in recipe.phases())
    steps = [
        f"{distributed.WORLD} x {batch}{f' x {count}' if count > 1 else ''} = {distributed.WORLD * batch * count}"
        for batch in batches
    ]
    return (
        f"train.batch_size is that of one, a step takes {', then '.join(steps)} pictures; optimizer.lr stays "
        f"{recipe.optimizer.lr:g} (docs/finetuning.md says how to choose it)"
    )


def _amp(level: str) -> str:
    import paddle

    if level != "O0" and not paddle.get_device().startswith("gpu"):
        logger.warning("mixed precision (train.amp %s) needs a GPU; this run trains in float32", level)
        return "O0"
    return level


def _sheet(samples: Samples) -> np.ndarray:
    """Return a contact sheet of augmented pictures from all over the data set, uint8 (H, W, 3); white where broken."""
    columns, rows, size = 8, 4, samples.size
    picked = evenly(len(samples), columns * rows)
    images = np.empty((len(picked), 3, size, size), np.float32)
    readable = samples.fill(images, picked)
    sheet = np.full((rows * columns, size, size, 3), 255, np.uint8)
    sheet[np.flatnonzero(readable)] = to_pixels(images[readable], samples.transform.spec)
    return sheet.reshape(rows, columns, size, size, 3).transpose(0, 2, 1, 3, 4).reshape(rows * size, columns * size, 3)
