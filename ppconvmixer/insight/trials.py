"""A candidate trained for some epochs: a run folder of ``finetune``, made once.

Every run starts from random weights, and its schedule spans the run. So a longer rung of the halving trains its
candidates anew. Going on with the shorter run would save its epochs, but then all comparisons but the last were between
networks in the middle of a schedule, at their highest learning rate.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Optional

from .. import recipe as recipes
from .. import run_folder
from ..datasets import Pictures
from ..errors import UserError, said
from ..files import read_text
from ..finetune import finetune
from ..recipe import Recipe
from ..stopping import Stopped

logger = logging.getLogger("ppconvmixer")

_LONGEST = 1 << 20  # bytes of a file of figures; a result.json has under 1,000


@dataclasses.dataclass(frozen=True)
class Trials:
    """The runs of all candidates.

    Args:
        recipe: all but network and epochs; its ``model.name`` only says what the input is, where ``input`` does not.
        data: its training and validation pictures, as ``finetune.open_data`` returns them.
        folder: where the run folders are.

    Raises:
        UserError: the recipe has settings that do not go with several networks, or with epochs that are not its own.
    """

    recipe: Recipe
    data: tuple[Pictures, Pictures]
    folder: Path

    def __post_init__(self) -> None:
        if self.recipe.model.weights:
            raise UserError("model.weights fit one shape only, and candidates start from random ones; leave them out")
        if self.recipe.train.phases:
            raise UserError("train.phases have epochs of their own; leave them out, the budget says how long to train")

    def recipe_of(self, name: str, epochs: int) -> Recipe:
        """Return the recipe of a run; all candidates see the same input.

        Raises:
            UserError: a setting does not go with so many epochs.
        """
        try:
            return dataclasses.replace(
                self.recipe,
                model=dataclasses.replace(self.recipe.model, name=name),
                input=dataclasses.asdict(self.recipe.input_spec()),
                train=dataclasses.replace(self.recipe.train, epochs=epochs, histograms=0),
            )
        except UserError as error:
            raise UserError(f"a run of {epochs} epochs: {error}") from error

    def run_of(self, name: str, epochs: int) -> Path:
        """Return the folder of a run."""
        return self.folder / f"{name}-{epochs}-epochs"

    def check(self, names: Iterable[str], lengths: Sequence[int]) -> None:
        """Find out before the work whether the runs can be made, and whether those that are there are these.

        Args:
            lengths: epochs.

        Raises:
            UserError: a setting does not go with so many epochs, or a folder holds a run of something else.
        """
        pictures = run_folder.listing(*self.data)
        for name in names:
            for epochs in lengths:
                recipe, folder = self.recipe_of(name, epochs), self.run_of(name, epochs)
                if not (folder / "recipe.yaml").is_file():
                    continue
                changed = run_folder.changed_settings(recipes.load(folder / "recipe.yaml"), recipe)
                listing = folder / "pictures.csv"
                if listing.exists() and listing.read_text("utf-8", "surrogateescape") != pictures:
                    changed.append("the pictures")
                if changed:
                    raise UserError(
                        f"{folder} holds a run of something else: {'; '.join(changed)}; "
                        "put it back, or take another folder with --runs"
                    )

    def train(self, name: str, epochs: int) -> Optional[float]:
        """Return the top-1 accuracy of a run at its best epoch; a complete run is not repeated, a begun one goes on.

        Returns:
            In [0, 1]; None where the loss was no number, now or when the run was made.

        Raises:
            UserError: as ``finetune``.
            Stopped: after Ctrl-C or SIGTERM; the next call goes on.
        """
        folder = self.run_of(name, epochs)
        result, diverged = folder / "result.json", folder / run_folder.NOT_FINITE
        if result.exists():
            top1 = read_figures(result).get("top1")
            if not isinstance(top1, float) or not 0 <= top1 <= 1:
                raise UserError(f"{result} has no top1; remove the folder to train anew")
            return top1
        if diverged.exists():
            return None
        logger.info("%s, %d epochs", name, epochs)
        try:
            return finetune(self.recipe_of(name, epochs), folder, resume=(folder / "recipe.yaml").exists())["top1"]
        except Stopped:
            logger.info("the same command goes on from here, and needs no --resume")
            raise
        except UserError as error:
            if not diverged.exists():
                raise
            logger.warning("%s is out: %s", name, error)
            return None


def read_figures(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds.

    Raises:
        UserError: it cannot be read, or holds no keys and values.
    """
    try:
        found = json.loads(read_text(path, _LONGEST))
    except (UserError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {said(error)}; remove it") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no figures; remove it")
    return found
