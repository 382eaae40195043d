"""The run folder: what it holds, who may write to it, and what must not have changed on ``--resume``."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Optional

import filelock

from . import distributed, run_state, zoo
from . import recipe as recipes
from .datasets import Pictures
from .errors import UserError
from .files import read_text, sha256, table_path, write_text
from .recipe import Recipe
from .run_state import Saved

NOT_FINITE = "not_finite.txt"
"""Names the pictures of the batch whose loss was no number, where that ended the run."""
RUN_FILES = (
    *("recipe.yaml", "pictures.csv", "environment.json", "log.txt", "visualdl", "result.json", NOT_FINITE),
    *("report.html", "best.pdparams", "best.json", "last.pdparams", "last.json"),
)
"""What a run folder holds beside the states; ``--overwrite`` removes these and nothing else."""
_HARMLESS = ("data.workers:", "train.save_minutes:", "train.histograms:")  # settings that change nothing of the result
_LOCK_SECONDS = 10  # the data workers of a run that was just killed hold its lock until they notice


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of ``folder`` (made if need be) inside the block.

    Raises:
        UserError: another process trains there, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock")
        lock.acquire(timeout=_LOCK_SECONDS)
    except FileExistsError as error:
        raise UserError(f"{folder} is a file; name a folder for the run with --output") from error
    except filelock.Timeout as error:
        raise UserError(f"another process is training into {folder}; choose another --output") from error
    except (OSError, NotImplementedError) as error:  # the latter where the file system knows no locks
        raise UserError(f"cannot write to {folder}: {getattr(error, 'strerror', None) or error}") from error
    try:
        yield
    finally:
        lock.release()


def check_free(folder: Path, recipe: Recipe, overwrite: bool) -> None:
    """Find out that a run may begin in ``folder``.

    Raises:
        UserError: there is one, and ``overwrite`` is not given, or files of the user would be replaced: one that
            ``recipe`` names, or a recipe that no run wrote.
    """
    present = {path.resolve() for path in _present(folder)}
    if present and not overwrite:
        raise UserError(
            f"{folder} already holds a run; choose another --output, go on with --resume or replace it with --overwrite"
        )
    named = {"model.weights": recipe.model.weights, "distill.weights": recipe.distill and recipe.distill.weights}
    named |= {"data.train": recipe.data.train, "data.val": recipe.data.val}
    for key, path in named.items():
        if path and Path(path).resolve() in present:
            raise UserError(f"{key} {path} is of the run that would be replaced; choose another --output")
    if present and _is_by_hand(folder):
        raise UserError(
            f"{folder / 'recipe.yaml'} was written by no run, and would be replaced; choose another --output"
        )


def _present(folder: Path) -> list[Path]:
    return [folder / name for name in RUN_FILES if (folder / name).exists()] + run_state.files(folder)


def _is_by_hand(folder: Path) -> bool:
    """Tell whether the recipe in ``folder`` is the user's own: no run goes with it, and it is not as one writes it."""
    path = folder / "recipe.yaml"
    if not path.exists() or (folder / "environment.json").exists():
        return False
    try:
        return recipes.load(str(path)).to_yaml() != read_text(path, recipes.MAX_BYTES)
    except UserError:
        return True


def holds(path: Path) -> bool:
    """Tell whether ``path`` is a file that a run in its folder wrote."""
    folder = path.parent
    return path in _present(folder) and all((folder / name).is_file() for name in ("recipe.yaml", "environment.json"))


def clear(folder: Path) -> None:
    """Remove the run in ``folder``."""
    for path in _present(folder):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def describe(folder: Path, recipe: Recipe, pictures: str) -> None:
    """Write down what is run on what; ``pictures`` is what ``listing`` says."""
    write_text(folder / "recipe.yaml", recipe.to_yaml())
    write_text(folder / "pictures.csv", pictures)
    write_text(folder / "environment.json", json.dumps(_environment(recipe), indent=2) + "\n")


def describes(folder: Path, recipe: Recipe, pictures: str) -> bool:
    """Tell whether what is written down is this, but for settings that change no result; an end may have come since."""
    try:
        before = recipes.load(folder / "recipe.yaml")
        listed = (folder / "pictures.csv").read_text("utf-8", "surrogateescape")
    except (OSError, ValueError, UserError):
        return False
    return listed == pictures and not changed_settings(before, recipe)


def tidy(folder: Path) -> None:
    """Remove what a killed run left half written."""
    for name in (*RUN_FILES, "state-*.safetensors"):
        for path in folder.glob(f".{name}.*.tmp"):
            path.unlink()


def listing(train: Pictures, val: Pictures) -> str:
    """Return the pictures of a run as a CSV table: part, label, path."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["part", "label", "path"])
    for part, pictures in (("train", train), ("val", val)):
        rows.writerows((part, label, table_path(name)) for label, name in zip(pictures.labels.tolist(), pictures.names))
    return text.getvalue()


def digest(pictures: str) -> str:
    """Return the SHA-256 of a listing."""
    return hashlib.sha256(pictures.encode("utf-8", "surrogateescape")).hexdigest()


def judge(val: Pictures) -> str:
    """Return what tells apart what runs are judged by."""
    return digest(listing(val.subset([]), val))


def teacher(recipe: Recipe) -> Optional[str]:
    """Return the SHA-256 of the file that the teacher of a recipe is filled from; None without a teacher.

    Raises:
        UserError: there is no such file.
    """
    if recipe.distill is None:
        return None
    path = zoo.find_weights(recipe.distill.teacher, recipe.distill.weights)
    try:
        return sha256(path)
    except OSError as error:
        raise UserError(f"cannot read distill.weights {path}: {error.strerror or error}") from error


def changes(folder: Path, recipe: Recipe, pictures: str, teacher: Optional[str], saved: Optional[Saved]) -> list[str]:
    """Say what is not as it was when ``saved`` was saved (or the run begun), a line each.

    Args:
        pictures: what ``listing`` says.
        teacher: what ``teacher`` says.

    Raises:
        UserError: nothing was saved, and ``folder`` holds weights that a new beginning would replace.
    """
    if saved is None:
        finished = [name for name in ("last.pdparams", "best.pdparams", "result.json") if (folder / name).exists()]
        if finished:
            raise UserError(
                f"{folder} holds {finished[0]}, but no saved state to go on from; start again with --overwrite"
            )
        before = recipes.load(folder / "recipe.yaml")
    else:
        before = recipes.from_dict(saved.facts["recipe"])
    found = changed_settings(before, recipe)
    if saved and saved.facts["pictures"] != digest(pictures):
        found.append(changed_pictures(folder / "pictures.csv", pictures))
    before_teacher = saved.facts.get("teacher") if saved else None  # an older state does not say
    if teacher and before_teacher not in (None, teacher):
        found.append(
            f"the file distill.weights {recipe.distill.weights}: sha256 {before_teacher[:8]}... -> {teacher[:8]}..."
        )
    if saved and saved.facts["processes"] != distributed.WORLD:
        found.append(f"processes: {saved.facts['processes']} -> {distributed.WORLD}")
    return found


def changed_settings(before: Recipe, recipe: Recipe) -> list[str]:
    """Say which settings differ that change the result of a run, a line each."""
    return [line for line in recipes.differences(before, recipe) if not line.startswith(_HARMLESS)]


def changed_pictures(file: Path, pictures: str) -> str:
    """Say in a line how ``pictures``, which is what ``listing`` says, differ from those listed in ``file``.

    A part that is held out is drawn anew, and then has some that were trained on; what judges the run is worth less.
    """
    try:
        before = _labels(file.read_text("utf-8", "surrogateescape"))
    except (OSError, ValueError, csv.Error):
        return f"the pictures changed, and {file}, which could say how, cannot be read"
    now = _labels(pictures)
    parts = []
    for what, keys in (
        ("added", now.keys() - before.keys()),
        ("removed", before.keys() - now.keys()),
        ("relabelled", {key for key in now.keys() & before.keys() if now[key] != before[key]}),
        ("were trained on and judge now", {(p, n) for p, n in now if p == "val" and ("train", n) in before}),
    ):
        if keys:
            part, name = min(keys)
            parts.append(f"{len(keys)} {what} (such as {part} {name})")
    return f"pictures: {', '.join(parts) or 'not those of the saved state, or in another order'}"


def _labels(table: str) -> dict[tuple[str, str], str]:
    rows = csv.reader(io.StringIO(table))
    next(rows, None)
    return {(part, name): label for part, label, name in rows}


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
