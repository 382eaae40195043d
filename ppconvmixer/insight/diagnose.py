"""What ails a run of ``finetune``, with the evidence, and what to change: as data, as a table and as a picture."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any, Optional

import numpy as np

from .. import figures, recipe
from ..errors import UserError
from ..files import PathLike
from ..recipe import Recipe
from .diseases import DISEASES, NotJudged, class_name, suspects
from .evidence import Evidence
from .remedies import Advice

ABSURD = 50.0  # nats, beyond any loss of use; next to it a usual one would be a line at the bottom


def describe(run: Evidence) -> dict[str, Any]:
    """Return what was found, what was not, and what could not be judged, as JSON can write it.

    Every override that is advised is one the recipe accepts; what it refuses, or what is so already, is left out.
    """
    found, clear, open_ = [], [], []
    for disease in DISEASES:
        lacking = [name for name in disease.needs if getattr(run, name) is None]
        try:
            if lacking:
                raise NotJudged(run.gaps.get(lacking[0], f"{lacking[0]} is not known"))
            finding = disease.check(run)
        except NotJudged as reason:
            open_.append({"disease": disease.name, "reason": str(reason)})
            continue
        if finding is None:
            clear.append(disease.name)
            continue
        advice = [dataclasses.asdict(a) for a in finding.advice if _accepted(run.recipe, a)]
        for item in advice:
            item["settings"] = list(item["settings"] or ()) if run.recipe else []
        found.append({"disease": disease.name, "evidence": list(finding.evidence), "advice": advice})
    told, settings = run.evaluations, run.recipe
    return {
        "run": run.source,
        "model": settings.model.name if settings else None,
        "steps": 0 if run.losses is None else len(run.losses),
        "epochs": len(told.ends) if told else 0,
        "epochs_planned": settings.epochs if settings else None,
        "best_epoch": told.best + 1 if told else None,
        "top1": float(told.top1[told.best]) if told and np.isfinite(told.top1[told.best]) else None,
        "top1_training_pictures": run.examination.top1 if run.examination else None,
        "findings": found,
        "nothing_found": clear,
        "not_judged": open_,
        "label_suspects": _suspects(run),
    }


def table(facts: dict[str, Any]) -> str:
    """Return what ``describe`` found as a text of some lines."""
    planned = f" of {facts['epochs_planned']}" if facts["epochs_planned"] else ""
    lines = [f"{facts['run']}: {facts['model'] or 'a run'}, {facts['epochs']}{planned} epochs, {facts['steps']} steps"]
    if facts["top1"] is not None:
        lines[0] += f", best epoch {facts['best_epoch']} with top-1 {100 * facts['top1']:.2f} %"
    for finding in facts["findings"]:
        lines.append(f"found: {finding['disease']}")
        lines += [f"  {line}" for line in finding["evidence"]]
        for advice in finding["advice"]:
            settings = " ".join(shlex.quote(setting) for setting in advice["settings"] or ())
            lines.append(f"    try -o {settings}   ({advice['why']})" if settings else f"    {advice['why']}")
    if any(advice["settings"] for finding in facts["findings"] for advice in finding["advice"]):
        run = Path(facts["run"])
        near = (folder / "recipe.yaml" for folder in (run, run.parent, run.parent.parent))
        name = shlex.quote(str(next((path for path in near if path.is_file()), "RECIPE")))
        lines.append(f"one change at a time: ppconvmixer finetune -c {name} -o KEY=VALUE ... --output ANOTHER_FOLDER")
    if facts["nothing_found"]:
        lines.append(f"looked for and not found: {', '.join(facts['nothing_found'])}")
    lines += [f"not judged: {item['disease']} ({item['reason']})" for item in facts["not_judged"]]
    return "\n".join(lines)


def draw(run: Evidence, facts: dict[str, Any], path: PathLike) -> None:
    """Draw loss, accuracy, learning rate and gradient norm over the run, under what was found.

    Raises:
        UserError: the suffix is of no kind that can be drawn, or the file cannot be written.
    """
    import matplotlib

    figure = figures.create(11, 7.5)
    (loss, accuracy), (rate, norm) = figure.subplots(2, 2, sharex=True)
    told, unit = run.evaluations, "epoch" if run.evaluations else "step"

    def place(steps: Any) -> np.ndarray:
        """Return where steps are on the axis: in epochs where those are known."""
        steps = np.asarray(steps, np.float64)
        if told is None:
            return steps
        epochs = np.arange(len(told.ends) + 1)
        last = told.ends[-1] - (told.ends[-2] if len(told.ends) > 1 else 0)
        return np.interp(steps, [0, *told.ends], epochs) + np.maximum(steps - told.ends[-1], 0) / last

    blue, orange = "#1f77b4", "#d95f02"
    if run.losses is not None and len(run.losses):
        at = place(np.arange(1, len(run.losses) + 1))
        loss.plot(at, run.losses, color=blue, alpha=0.25, linewidth=0.7)
        width = max(1, len(run.losses) // 100)
        smooth = np.convolve(run.losses, np.full(width, 1 / width), "valid")
        loss.plot(at[width - 1 :], smooth, color=blue, label="training, step by step and smoothed")
        finite = run.losses[np.isfinite(run.losses)]
        if len(finite) and finite.min() > 0 and finite.max() > 50 * np.median(finite):
            loss.set_yscale("log")
    if run.not_finite and len(run.losses):
        loss.axvline(place(len(run.losses) + 1), color="#d62728", linewidth=1.2, label="no number here")
    if told:
        at = place(told.ends)
        marks = {"marker": "o", "markersize": 3.5}
        loss.plot(at, told.loss, color=orange, label="validation", **marks)
        accuracy.plot(at, 100 * told.train_top1, color=blue, label="training, while it learns", **marks)
        accuracy.plot(at, 100 * told.top1, color=orange, label="validation", **marks)
        if run.examination:
            x, y = at[told.best], 100 * run.examination.top1
            accuracy.plot([x], [y], "*", color=blue, markersize=12, label="training pictures, not augmented")
        for axes in (loss, accuracy):
            axes.axvline(at[told.best], color="grey", linestyle=":", linewidth=1)
        accuracy.annotate(
            f"best: epoch {told.best + 1} ", (at[told.best], 0.02), xycoords=("data", "axes fraction"), ha="right",
            fontsize="small", color="grey",
        )  # fmt: skip
    low, high = loss.dataLim.intervaly
    if low > 0 and high > ABSURD:
        loss.set_yscale("log")
    if run.rates is not None:
        rate.plot(place(np.arange(1, len(run.rates) + 1)), run.rates, color=blue)
        rate.set_ylim(bottom=0)
    if run.norms is not None:
        norm.plot(place(run.norm_steps), run.norms, color="black", linewidth=0.7, label="whole network")
        norm.set_yscale("log")
    if run.layers:
        colours, names = matplotlib.colormaps["viridis"], list(run.layers)
        labelled = {round(i * (len(names) - 1) / 4) for i in range(5)}
        for i, (name, values) in enumerate(run.layers.items()):
            colour = colours(0.95 * i / max(len(names) - 1, 1))
            at = place(run.layer_steps[name])
            norm.plot(at, values, color=colour, linewidth=0.8, label=name if i in labelled else None)
    for axes, title, y in (
        *((loss, "loss", "nats"), (accuracy, "accuracy (top-1)", "%")),
        *((rate, "learning rate", None), (norm, "gradient norm, before any cut", None)),
    ):
        axes.set_title(title, fontsize="medium")
        axes.set(ylabel=y)
        axes.grid(alpha=0.2)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize="small", framealpha=0.7)
        elif not axes.lines:
            axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color="grey")
    for axes in (rate, norm):
        axes.set_xlabel(unit)
    names = [finding["disease"] for finding in facts["findings"]]
    figure.suptitle(f"{facts['model'] or facts['run']}: {', '.join(names) or 'nothing found'}")
    figures.save(figure, path)


def _accepted(settings: Optional[Recipe], advice: Advice) -> bool:
    """Tell whether the recipe takes the overrides, and is another one with them; without a recipe, words remain."""
    if settings is None or advice.settings is None:
        return True
    try:
        return recipe.override(settings, advice.settings) != settings
    except UserError:
        return False


def _suspects(run: Evidence) -> list[dict[str, Any]]:
    found = run.examination
    if found is None:
        return []
    places, others = suspects(found.labels, found.probabilities)
    return [
        {
            "picture": found.names[i],
            "given": class_name(run, found.labels[i]),
            "probability_of_given": float(found.probabilities[i, found.labels[i]]),
            "taken_for": class_name(run, other),
            "probability": float(found.probabilities[i, other]),
        }
        for i, other in zip(places.tolist(), others.tolist())
    ]
