"""The benchmark's report for people: a page of tables, and a picture of how cost grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from . import figures
from .peers import FILES, OURS

TITLES = {
    "inference": "Inference",
    "training": "A training step",
    "augmentation": "Varying small pictures",
    "data": "Reading pictures",
    "eval": "Evaluation from end to end",
}
NOTES = {
    "inference": "Evaluation in float32, from a batch in memory to its logits in memory. The limit is that of the "
    "convolutions as they are written; ours multiply an eighth less in the pointwise ones (Strassen's way).",
    "training": "Forward, cross-entropy, backward and a step of AdamW in float32, on a batch in memory.",
    "augmentation": "Batches of training pictures, kept decoded, by one process: what one data worker delivers.",
    "data": f"{FILES} JPEGs of 500 x 375 pixels, from the disk to a batch for the network.",
    "eval": f"`ppconvmixer eval` on {FILES} JPEGs, beside the same engine on batches in memory.",
}


def markdown(report: dict[str, Any], command: str, picture: Optional[str] = None) -> str:
    """Return the page; ``command`` is what made the report and ``picture`` the path of its picture."""
    machine = report["machine"]
    vectors = machine["vectors"] or "no wide vectors"
    lines = [
        "# Performance",
        "",
        f"Written by `{command}`. Every contender is a process of its own; they compute in turn, in",
        f"up to {_rounds(report)} rounds, on the same weights and input, and must agree on the result. img/s is the",
        "median of the rounds, with the slowest and the fastest behind it; the ratios are of medians. Seconds depend",
        "on the machine, ratios much less.",
        "",
        "## Machine",
        "",
        "| | |",
        "|---|---|",
        f"| processor | {machine['processor']}, {machine['threads']} threads, {vectors} |",
    ]
    if machine["macs_per_second"]:
        lines += [
            f"| multiply-accumulates, measured | {machine['macs_per_second'] / 1e9:.0f} G a second, float32 |",
            f"| memory traffic, measured | {machine['bytes_per_second'] / 1e9:.0f} GB a second |",
        ]
    lines += [
        f"| system | {machine['system']} |",
        f"| versions | {', '.join(f'{name} {version}' for name, version in report['versions'].items())} |",
    ]
    for task, title in TITLES.items():
        found = [c for c in report["comparisons"] if c["task"] == task]
        if found:
            lines += ["", f"## {title}", "", NOTES[task], "", *_table(task, found, machine["macs_per_second"])]
    if report["scaling"]:
        lines += ["", "## How cost grows", "", *_scaling(report["scaling"], picture)]
    return "\n".join(lines) + "\n"


def _rounds(report: dict[str, Any]) -> int:
    return max((t["rounds"] for c in report["comparisons"] + report["scaling"] for t in c["results"]), default=0)


def _table(task: str, comparisons: Sequence[dict[str, Any]], macs: Optional[float]) -> list[str]:
    lines = []
    if task in ("inference", "training"):
        lines += [
            "| network, size, batch | ratio to the best peer | ratio to Paddle's dynamic graph | "
            "share of the arithmetic limit |",
            "|---|---|---|---|",
        ]
        for c in comparisons:
            ours = next((t for t in c["results"] if t["contender"] == OURS), None)
            share = ours["images_per_second"] * c["macs_per_image"] / macs if ours and macs else None
            lines.append(
                f"| {_what(c)} | {_ratio(c['ratio_to_best_peer'])} ({c['best_peer'] or 'none installed'}) | "
                f"{_ratio(c['ratio_to_paddle'])} | {f'{100 * share:.0f} %' if share else '-'} |"
            )
        lines.append("")
    lines += [
        "| network, size, batch | contender | img/s | slowest to fastest | peak memory |",
        "|---|---|---|---|---|",
    ]
    for c in comparisons:
        for t in sorted(c["results"], key=lambda t: -t["images_per_second"]):
            peak = "-" if t["peak_mb"] is None else f"{t['peak_mb']:.0f} MiB"
            lines.append(
                f"| {_what(c)} | {t['contender']} | {t['images_per_second']:.4g} | "
                f"{t['low']:.4g} to {t['high']:.4g} | {peak} |"
            )
    return lines


def _what(comparison: dict[str, Any]) -> str:
    return f"{comparison['model']}, {comparison['size']}, {comparison['batch']}"


def _ratio(value: Optional[float]) -> str:
    return f"{value:.2f}" if value else "-"


AXES = {
    "batch": "pictures a batch",
    "depth": "depth",
    "dim": "width",
    "kernel_size": "kernel",
    "size": "side of the picture, pixels",
}


def _scaling(points: Sequence[dict[str, Any]], picture: Optional[str]) -> list[str]:
    lines = [
        f"Inference of {points[0]['model']}, one thing varied at a time; all else is as the name says, 224 pixels and "
        f"batches of {next(p['batch'] for p in points if p['varied'] != 'batch')}.",
        "",
    ]
    if picture:
        lines += [f"![img/s over batch, depth, width, kernel and size]({picture})", ""]
    lines += ["| varied | value: img/s |", "|---|---|"]
    for varied, name in AXES.items():
        some = [f"{p['value']}: {_rate(p):.4g}" for p in points if p["varied"] == varied]
        if some:
            lines.append(f"| {name} | {', '.join(some)} |")
    return lines


def _rate(point: dict[str, Any]) -> float:
    return point["results"][0]["images_per_second"]


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw img/s over what was varied, beside what constant multiply-accumulates a second would give.

    Raises:
        UserError: the file cannot be written.
    """
    points, limit = report["scaling"], report["machine"]["macs_per_second"]
    figure = figures.create(3 * len(AXES), 3)
    axes = figure.subplots(1, len(AXES))
    for axis, (varied, name) in zip(axes, AXES.items()):
        some = [p for p in points if p["varied"] == varied]
        values = [p["value"] for p in some]
        axis.plot(values, [_rate(p) for p in some], "o-", label="measured")
        if limit:
            axis.plot(values, [limit / p["macs_per_image"] for p in some], "--", color="grey", label="arithmetic limit")
        axis.set_xscale("log", base=2)
        axis.set_xticks(values, [str(v) for v in values])
        axis.minorticks_off()
        axis.set_ylim(0)
        axis.set_xlabel(name)
    axes[0].set_ylabel("img/s")
    axes[0].legend(fontsize="small")
    figures.save(figure, path)
