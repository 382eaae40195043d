"""``python tools/draw_augmentations.py`` draws docs/augmentations.png: what every augmentation makes of a picture."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # in place of this folder, whose inspect.py hides Python's own; a clone is not installed

import numpy as np  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402

from ppconvmixer import transforms, zoo  # noqa: E402
from ppconvmixer.augment import Augment, erase  # noqa: E402
from ppconvmixer.draws import Draws  # noqa: E402
from ppconvmixer.mixing import Mixing  # noqa: E402
from ppconvmixer.randaugment import parse  # noqa: E402

SIDE, GAP, CAPTION, COLUMNS = 80, 8, 14, 8


def sheet(picture: np.ndarray, partner: np.ndarray) -> Image.Image:
    """Return one variant of ``picture`` an augmentation, each under its name.

    Args:
        picture, partner: uint8 (SIDE, SIDE, 3); the second is what the first is mixed with.
    """
    tiles = [("as it is", picture)]
    spec = zoo.InputSpec(SIDE, 1.0, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    for name, settings, index in (
        ("crop_scale", Augment(crop_scale=(0.35, 0.5), crop_ratio=(0.75, 1.3333)), 0),
        ("hflip", Augment(hflip=1.0), 0),
        ("color_jitter", Augment(color_jitter=0.4), 4),
    ):
        tiles.append((name, _pixels(transforms.train_transform(spec, settings)(picture, Draws(0, 0, [index])))))
    grey, width = np.full(3, 0.5, np.float32), np.float32(0.25)  # a normalisation under which noise shows
    for mode in ("pixel", "const"):
        image = ((picture.transpose(2, 0, 1) / np.float32(255)) - grey[:, None, None])[None] / width
        erase(image, Draws(0, 0, [0]), Augment(erasing=1.0, erasing_mode=mode))
        tiles.append((f"erasing {mode}", _pixels(image[0] * width + grey[:, None, None])))
    for name, settings, number in (("mixup", Augment(mixup=1.0), 0), ("cutmix", Augment(cutmix=1.0), 3)):
        pair = np.stack([picture, partner]).transpose(0, 3, 1, 2) / np.float32(255)
        Mixing(settings, 2)(pair, np.arange(2), Draws(0, 0, [number]))
        tiles.append((name, _pixels(pair[0])))
    for text, title in (("n1-m20", ""), ("rand-m9-inc1", "timm ")):
        policy = parse(text, (0.485, 0.456, 0.406))
        levels = np.array([policy.magnitude]), np.array([1.0]), np.array([True])
        tiles += [("", None)] * (-len(tiles) % COLUMNS)
        tiles += [(title + name, operation(picture[None], *levels)[0]) for name, operation in policy.table.items()]
    return _drawn(tiles)


def _pixels(image: np.ndarray) -> np.ndarray:
    """Turn float32 (3, H, W) in [0, 1] into uint8 (H, W, 3)."""
    return (image.transpose(1, 2, 0) * 255 + 0.5).clip(0, 255).astype(np.uint8)


def _drawn(tiles: list) -> Image.Image:
    rows = -(-len(tiles) // COLUMNS)
    drawn = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, rows * (SIDE + CAPTION + GAP) + GAP), "white")
    pen = ImageDraw.Draw(drawn)
    for place, (name, pixels) in enumerate(tiles):
        row, column = divmod(place, COLUMNS)
        left, top = GAP + column * (SIDE + GAP), GAP + row * (SIDE + CAPTION + GAP)
        if pixels is not None:
            pen.text((left, top), name, fill="black")
            drawn.paste(Image.fromarray(pixels), (left, top + CAPTION))
    return drawn


def samples() -> tuple:
    """Return scikit-learn's flower and china, each cut square."""
    from sklearn.datasets import load_sample_image

    crop = transforms.eval_crop(zoo.InputSpec(SIDE, 1.0, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    return tuple(crop(load_sample_image(name)) for name in ("flower.jpg", "china.jpg"))


if __name__ == "__main__":
    drawn = sheet(*samples())
    palette = drawn.quantize(256, Image.Quantize.MAXCOVERAGE)
    drawn.quantize(palette=palette).save(ROOT / "docs/augmentations.png", optimize=True)
