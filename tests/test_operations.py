"""Every operation against Pillow's own, as torchvision calls it, for every magnitude."""

import math

import numpy as np
import pytest
from conftest import picture
from PIL import Image, ImageEnhance, ImageOps

from ppconvmixer import operations
from ppconvmixer.augment import BINS, RandAugment

SIZES = ((32, 32), (19, 40), (64, 64))  # height, width


def pictures(height, width):
    """Colourful, flat, of few levels, of one level, and noise."""
    found = [np.asarray(picture(seed, width, height)) for seed in range(3)]
    found += [found[0] // 4 + 90, found[1] // 100 * 100, np.full_like(found[0], 77), np.zeros_like(found[0])]
    found.append(np.random.default_rng(0).integers(0, 256, found[0].shape, np.uint8))
    return np.stack(found)


def affine(image, center=None, translate=(0, 0), shear=(0.0, 0.0)):
    """torchvision's ``affine`` without turning: the inverse of (translate, center, shear, uncenter)."""
    x, y = center or (image.width / 2, image.height / 2)
    a, b = (math.tan(math.radians(s)) for s in shear)
    forward = np.array([[1, -a, 0], [-b, 1 + a * b, 0], [0, 0, 1]])  # as its own docstring multiplies them
    to, back = (
        np.array([[1, 0, tx], [0, 1, ty], [0, 0, 1]]) for tx, ty in ((x + translate[0], y + translate[1]), (-x, -y))
    )
    matrix = np.linalg.inv(to @ forward @ back)[:2].ravel().tolist()
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def sheared(level):
    return math.degrees(math.atan(level))


PILLOW = {
    "identity": lambda image: image,
    "shear_x": lambda image, level: affine(image, (0, 0), shear=(sheared(level), 0.0)),
    "shear_y": lambda image, level: affine(image, (0, 0), shear=(0.0, sheared(level))),
    "translate_x": lambda image, level: affine(image, translate=(int(level), 0)),
    "translate_y": lambda image, level: affine(image, translate=(0, int(level))),
    "rotate": lambda image, level: image.rotate(level, Image.Resampling.NEAREST),
    "brightness": lambda image, level: ImageEnhance.Brightness(image).enhance(level),
    "color": lambda image, level: ImageEnhance.Color(image).enhance(level),
    "contrast": lambda image, level: ImageEnhance.Contrast(image).enhance(level),
    "sharpness": lambda image, level: ImageEnhance.Sharpness(image).enhance(level),
    "posterize": lambda image, level: ImageOps.posterize(image, int(level)),
    "solarize": lambda image, level: ImageOps.solarize(image, level),
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
}


def definition(name, side):
    """torchvision's levels of one sign for magnitudes 0 to 30, and of the other."""
    share = np.arange(31) / 30
    if name in ("brightness", "color", "contrast", "sharpness"):
        return 1 - 0.9 * share, 1 + 0.9 * share
    most = {"shear_x": 0.3, "shear_y": 0.3, "rotate": 30.0}.get(name, 150.0 / 331.0 * side)
    if name == "posterize":
        return (8 - np.round(np.arange(31) / (30 / 4)),) * 2
    return (255 - 255 * share,) * 2 if name == "solarize" else (-most * share, most * share)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", PILLOW)
def test_every_operation_is_pillows_to_the_bit(name, size):
    assert set(RandAugment(1, 0).table(32)) == set(PILLOW) and BINS == 31
    batch = pictures(*size)
    for magnitude in range(31):
        operation, *levels = RandAugment(1, magnitude).table(size[1])[name]
        if levels:
            np.testing.assert_allclose(
                levels, [side[magnitude] for side in definition(name, size[1])], rtol=1e-14, atol=1e-14
            )
        for level in levels:
            expected = np.stack([PILLOW[name](Image.fromarray(p), level) for p in batch])
            found = operation(batch, np.full(len(batch), level))
            np.testing.assert_array_equal(found, expected, err_msg=f"magnitude {magnitude}, level {level}")
        if not levels:
            np.testing.assert_array_equal(operation(batch), np.stack([PILLOW[name](Image.fromarray(p)) for p in batch]))
            break


@pytest.mark.parametrize("name", ["brightness", "color", "contrast", "sharpness", "rotate"])
def test_any_level_and_another_one_for_every_picture(name):
    rng = np.random.default_rng(1)
    batch = rng.integers(0, 256, (300, 12, 10, 3), np.uint8)
    levels = rng.uniform(-40, 40, 300) if name == "rotate" else rng.uniform(0, 3, 300)
    found = getattr(operations, name)(batch, levels)
    for one, picture_, level in zip(found, batch, levels):
        np.testing.assert_array_equal(one, np.asarray(PILLOW[name](Image.fromarray(picture_), level)))


@pytest.mark.parametrize("name", PILLOW)
def test_a_batch_larger_than_a_chunk(name, monkeypatch):
    """What is worked on at once changes nothing, nor does the operation change what it is given."""
    operation, *levels = RandAugment(1, 12).table(32)[name]
    batch = pictures(32, 32)
    before = batch.copy()
    arguments = [np.full(len(batch), levels[1])] if levels else []
    whole = operation(batch, *arguments)
    monkeypatch.setattr(operations, "_CHUNK", 3 * 32 * 32)
    np.testing.assert_array_equal(operation(batch, *arguments), whole)
    np.testing.assert_array_equal(batch, before)
