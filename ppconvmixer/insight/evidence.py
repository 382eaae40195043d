"""What is known of a run: what its folder says, and what its best network makes of its training pictures.

Whatever is not known has a reason in ``Evidence.gaps``, so that nothing passes for healthy that nobody looked at.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from .. import card, checkpoint, per_class, recipe, records, report, run_folder
from ..errors import UserError, brief, printable, said
from ..recipe import Recipe
from ..records import Records
from ..run_state import merit

if TYPE_CHECKING:
    from .examination import Examination

MAX_CLASSES = 1 << 20  # a larger label is a damaged one
TOP1 = "top1", "acc", "acc_top1"
"""What the accuracy is called in records: by us, and by ``paddle.callbacks.VisualDL`` for one k and for several."""


@dataclasses.dataclass(frozen=True)
class Evaluations:
    """What is known of every evaluated epoch; of a run with a moving average, of that. Arrays are (epochs,)."""

    ends: np.ndarray
    """int64, steps that had been taken."""
    loss: np.ndarray
    """float64, on the validation part."""
    top1: np.ndarray
    train_loss: np.ndarray
    """float64, mean over the steps of the epoch, on augmented pictures, while the network changed."""
    train_top1: np.ndarray
    best: int
    """Place of the epoch that ``best.pdparams`` is of."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known of a run. What is None has its reason in ``gaps``, under its name."""

    source: str
    gaps: dict[str, str]
    recipe: Optional[Recipe] = None
    classes: Optional[tuple[str, ...]] = None
    losses: Optional[np.ndarray] = None
    """float64 (steps,), of every step."""
    rates: Optional[np.ndarray] = None
    """float64 (steps,), the learning rate of the head at every step."""
    norms: Optional[np.ndarray] = None
    """float64 (points,), the norm of the gradients of steps, before any cut."""
    norm_steps: Optional[np.ndarray] = None
    """int64 (points,), steps taken by then."""
    layers: Optional[dict[str, np.ndarray]] = None
    """float64 (points,), the norm of the gradients of a layer; from the stem up."""
    layer_steps: Optional[dict[str, np.ndarray]] = None
    """int64 (points,), steps taken by then; a layer that was frozen at first has points from later on."""
    evaluations: Optional[Evaluations] = None
    finished: Optional[bool] = None
    not_finite: Optional[tuple[str, ...]] = None
    """Pictures of the batch whose loss was no number and ended the run; () where that did not happen."""
    counts: Optional[np.ndarray] = None
    """int64 (classes,), training pictures."""
    recalls: Optional[np.ndarray] = None
    """float64 (classes,), the accuracy of every class in the best epoch; NaN where it has no picture."""
    waiting: Optional[np.ndarray] = None
    """float64 (epochs,), share of the time of training that its steps waited for pictures."""
    cpus: Optional[int] = None
    """Of the machine the run was made on."""
    weight_size: Optional[float] = None
    """Root of the mean square of the weights of the last epoch, biases and norms left out."""
    weight_norm: Optional[float] = None
    """Root of the sum of the same squares."""
    examination: Optional[Examination] = None


def gather(path: Path, data: Optional[str] = None, limit: int = 2000) -> Evidence:
    """Return what is known of a run folder, or of a folder or file of VisualDL records.

    Args:
        data: where the pictures of the run are now; None for where its recipe says.
        limit: judge the labels of so many training pictures; 0 of all.

    Raises:
        UserError: there is no such run, it cannot be read, or ``data`` is not the data of the run.
    """
    folder, file = _find(path)
    try:
        found = records.Records(file).read()
    except OSError as error:
        reason = error.strerror or said(error)
        raise UserError(f"cannot read {file}: {reason}; give the folder of a run that you may read") from error
    gaps: dict[str, str] = {}
    known: dict[str, Any] = {**_curves(found, gaps), **_written(folder, found, gaps)}
    if not found.curves and not known.get("not_finite"):  # a loss that is no number ends a run before it is drawn
        raise UserError(f"{file} holds no curves; give the folder of a run, or a file of VisualDL records")
    known["evaluations"] = _evaluations(found, known["recipe"], gaps)
    known["finished"] = _finished(folder, known["recipe"], known["evaluations"], gaps)
    known["recalls"] = _recalls(found, known["classes"], gaps)
    if folder is None:
        if data:
            raise UserError(f"{path} is no run folder, so there is no network to show the pictures of --data")
        gaps["examination"] = "there are records only, no network"
    else:
        known["examination"] = _examine(folder, known["recipe"], data, limit, gaps)
    return Evidence(str(path), gaps, **known)


def _find(path: Path) -> tuple[Optional[Path], Path]:
    """Return the run folder, None where there are records only, and the file of the records."""
    if path.is_file():
        return None, path
    if not path.is_dir():
        raise UserError(f"there is no run {path}; name the folder that finetune wrote to")
    own = path / "visualdl" / records.FILE
    if own.is_file():
        return path, own
    files = sorted(path.glob("vdlrecords*.log"))
    if not files:
        raise UserError(f"{path} holds no run: neither visualdl/{records.FILE} nor vdlrecords*.log is there")
    return None, files[-1]  # as VisualDL, which shows the newest by name


def _curves(found: Records, gaps: dict[str, str]) -> dict[str, Any]:
    """Return what is recorded of the steps."""
    known: dict[str, Any] = {}
    for name, tag in (
        *(("losses", records.STEPS), ("rates", "train/learning_rate"), ("norms", "train/gradient_norm")),
        ("waiting", "train/waiting"),
    ):
        if tag in found.curves:
            steps, values = found.curves[tag]
            known[name] = np.array(values, np.float64)
            if name == "norms":
                known["norm_steps"] = np.array(steps, np.int64)
        else:
            gaps[name] = f"the records have no curve {tag}"
    prefix = f"{records.LAYERS}/"
    layers = {tag[len(prefix) :]: curve for tag, curve in found.curves.items() if tag.startswith(prefix)}
    if layers:
        layers = {name: layers[name] for name in sorted(layers, key=records.height)}  # one that thaws is recorded last
        known["layers"] = {name: np.array(values, np.float64) for name, (_, values) in layers.items()}
        known["layer_steps"] = {name: np.array(steps, np.int64) for name, (steps, _) in layers.items()}
    else:
        gaps["layers"] = f"the records have no curves {prefix}..."
    return known


def _evaluations(found: Records, settings: Optional[Recipe], gaps: dict[str, str]) -> Optional[Evaluations]:
    counts = {part: len(found.curves.get(f"{part}/loss", ([],))[0]) for part in ("eval", "eval_ema")}
    # The average is the run's result, unless it was switched on or off on the way.
    part = "eval_ema" if counts["eval_ema"] and counts["eval_ema"] >= counts["eval"] else "eval"
    name = next((name for name in TOP1 if f"train/{name}" in found.curves), TOP1[0])
    for tag in (f"{part}/loss", f"{part}/{name}", records.STEPS, f"train/{name}"):
        if tag not in found.curves:
            gaps["evaluations"] = f"the records have no curve {tag}"
            return None
    at, losses = found.curves[f"{part}/loss"]
    top1 = found.curves[f"{part}/{name}"][1]
    train, hits = (np.array(found.curves[tag][1]) for tag in (records.STEPS, f"train/{name}"))
    count = min(len(at), len(top1))
    ends, loss, accuracy = np.array(at[:count], np.int64), np.array(losses[:count]), np.array(top1[:count])
    if (np.diff(ends) <= 0).any() or not 0 < ends[0] <= ends[-1] <= min(len(train), len(hits)):
        gaps["evaluations"] = "the curves of training do not belong to those of evaluation"
        return None
    monitor = settings.train.monitor if settings else "top1"
    return Evaluations(
        *(ends, loss, accuracy),
        train_loss=np.array([part.mean() for part in np.split(train, ends)[: len(ends)]]),
        train_top1=hits[ends - 1],
        best=int(np.argmax(merit(loss if monitor == "loss" else accuracy, monitor))),
    )


def _written(folder: Optional[Path], found: Records, gaps: dict[str, str]) -> dict[str, Any]:
    """Return what the files of the run say beside its records."""
    known: dict[str, Any] = {"recipe": None, "classes": None}
    try:
        text = found.last("text", "recipe")
        if folder and (folder / "recipe.yaml").is_file():
            known["recipe"] = recipe.load(folder / "recipe.yaml")
        elif text is not None:
            known["recipe"] = recipe.from_yaml(text.encoded_text_string)
        else:
            gaps["recipe"] = "there is no recipe"
    except UserError as error:
        gaps["recipe"] = f"the recipe cannot be read: {error}"
    if folder is None:
        gaps["counts"] = "there are records only, no pictures.csv"
        names = _confused(found)[1]
        if names:
            known["classes"] = tuple(names.get(label, str(label)) for label in range(max(names) + 1))
        return known
    broken = folder / run_folder.NOT_FINITE
    known["not_finite"] = tuple(broken.read_text("utf-8", "replace").splitlines()) if broken.is_file() else ()
    if known["not_finite"]:
        known["losses"] = _array(found, records.STEPS)
    try:
        known["counts"] = _counts(folder / "pictures.csv")
    except (OSError, ValueError, csv.Error) as error:
        gaps["counts"] = f"pictures.csv cannot be read: {said(error)}"
    try:
        known["cpus"] = int(json.loads((folder / "environment.json").read_text("utf-8"))["cpus"])
    except (OSError, ValueError, TypeError, KeyError):
        gaps["cpus"] = "environment.json does not say how many cores there were"
    weights = folder / "last.pdparams"
    try:
        known["classes"] = card.read(weights).classes
        arrays = [a for name, a in checkpoint.read(weights).items() if a.ndim > 1]
        squares = sum(float(np.square(a, dtype=np.float64).sum()) for a in arrays)
        known["weight_size"] = float(np.sqrt(squares / max(sum(a.size for a in arrays), 1)))
        known["weight_norm"] = float(np.sqrt(squares))
    except UserError as error:
        gaps["weight_size"] = gaps["weight_norm"] = f"no weights of the run can be read: {error}"
    if known["classes"] is None and known.get("counts") is not None:
        known["classes"] = tuple(str(label) for label in range(len(known["counts"])))
    return known


def _array(found: Records, tag: str) -> np.ndarray:
    return np.array(found.curves[tag][1]) if tag in found.curves else np.empty(0)


def _counts(file: Path) -> np.ndarray:
    with open(file, encoding="utf-8", errors="surrogateescape", newline="") as stream:
        rows, labels = csv.reader(stream), []
        next(rows, None)
        for row in filter(None, rows):
            if len(row) != 3:
                raise ValueError(f"line {rows.line_num} is not of the form part,label,path")
            if row[0] == "train":
                labels.append(int(row[1]))
                if not 0 <= labels[-1] < MAX_CLASSES:
                    raise ValueError(f"line {rows.line_num} has the label {brief(row[1])}")
    if not labels:
        raise ValueError("it lists no training pictures")
    return np.bincount(labels)


def _recalls(found: Records, classes: Optional[tuple[str, ...]], gaps: dict[str, str]) -> Optional[np.ndarray]:
    cells, names = _confused(found)
    if not names or classes is None or max(names) >= len(classes):
        gaps["recalls"] = "the records have no accuracies of classes"
        return None
    pictures, right = per_class.pictures(cells, len(classes))
    with np.errstate(invalid="ignore"):
        return right / pictures


def _confused(found: Records) -> tuple[np.ndarray, dict[int, str]]:
    """Return the last confusion matrix as ``report.read_cells`` does; without names where there is none of use."""
    text = found.last("text", report.CONFUSION)
    try:
        cells, names = report.read_cells(text.encoded_text_string if text else "")
    except (ValueError, OverflowError, csv.Error):  # damaged
        return np.empty((0, 3), np.int64), {}
    return (cells, names) if names and min(names) >= 0 and max(names) < MAX_CLASSES else (cells[:0], {})


def _finished(
    folder: Optional[Path], settings: Optional[Recipe], evaluations: Optional[Evaluations], gaps: dict[str, str]
) -> Optional[bool]:
    """Tell whether the run came to its end, of itself or because it got no better."""
    if settings is None:
        gaps["finished"] = "without a recipe nobody knows where the run was to end"
        return None
    done = len(evaluations.ends) if evaluations else 0
    if done >= settings.epochs:
        return True
    if folder and settings.train.patience:
        try:
            return json.loads((folder / "result.json").read_text("utf-8"))["epochs"] == done
        except (OSError, ValueError, TypeError, KeyError):
            return False
    return False


def _examine(
    folder: Path, settings: Optional[Recipe], data: Optional[str], limit: int, gaps: dict[str, str]
) -> Optional[Examination]:
    """Show the best network its training pictures, where both are still there."""
    if settings is None:
        gaps["examination"] = gaps["recipe"]
        return None
    if data is not None:
        if settings.data.path is None:
            raise UserError(f"the data set {settings.data.dataset} comes with scikit-learn; leave --data out")
        settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, path=data))
    if not (folder / "best.pdparams").is_file():
        gaps["examination"] = "there is no network yet: no epoch came to its end"
        return None
    from ..finetune import open_data
    from ..trained import Trained
    from .examination import examine

    try:
        train, val = open_data(settings)
        listing = run_folder.listing(train, val)
        file = folder / "pictures.csv"
        if file.is_file() and listing != file.read_text("utf-8", "surrogateescape"):
            raise UserError(f"they are not those of the run ({run_folder.changed_pictures(file, listing)})")
    except (UserError, OSError) as error:
        if data is not None:
            raise UserError(f"--data {data}: {error}") from error
        gaps["examination"] = f"the training pictures are not at hand: {printable(str(error))}; say where with --data"
        return None
    try:
        network = Trained(folder / "best.pdparams").create()
        network.eval()
        return examine(network, settings, train, limit)
    except UserError as error:
        gaps["examination"] = f"the network could not be shown its pictures: {printable(str(error))}"
        return None
