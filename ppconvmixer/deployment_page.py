"""The report on the forms of a checkpoint: Markdown, HTML and two pictures."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import figures
from .files import atomic_write, write_text

LOSSES = (0.0, 0.005, 0.02)  # of top-1, for which the fastest form is named
COLUMNS = {
    "form": "form",
    "bytes": "MB",
    "parameters": "parameters",
    "macs": "MMACs",
    "latency_ms": "latency, ms",
    "images_per_second": "img/s",
    "peak_mb": "memory, MiB",
    "top1": "top-1",
    "agreement": "same class",
}
_STYLE = """
body { font: 15px/1.5 sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 } td, th { border-bottom: 1px solid #ddd; padding: 2px 8px }
td { text-align: right; font-variant-numeric: tabular-nums } td:first-child, th { text-align: left }
img { max-width: 100% }
"""


def write(report: dict[str, Any], folder: Path) -> None:
    """Write ``report.md``, ``report.html`` and the pictures of a report into ``folder``.

    Raises:
        UserError: a file cannot be written.
    """
    pictures = {"latency.png": _latency(report["forms"])}
    if any(form["share"] for form in report["forms"]):
        pictures["pruning.png"] = _pruning(report["forms"])
    for name, content in pictures.items():
        with atomic_write(folder / name) as stream:
            stream.write(content)
    write_text(folder / "report.md", markdown(report, list(pictures)))
    write_text(folder / "report.html", page(report, pictures))


def markdown(report: dict[str, Any], pictures: Sequence[str]) -> str:
    """Return the report; ``pictures`` are the names of those that were drawn."""
    lines = [f"# {report['model']} in {len(report['forms'])} forms", "", *_introduction(report), ""]
    lines += ["| " + " | ".join(COLUMNS.values()) + " |", "|---" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(_cells(form)) + " |" for form in report["forms"]]
    lines += ["", *_fastest(report["forms"]), ""]
    lines += [line for name in pictures for line in (f"![{_CAPTIONS[name]}]({name})", "", f"{_CAPTIONS[name]}.", "")]
    return "\n".join(lines)


def page(report: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """Return the report as HTML that stands alone; the browser is told to fetch and to run nothing."""

    def paragraph(text: str) -> str:
        marked = re.sub("`(.+?)`", r"<code>\1</code>", html.escape(text))
        return f"<p>{marked}</p>"

    head = "".join(f"<th>{html.escape(title)}</th>" for title in COLUMNS.values())
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(form)) + "</tr>" for form in report["forms"]
    )
    drawn = "".join(
        f'<p><img alt="{_CAPTIONS[name]}" src="data:image/png;base64,{base64.b64encode(content).decode()}"></p>'
        f"<p>{_CAPTIONS[name]}.</p>"
        for name, content in pictures.items()
    )
    title = html.escape(f"{report['model']} in {len(report['forms'])} forms")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{policy}"><title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>'
        f"{''.join(map(paragraph, _introduction(report)))}<table><tr>{head}</tr>{rows}</table>"
        f"{''.join(map(paragraph, _fastest(report['forms'])))}{drawn}</html>\n"
    )


_CAPTIONS = {
    "latency.png": "Accuracy over the time of a single picture",
    "pruning.png": "Accuracy over what pruning leaves",
}


def _introduction(report: dict[str, Any]) -> list[str]:
    machine, first = report["machine"], report["forms"][0]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return [
        f"Written by `{report['command']}` on {machine['processor']}, {machine['threads']} threads; {versions}.",
        f"Accuracy is that of {first['samples']:,} pictures of {report['data']}; same class is the share of them whose "
        "most likely class is the first form's. Latency is that of a single picture, img/s that of batches of 32, both "
        "medians; every form is a process of its own, and they compute in turn.",
    ]


def _fastest(forms: Sequence[dict[str, Any]]) -> list[str]:
    """Name the fastest form for each loss of accuracy."""
    told = []
    for loss in LOSSES:
        good = [form for form in forms if form["latency_ms"] and form["top1"] >= forms[0]["top1"] - loss]
        best = min(good, key=lambda form: form["latency_ms"])
        told.append(
            f"Fastest for a single picture, with at most {100 * loss:g} points of top-1 lost: {best['form']}, "
            f"{forms[0]['latency_ms'] / best['latency_ms']:.2f} times as fast as the first."
        )
    return told


def _cells(form: dict[str, Any]) -> list[str]:
    parameters = f"{form['parameters']:,}"
    if form["sparsity"]:
        parameters += f", {100 * form['sparsity']:.0f} % of the weights 0"
    fast = [f"{form[key]:.{digits}f}" if form[key] else "-" for key, digits in _SPEED.items()]
    macs = f"{form['macs'] / 1e6:,.0f}"
    accuracy = [f"{100 * form[key]:.2f} %" for key in ("top1", "agreement")]
    return [form["form"], f"{form['bytes'] / 1e6:.2f}", parameters, macs, *fast, *accuracy]


_SPEED = {"latency_ms": 2, "images_per_second": 1, "peak_mb": 0}


def _latency(forms: Sequence[dict[str, Any]]) -> bytes:
    figure = figures.create(8, 5)
    axis = figure.add_subplot()
    kinds = list(dict.fromkeys(form["kind"] for form in forms))
    timed = sorted((form for form in forms if form["latency_ms"]), key=lambda form: form["latency_ms"])
    for number, form in enumerate(timed, 1):  # names would lie upon each other
        x, y = form["latency_ms"], 100 * form["top1"]
        axis.plot([x], [y], "o", color=f"C{kinds.index(form['kind'])}", label=f"{number}  {form['form']}")
        above = 6 if number % 2 else -13
        axis.annotate(str(number), (x, y), xytext=(0, above), textcoords="offset points", ha="center", fontsize=7)
    axis.set_xlim(0)
    axis.set_xlabel("latency of a single picture, ms")
    axis.set_ylabel("top-1, %")
    axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize="small", frameon=False)
    return figures.png(figure)


def _pruning(forms: Sequence[dict[str, Any]]) -> bytes:
    figure = figures.create(9, 4)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, kind, whole, label in (
        (axes[0], "sparse", 0.0, "share of the weights that are 0"),
        (axes[1], "narrow", 1.0, "share of the width"),
    ):
        for tuned, style in ((False, "o--"), (True, "o-")):
            some = [form for form in forms if form["kind"] == kind and form["tuned"] == tuned]
            if some:
                points = sorted([(whole, forms[0]["top1"]), *((form["share"], form["top1"]) for form in some)])
                x, y = zip(*points)
                axis.plot(x, [100 * v for v in y], style, label="trained on" if tuned else "as pruned")
        axis.set_xlabel(label)
        if axis.lines:  # the narrowest of networks are not narrowed
            axis.legend(fontsize="small")
    axes[0].set_ylabel("top-1, %")
    return figures.png(figure)
