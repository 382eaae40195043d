"""Write the pictures of CIFAR-10 as JPEGs in folders called like the classes, as the shipped weights were trained on.

    python tools/cifar10_jpegs.py cifar-10-python.tar.gz data/cifar10-jpg

makes ``train/horse/0000.jpg`` and so on, and ``test`` beside it: in every class, the pictures in the order of the
published file. With ``--each 50`` it writes the first 50 of every class alone.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # in place of this folder, whose inspect.py hides Python's own; a clone is not installed

import argparse  # noqa: E402
from typing import Optional  # noqa: E402

from PIL import Image  # noqa: E402
from tqdm import tqdm  # noqa: E402

from ppconvmixer import UserError, datasets, sources  # noqa: E402
from ppconvmixer.commands.arguments import positive  # noqa: E402

QUALITY = 75  # of the JPEGs: what Pillow takes where nothing is said


def main() -> None:
    """Write both parts."""
    parser = argparse.ArgumentParser(description="Write the pictures of CIFAR-10 as JPEGs.")
    parser.add_argument("source", help="cifar-10-python.tar.gz, or the folder it unpacks to")
    parser.add_argument("target", type=Path, help="a folder that is not there yet")
    parser.add_argument("--each", type=positive, metavar="N", help="write the first N of every class (default: all)")
    options = parser.parse_args()
    if options.target.exists():
        parser.error(f"{options.target} exists; name a folder that is not there yet")
    try:
        parts = {split: datasets.cifar10(sources.open_source(options.source), split) for split in ("train", "test")}
        for split, pictures in parts.items():
            _write(pictures, options.target / split, options.each)
    except UserError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"cannot write to {options.target}, which is not whole: {error.strerror or error}")


def _write(pictures: datasets.Pictures, folder: Path, each: Optional[int]) -> None:
    written = dict.fromkeys(pictures.classes, 0)
    for name in written:
        (folder / name).mkdir(parents=True)
    for i, label in enumerate(tqdm(pictures.labels.tolist(), folder.name)):
        name = pictures.classes[label]
        if each is None or written[name] < each:
            Image.fromarray(pictures.fetch(i)).save(folder / name / f"{written[name]:04}.jpg", quality=QUALITY)
            written[name] += 1


if __name__ == "__main__":
    main()
