"""Print runs side by side: what each started from, how long it trained, and what it came to.

python tools/compare.py runs/demo_scratch runs/demo
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # in place of this folder, whose inspect.py hides Python's own; a clone is not installed

import argparse  # noqa: E402
import json  # noqa: E402

from ppconvmixer import UserError, files, recipe  # noqa: E402


def main() -> None:
    """Print a line for each run."""
    parser = argparse.ArgumentParser(description="Print runs side by side.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    options, rows = parser.parse_args(), [("run", "model", "weights", "epochs", "training", "top-1")]
    for run in options.runs:
        try:
            result = json.loads(files.read_text(run / "result.json", 1 << 20))
            weights = recipe.load(run / "recipe.yaml").model.weights
            seconds, top1 = f"{result['training_seconds']:.0f} s", f"{100 * result['top1']:.2f} %"
            rows.append((str(run), result["model"], weights or "random", str(result["epochs"]), seconds, top1))
        except UserError as error:
            parser.error(f"{run} is no finished run: {error}")
        except (ValueError, KeyError, TypeError, RecursionError):
            parser.error(f"{run / 'result.json'} is not what a training run writes")
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


if __name__ == "__main__":
    main()
