"""``report.html``: a run on one page that needs no server, no network and no script.

Everything on it is read from the run folder, so that the page of a run that was cut off and went on shows all of it.
"""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from . import per_class, svg
from .files import write_text
from .recipe import Recipe
from .records import LAYERS, Records, height
from .run_state import RunState

FILE = "report.html"
CONFUSION, CURVES = "eval/confused classes", "precision and recall"
"""Where ``curves`` keeps the cells of the confusion matrix, and the points of the classes.

VisualDL takes all records of a tag for what the first one is, so the picture of the matrix has another."""
ROWS = 200  # of a table of classes
MISTAKES = 20

_STYLE = """
body { font: 15px/1.5 sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1em }
h1 { margin-bottom: 0 } h2 { border-bottom: 1px solid #ccc; margin-top: 2em }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: 1px 8px; text-align: left }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
.matrix td { border: 1px solid #ddd; min-width: 1.6em; padding: 2px 4px; text-align: center; font-size: 13px }
.matrix th { font-weight: normal; padding: 2px 6px; white-space: nowrap; max-width: 16em; overflow: hidden }
.matrix thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; max-height: 16em }
.bar { display: inline-block; height: .7em; background: #1f77b4 }
.row { display: flex; flex-wrap: wrap; gap: 12px 40px } .row svg { flex: none; margin-right: -28px }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto; font-size: 13px }
img { image-rendering: pixelated; max-width: 100%; min-width: 50% }
.note { color: #666 }
"""


def write(folder: Path, records: Records, recipe: Recipe, state: RunState) -> None:
    """Write the report of the run in ``folder``.

    Args:
        records: of its VisualDL file.

    Raises:
        UserError: the file cannot be written.
    """
    write_text(folder / FILE, page(folder, records, recipe, state))


def page(folder: Path, records: Records, recipe: Recipe, state: RunState) -> str:
    """Return the report as HTML. The browser is told to fetch and to run nothing."""
    sections = [
        ("curves", "Curves", _curves(records)),
        ("pictures", "Augmented pictures", _pictures(records)),
        *_classes(records, state.best_epoch),
        ("histograms", "Weights and activations", _histograms(records)),
        ("recipe", "Recipe", _pre(recipe.to_yaml())),
        ("environment", "Environment", _file(folder / "environment.json")),
    ]
    shown = [(name, title, content) for name, title, content in sections if content]
    links = " · ".join(f"<a href='#{name}'>{title}</a>" for name, title, _ in shown)
    parts = [f"<section id='{name}'><h2>{title}</h2>\n{content}\n</section>\n" for name, title, content in shown]
    name = html.escape(recipe.model.name)
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>\n"
        "<meta http-equiv='Content-Security-Policy' "
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{name}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{name}</h1>\n<section id='summary'>{_summary(recipe, state)}</section>\n<p>{links}</p>\n"
        f"{''.join(parts)}</body></html>\n"
    )


def _summary(recipe: Recipe, state: RunState) -> str:
    lines = [f"{state.epochs} of {recipe.epochs} epochs on {html.escape(recipe.data.dataset)}, {state.steps} steps"]
    best = state.best_metrics
    if best:
        lines.append(
            f"best epoch {state.best_epoch}: top-1 {100 * best['top1']:.2f} %, top-{best['k']} "
            f"{100 * best['top5']:.2f} %, loss {best['loss']:.4f} on {best['samples']} pictures"
            + (" (moving average of the weights)" if state.best_ema else "")
        )
    return "".join(f"<p>{line}</p>" for line in lines)


def _curves(records: Records) -> str:
    def chart(title: str, tags: dict[str, str], scale: float = 1.0, log: bool = False, rainbow: bool = False) -> str:
        named = {}
        for name, tag in tags.items():
            if tag in records.curves:
                at, values = records.curves[tag]
                named[name] = (at, scale * np.array(values))
        return svg.lines(title, named, "step", log, rainbow)

    parts = {"train": "train", "eval": "eval", "moving average": "eval_ema"}
    names = [tag.partition("/")[2] for tag in records.curves if tag.startswith(f"{LAYERS}/")]
    layers = {name: f"{LAYERS}/{name}" for name in sorted(names, key=height)}  # one that thaws is recorded last
    return _row(
        chart("loss", {name: f"{part}/loss" for name, part in parts.items()}),
        chart("top-1, %", {name: f"{part}/top1" for name, part in parts.items()}, 100),
        chart("top-5, %", {name: f"{part}/top5" for name, part in parts.items()}, 100),
        chart("learning rate", {"": "train/learning_rate"}),
        chart("gradient norm", {"": "train/gradient_norm"}, log=True),
        chart("gradient norm of every layer, stem violet to head yellow", layers, log=True, rainbow=True),
        chart("pictures a second", {name: f"{part}/images_per_second" for name, part in parts.items()}),
        chart("time that steps wait for pictures, %", {"": "train/waiting"}, 100),
    )


def _pictures(records: Records) -> str:
    found = records.last("image", "train/augmented pictures")
    if found is None:
        return ""
    data = base64.b64encode(found.encoded_image_string).decode("ascii")
    return f"<img alt='training pictures as the network sees them' src='data:image/png;base64,{data}'>"


def _classes(records: Records, epoch: int) -> Iterator[tuple[str, str, str]]:
    """Yield the sections about classes, of the best epoch."""
    text = records.others["text"].get(CONFUSION, {}).get(epoch)
    if text is None:
        return
    cells, names = read_cells(text.encoded_text_string)
    yield "confusion", f"Confusion matrix of epoch {epoch}", _row(_matrix(cells, names), _mistakes(cells, names))
    yield "classes", f"Accuracy of the classes, epoch {epoch}", _accuracies(cells, names)
    curves = {}
    for tag, by_epoch in records.others["pr_curve"].items():
        if epoch in by_epoch:
            curves[tag.partition("/")[2]] = (by_epoch[epoch].recall, by_epoch[epoch].precision)
    few = {name: curves[name] for name in sorted(curves, key=lambda name: int(name.split()[0]))}
    charts = [svg.shares(name, *line, "recall") for name, line in few.items()]
    yield "precision", f"Precision over recall, epoch {epoch}", _row(*charts)


def read_cells(table: str) -> tuple[np.ndarray, dict[int, str]]:
    """Return the cells of a confusion matrix and the names of its classes."""
    rows = list(csv.reader(io.StringIO(table)))[1:]
    names: dict[int, str] = {}
    for label, predicted, _, name, other in rows:
        names[int(label)], names[int(predicted)] = name, other
    return np.array([row[:3] for row in rows], np.int64), names


def _matrix(cells: np.ndarray, names: dict[int, str]) -> str:
    total = max(names) + 1
    chosen = per_class.most_confused(cells, total)
    chosen = chosen[np.isin(chosen, list(names))]
    counts, shares = per_class.matrix(cells, chosen), per_class.shares_of(cells, chosen, total)
    titles = [html.escape(names[label]) for label in chosen.tolist()]
    head = "".join(f"<th>{title}</th>" for title in titles)
    lines = []
    for i, title in enumerate(titles):
        row = []
        for j, share in enumerate(shares[i].tolist()):
            red, green, blue = per_class.colour(share, i == j)
            ink = "#fff" if share > 0.5 else "#000"
            style = f"background:rgb({red},{green},{blue});color:{ink}"
            row.append(f"<td style='{style}'>{counts[i, j] or ''}</td>")
        lines.append(f"<tr><th>{title}</th>{''.join(row)}</tr>")
    some = f"The {len(chosen)} classes that most mistakes are about. " if len(chosen) < len(names) else ""
    return (
        f"<div><p class='note'>{some}A row is a class, a column what its pictures were taken for.</p>"
        f"<table class='matrix'><thead><tr><th></th>{head}</tr></thead>{''.join(lines)}</table></div>"
    )


def _mistakes(cells: np.ndarray, names: dict[int, str]) -> str:
    found = per_class.mistakes(cells)[:MISTAKES].tolist()
    lines = [
        f"<tr><td class='n'>{count}</td><td>{html.escape(names[label])}</td><td>{html.escape(names[other])}</td></tr>"
        for label, other, count in found
    ]
    head = "<tr><th class='n'>pictures</th><th>of the class</th><th>taken for</th></tr>"
    note = "<p class='note'>The most frequent mistakes.</p>"
    return f"<div>{note}<table>{head}{''.join(lines)}</table></div>" if found else ""


def _accuracies(cells: np.ndarray, names: dict[int, str]) -> str:
    pictures, right = per_class.pictures(cells, max(names) + 1)
    labels = np.flatnonzero(pictures)
    shares = right[labels] / pictures[labels]
    order = np.argsort(shares, kind="stable")[:ROWS]
    lines = [
        f"<tr><td>{html.escape(names[label])}</td><td class='n'>{right[label]} of {pictures[label]}</td>"
        f"<td class='n'>{100 * share:.2f} %</td>"
        f"<td style='width:120px'><span class='bar' style='width:{round(120 * share)}px'></span></td></tr>"
        for label, share in zip(labels[order].tolist(), shares[order].tolist())
    ]
    note = f"The {ROWS} lowest of {len(labels)} classes." if len(labels) > ROWS else "The lowest first."
    return f"<p class='note'>{note}</p><table>{''.join(lines)}</table>"


def _histograms(records: Records) -> str:
    """Of every tensor the first and the last histogram."""
    charts, seen = [], set()
    for tag, by_epoch in records.others["histogram"].items():
        group, _, name = tag.partition("/")
        if group in ("weights", "activations"):
            epochs = min(by_epoch), max(by_epoch)
            seen.update(epochs)
            first, last = ((by_epoch[epoch].hist, by_epoch[epoch].bin_edges) for epoch in epochs)
            charts.append(svg.bars(f"{group} {name}", first, last))
    if not charts:
        return ""
    return f"<p class='note'>Blue: after epoch {max(seen)}. Grey line: after epoch {min(seen)}.</p>{_row(*charts)}"


def _file(path: Path) -> str:
    return _pre(path.read_text("utf-8")) if path.exists() else ""


def _pre(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def _row(*charts: str) -> str:
    found = [chart for chart in charts if chart]
    return f"<div class='row'>{''.join(found)}</div>" if found else ""
