"""What to change in a recipe, as overrides of its settings."""

from __future__ import annotations

import dataclasses
from typing import Optional

import numpy as np

from ..augment import Augment
from ..zoo import spelled, variant
from .evidence import Evidence


@dataclasses.dataclass(frozen=True)
class Advice:
    """What to try.

    Args:
        why: in a few words.
        settings: overrides ``key=value`` to be set together; () where the run leaves nothing to set, None where
            no setting does it.
    """

    why: str
    settings: Optional[tuple[str, ...]] = None


def calmer(run: Evidence, by: float) -> tuple[Advice, ...]:
    return (Advice("take smaller steps", rate(run, 1 / by)), *clip(run), *warm_up(run))


def other_start(run: Evidence) -> tuple[Advice, ...]:
    """Advise what to look at where the first loss is no number: no step had been taken, so none was too large."""
    begun, taught = (run.recipe.model.weights, run.recipe.distill) if run.recipe else (None, None)
    advice = [Advice("begin without the checkpoint, whose weights may be no numbers", ("model.weights=null",))]
    where = " and ".join(
        [*(["the checkpoint"] if begun else []), *(["the teacher's weights"] if taught else []), "these pictures"]
    )
    return (*(advice if begun else ()), Advice(f"no step was taken, so no learning rate is to blame: look at {where}"))


def rate(run: Evidence, factor: float) -> tuple[str, ...]:
    return (f"optimizer.lr={factor * run.recipe.optimizer.lr:.2g}",) if run.recipe else ()


def clip(run: Evidence) -> tuple[Advice, ...]:
    """Cut at the usual norm; see ``EXPLODED``."""
    norms = run.norms[np.isfinite(run.norms)] if run.norms is not None else np.empty(0)
    usual = float(np.median(norms)) if norms.size else 1.0
    cut = run.recipe.optimizer.clip_norm if run.recipe else None
    if not usual or (cut and cut <= usual):
        return ()
    return (Advice("cut gradients to their usual norm", (f"optimizer.clip_norm={usual:.1g}",)),)


def warm_up(run: Evidence) -> tuple[Advice, ...]:
    if run.recipe is None or run.recipe.schedule.warmup_epochs:
        return ()
    epochs = max(1, run.recipe.epochs // 20)
    return (Advice("begin with small steps", (f"schedule.warmup_epochs={epochs}",)),)


def falling(run: Evidence) -> tuple[str, ...]:
    """Return what makes the learning rate fall to 0, where it does not."""
    name = run.recipe.schedule.name if run.recipe else ""
    return {"constant": ("schedule.name=cosine",), "step": ("schedule={name: cosine}",)}.get(name, ())


def longer(run: Evidence) -> tuple[Advice, ...]:
    if run.recipe is None or run.recipe.train.phases:
        return ()
    return (Advice("train for longer", (f"train.epochs={2 * run.recipe.epochs}",)),)


def more_steps(run: Evidence) -> tuple[str, ...]:
    size = run.recipe.train.batch_size if run.recipe else None
    return (f"train.batch_size={size // 4 * 2}",) if size and size >= 16 else ()


def patience(run: Evidence) -> int:
    return max(2, run.recipe.epochs // 10) if run.recipe else 2


def capacity(run: Evidence) -> tuple[Advice, ...]:
    """Advise what lets a network fit more."""
    if run.recipe is None:
        return (Advice("train with less augmentation and regularisation, or a larger network"),)
    settings, plain = run.recipe, Augment()
    hard = [
        f"augment.{name}=0"
        for name in ("erasing", "mixup", "cutmix", "color_jitter")
        if getattr(settings.augment, name)
    ]
    hard += ["augment.randaugment=null"] if settings.augment.randaugment else []
    if settings.augment.erasing_mode != plain.erasing_mode:
        hard.append(f"augment.erasing_mode={plain.erasing_mode}")
    if settings.augment.mixes:
        hard += [f"augment.{name}={getattr(plain, name)}" for name in ("mix_prob", "mix_switch_prob")]
    hard += [f"model.{name}=0" for name in ("drop_rate", "drop_path") if getattr(settings.model, name)]
    hard += ["train.label_smoothing=0"] if settings.train.label_smoothing else []
    return (
        Advice("make the training pictures easier", tuple(hard)),
        Advice("train all layers", ("finetune.freeze=false", "finetune.unfreeze=[]")),
        Advice("a network of twice the width can hold more", shape(run, width=2)),
    )


def shape(run: Evidence, width: float = 1, depth: float = 1) -> tuple[str, ...]:
    """Return a network of another width or depth, where the run does not begin from weights of this one."""
    if run.recipe is None or run.recipe.model.weights:
        return ()
    shape = variant(run.recipe.model.name)
    changed = {"dim": max(1, int(width * shape.dim)), "depth": max(1, int(depth * shape.depth))}
    return (f"model.name={spelled(dataclasses.replace(shape, **changed))}",)


def augment(run: Evidence) -> tuple[Advice, ...]:
    """Advise what varies the training pictures more, where they are not varied so yet."""
    now = run.recipe.augment if run.recipe else Augment()
    possible = (
        (now.randaugment, "vary colours and shapes", "augment.randaugment=n2-m12"),
        (now.crop_scale, "show other parts of the pictures", "augment.crop_scale=[0.7,1.0]"),
        (now.mixes, "blend pictures, so that none is learnt by heart", "augment.mixup=0.2"),
        (now.erasing, "hide parts of the pictures", "augment.erasing=0.25"),
        (now.hflip, "mirror, if what is mirrored is of the same class", "augment.hflip=0.5"),
    )
    return tuple(Advice(why, (setting,)) for there, why, setting in possible if not there)


def regularise(run: Evidence) -> tuple[Advice, ...]:
    """Advise what holds a network off learning its pictures by heart."""
    advice = list(augment(run)[:3])
    if run.recipe:
        decay = run.recipe.optimizer.weight_decay
        advice.append(Advice("hold the weights smaller", (f"optimizer.weight_decay={3 * decay or 0.01:.2g}",)))
        if run.recipe.model.weights and run.recipe.finetune.layer_decay == 1:
            advice.append(Advice("keep more of what the lower layers know", ("finetune.layer_decay=0.7",)))
        if not run.recipe.train.label_smoothing:
            advice.append(Advice("ask for less certainty", ("train.label_smoothing=0.1",)))
        advice.append(Advice("stop where it gets no better", (f"train.patience={patience(run)}",)))
    return tuple(advice)
