"""What each part of a recipe is worth: train with and without it, and print the tables, as docs/recipes.md shows them.

    python tools/ablation.py --data cifar10.tar --runs runs/ablation

It takes an hour or two on 2 CPU cores. Runs that are complete are not repeated, and one that was cut off goes on.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # in place of this folder, whose inspect.py hides Python's own; a clone is not installed

import argparse  # noqa: E402
import json  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402

from ppconvmixer import datasets, sources  # noqa: E402

SEEDS = (0, 1, 2)
PICTURES = 1000  # of each class to train on, the first ones

SCRATCH = {  # what is changed in configs/cifar10_128_8.yaml
    "crop and flip alone": [],
    "RandAugment `n2-m12`": ["augment.randaugment=n2-m12"],
    "mixup and cutmix": ["augment.mixup=0.5", "augment.cutmix=0.5"],
    "moving average, rising to 0.989": ["train.ema=0.99"],  # in so few steps
    "label smoothing, 0.1": ["train.label_smoothing=0.1"],
    "distilled from the 256/8": ["distill.teacher=convmixer_256_8_ks5_p2", "distill.weights=pretrained"],
}
USUAL = [
    *("model.name=convmixer_64_4_ks5_p2", "train.epochs=10", "train.batch_size=128", "train.histograms=0"),
    *("augment.randaugment=null", "augment.crop_scale=[0.6, 1.0]", "optimizer.lr=0.02", "data.dataset=list"),
]
TRANSFER = {  # from CIFAR-10 to digits; what is changed in configs/digits_finetune.yaml
    "random weights": ["model.weights=null"],
    "frozen, the head alone": ["finetune.freeze=true"],
    "gradual": ["finetune.freeze=true", "finetune.unfreeze=[{epoch: 1, blocks: 4}, {epoch: 2, blocks: 8, stem: true}]"],
    "layer decay, 0.8": ["finetune.layer_decay=0.8"],
    "full": [],
}


def main() -> None:
    """Train what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description="Print the tables of docs/recipes.md.")
    parser.add_argument("--data", required=True, help="folder or tar archive with train/CLASS and test/CLASS")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    pictures = [f"data.path={options.data}", *_lists(options.data, options.runs)]
    _table("cifar10_128_8", SCRATCH, [*USUAL, *pictures], options.runs / "scratch")
    _table("digits_finetune", TRANSFER, ["train.histograms=0"], options.runs / "transfer")


def _lists(data: str, folder: Path) -> list[str]:
    """Write the lists of pictures to train on and to test on; return the settings that name them."""
    source, settings = sources.open_source(data), []
    for part, key in (("train", "train"), ("test", "val")):
        pictures, taken, lines = datasets.from_folders(source, part), {}, []
        for name, label in zip(pictures.names, pictures.labels.tolist()):
            taken[label] = taken.get(label, 0) + 1
            if part == "test" or taken[label] <= PICTURES:
                lines.append(f"{name} {label}\n")
        (folder / f"{part}.txt").write_text("".join(lines))
        settings.append(f"data.{key}={folder / part}.txt")
    return settings


def _table(recipe: str, variants: dict[str, list[str]], usual: list[str], folder: Path) -> None:
    print(f"\n| {recipe} | top-1, mean of {len(SEEDS)} seeds | lowest to highest |\n|---|---|---|")
    for number, (name, settings) in enumerate(variants.items()):
        runs = [_run(recipe, [*usual, *settings, f"train.seed={s}"], folder / f"{number}-{s}") for s in SEEDS]
        figures = [100 * top1 for top1 in runs]
        print(f"| {name} | {statistics.mean(figures):.2f} % | {min(figures):.2f} to {max(figures):.2f} % |", flush=True)


def _run(recipe: str, settings: list[str], folder: Path) -> float:
    """Return the accuracy of the best epoch of a run."""
    result = folder / "result.json"
    if not result.exists():
        command = [sys.executable, str(ROOT / "tools/finetune.py"), "-c", recipe, "--output", str(folder)]
        more = ["--resume"] if (folder / "recipe.yaml").exists() else []
        subprocess.run([*command, *more, "-o", *settings], check=True)
    return json.loads(result.read_text())["top1"]


if __name__ == "__main__":
    main()
