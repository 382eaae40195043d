"""Every operation against Pillow's own, as torchvision and timm call it, for every magnitude."""

import math

import numpy as np
import pytest
from conftest import picture
from PIL import Image, ImageEnhance, ImageOps

from ppconvmixer import operations, randaugment

SIZES = ((32, 32), (19, 40), (64, 64))  # height, width
BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC


def pictures(height, width):
    """Colourful, flat, of few levels, of one level, and noise."""
    found = [np.asarray(picture(seed, width, height)) for seed in range(3)]
    found += [found[0] // 4 + 90, found[1] // 100 * 100, np.full_like(found[0], 77), np.zeros_like(found[0])]
    found.append(np.random.default_rng(0).integers(0, 256, found[0].shape, np.uint8))
    return np.stack(found)


def assert_equal_to_pillow(batch, operation, pillow, arguments, share=0.4, sign=1, bicubic=False):
    """Compare an operation at one share with ``pillow`` at the arguments that are its definition."""
    n = len(batch)
    found = operation(batch, np.full(n, share), np.full(n, float(sign)), np.full(n, bicubic))
    expected = np.stack([pillow(Image.fromarray(p), *arguments) for p in batch])
    np.testing.assert_array_equal(found, expected, err_msg=f"share {share}, sign {sign}, bicubic {bicubic}")


def enhance(name):
    kind = getattr(ImageEnhance, name)
    return lambda image, level: kind(image).enhance(level)


def affine(image, center=None, translate=(0, 0), shear=(0.0, 0.0)):
    """torchvision's ``affine`` without turning: the inverse of (to the centre and shifted, shear, from the centre)."""
    x, y = center or (image.width / 2, image.height / 2)
    a, b = (math.tan(math.radians(s)) for s in shear)
    forward = np.array([[1, -a, 0], [-b, 1 + a * b, 0], [0, 0, 1]])
    places = (x + translate[0], y + translate[1]), (-x, -y)
    to, back = (np.array([[1, 0, tx], [0, 1, ty], [0, 0, 1]]) for tx, ty in places)
    matrix = np.linalg.inv(to @ forward @ back)[:2].ravel().tolist()
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def sheared(level):
    return math.degrees(math.atan(level))


# --- torchvision --------------------------------------------------------------------------------------

TORCHVISION = {
    "identity": lambda image: image,
    "shear_x": lambda image, level: affine(image, (0, 0), shear=(sheared(level), 0.0)),
    "shear_y": lambda image, level: affine(image, (0, 0), shear=(0.0, sheared(level))),
    "translate_x": lambda image, level: affine(image, translate=(int(level), 0)),
    "translate_y": lambda image, level: affine(image, translate=(0, int(level))),
    "rotate": lambda image, level: image.rotate(level, Image.Resampling.NEAREST),
    "brightness": enhance("Brightness"),
    "color": enhance("Color"),
    "contrast": enhance("Contrast"),
    "sharpness": enhance("Sharpness"),
    "posterize": lambda image, level: ImageOps.posterize(image, int(level)),
    "solarize": ImageOps.solarize,
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
}


def torchvision_levels(name, height, width):
    """Return the levels of the magnitudes 0 to 30, negative and positive; None where there are none."""
    share = np.arange(31) / 30
    if name in ("identity", "autocontrast", "equalize"):
        return None
    if name in ("brightness", "color", "contrast", "sharpness"):
        return 1 - 0.9 * share, 1 + 0.9 * share
    if name == "posterize":
        return (8 - np.round(np.arange(31) / ((31 - 1) / 4)),) * 2
    if name == "solarize":
        return (255 - 255 * share,) * 2
    most = {"shear_x": 0.3, "shear_y": 0.3, "rotate": 30.0, "translate_x": 150 / 331 * width}
    levels = most.get(name, 150 / 331 * height) * share
    return -levels, levels


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_operations_to_the_bit(name, size):
    table = randaugment.torchvision()
    assert set(table) == set(TORCHVISION) and randaugment.BINS == 31
    batch, levels, pillow = pictures(*size), torchvision_levels(name, *size), TORCHVISION[name]
    if levels is None:
        assert_equal_to_pillow(batch, table[name], pillow, ())
    else:
        for magnitude in range(31):
            for sign, level in zip((-1, 1), (side[magnitude] for side in levels)):
                assert_equal_to_pillow(batch, table[name], pillow, (level,), magnitude / 30, sign)


# --- timm ---------------------------------------------------------------------------------------------

FILL = (124, 116, 104)


def transformed(matrix):
    """``matrix`` of a level and the picture's sides."""

    def call(image, level, bicubic):
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            matrix(level, *image.size),
            BICUBIC if bicubic else BILINEAR,
            fillcolor=FILL,
        )

    return call


TIMM_MOVES = {
    "rotate": lambda image, level, bicubic: image.rotate(level, BICUBIC if bicubic else BILINEAR, fillcolor=FILL),
    "shear_x": transformed(lambda level, width, height: (1, level, 0, 0, 1, 0)),
    "shear_y": transformed(lambda level, width, height: (1, 0, 0, level, 1, 0)),
    "translate_x": transformed(lambda level, width, height: (1, 0, level * width, 0, 1, 0)),
    "translate_y": transformed(lambda level, width, height: (1, 0, 0, 0, 1, level * height)),
}
TIMM_OTHERS = {
    "autocontrast": lambda image, level: ImageOps.autocontrast(image),
    "equalize": lambda image, level: ImageOps.equalize(image),
    "invert": lambda image, level: ImageOps.invert(image),
    # Pillow has come to refuse 0 bits, of which it made a black picture before.
    "posterize": lambda image, level: ImageOps.posterize(image, level) if level else Image.new("RGB", image.size),
    "solarize": ImageOps.solarize,
    "solarize_add": lambda image, level: image.point([min(255, v + level) if v < 128 else v for v in range(256)] * 3),
    "color": enhance("Color"),
    "contrast": enhance("Contrast"),
    "brightness": enhance("Brightness"),
    "sharpness": enhance("Sharpness"),
}


def timm_level(name, magnitude, sign, increasing):
    """Return the level of a magnitude from 0 to 10."""
    if name in ("posterize", "solarize"):
        most = {"posterize": 4, "solarize": 256}[name]
        level = int(magnitude / 10 * most)
        return most - level if increasing else level
    if name in ("color", "contrast", "brightness", "sharpness"):
        return max(0.1, 1.0 + sign * (magnitude / 10 * 0.9)) if increasing else magnitude / 10 * 1.8 + 0.1
    if name == "solarize_add":
        return int(magnitude / 10 * 110)
    most = {"rotate": 30.0, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.45, "translate_y": 0.45}.get(name, 0.0)
    return sign * (most * (magnitude / 10))


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("name", [*TIMM_MOVES, *TIMM_OTHERS])
def test_timms_operations_to_the_bit(name, increasing):
    operation, pillow = randaugment.timm(FILL, increasing)[name], {**TIMM_MOVES, **TIMM_OTHERS}[name]
    for batch in (pictures(*size) for size in SIZES[:2]):
        for magnitude in (0.0, 1.0, 2.5, 3.7, 5.0, 8.81, 9.0, 10.0):
            for sign, bicubic in ((-1, False), (1, False), (-1, True), (1, True)):
                level = timm_level(name, magnitude, sign, increasing)
                arguments = (level, bicubic) if name in TIMM_MOVES else (level,)
                assert_equal_to_pillow(batch, operation, pillow, arguments, magnitude / 10, sign, bicubic)


# --- whatever the table -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["brightness", "color", "contrast", "sharpness"])
def test_any_level_and_another_one_for_every_picture(name):
    rng = np.random.default_rng(1)
    batch = rng.integers(0, 256, (300, 12, 10, 3), np.uint8)
    levels = rng.uniform(0, 3, 300)
    for one, before, level in zip(getattr(operations, name)(batch, levels), batch, levels):
        np.testing.assert_array_equal(one, np.asarray(TORCHVISION[name](Image.fromarray(before), level)))


def test_any_turn_and_another_one_for_every_picture():
    rng = np.random.default_rng(1)
    batch = rng.integers(0, 256, (300, 12, 10, 3), np.uint8)
    angles = rng.uniform(-170, 170, 300)
    found = operations.move(batch, [operations.turn(angle, 10, 12) for angle in angles])
    for one, before, angle in zip(found, batch, angles):
        np.testing.assert_array_equal(one, np.asarray(Image.fromarray(before).rotate(angle)))


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_batch_larger_than_a_chunk(name, monkeypatch):
    """What is worked on at once changes nothing, nor does the operation change what it is given."""
    operation, batch = randaugment.torchvision()[name], pictures(32, 32)
    before, rest = batch.copy(), (np.full(8, 0.4), np.ones(8), np.zeros(8, bool))
    whole = operation(batch, *rest)
    monkeypatch.setattr(operations, "_CHUNK", 3 * 32 * 32)
    np.testing.assert_array_equal(operation(batch, *rest), whole)
    np.testing.assert_array_equal(batch, before)
