import io
import struct

import numpy as np
import pytest
from conftest import picture
from PIL import Image
from scipy import stats

from ppconvmixer import UserError, augment, transforms, zoo
from ppconvmixer.augment import Augment
from ppconvmixer.draws import Draws

SPEC = zoo.InputSpec(32, 0.8, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
PLAIN = zoo.InputSpec(32, 1.0, "bicubic", (0, 0, 0), (1, 1, 1))


def encoded(image, kind="PNG", **kwargs) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **kwargs)
    return stream.getvalue()


@pytest.mark.parametrize("backend", transforms.BACKENDS)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "P", "1", "RGBA", "LA"])
def test_every_mode_becomes_what_pillow_makes_of_it(backend, mode):
    image = picture(0)
    if mode == "LA":
        image = image.convert("L").convert("LA")
    else:
        image = image.convert(mode)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(transforms.decode(data, backend)), expected)


@pytest.mark.parametrize("backend", transforms.BACKENDS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bits_keeps_its_levels(backend, kind):
    levels = np.arange(40 * 32, dtype=np.uint16).reshape(32, 40) * 50
    levels[0, :3] = 0, 257, 65535
    found = np.asarray(transforms.decode(encoded(Image.fromarray(levels), kind), backend))
    assert found[0, :3, 0].tolist() == [0, 1, 255]
    np.testing.assert_array_equal(found, np.repeat(np.round(levels / 257).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize("backend", transforms.BACKENDS)
@pytest.mark.parametrize("mode", ["I", "F"])
def test_grey_of_32_bits_is_refused(backend, mode):
    with pytest.raises(UserError, match=f"mode {mode}"):
        transforms.decode(encoded(picture(0).convert("L").convert(mode), "TIFF"), backend)


@pytest.mark.parametrize("backend", transforms.BACKENDS)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_with_an_orientation_are_not_turned(backend, mode):
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer would turn it by 90 degrees
    data = encoded(picture(1).convert(mode), "JPEG", exif=exif, quality=95)
    found = np.asarray(transforms.decode(data, backend)).astype(int)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert found.shape == (32, 40, 3)
    # Both decoders are libjpeg-turbo's; builds may round a pixel differently.
    assert np.abs(found - expected).max() <= (0 if backend == "pil" else 3)


@pytest.mark.parametrize("backend", transforms.BACKENDS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF"])
def test_broken_pictures_are_refused_by_both_backends(backend, kind):
    data = encoded(picture(2, 200, 200), kind)
    for broken in (data[: len(data) // 2], b"hello", b"", data[:20]):
        with pytest.raises(UserError):
            transforms.decode(broken, backend)


def test_the_crop_is_resize_and_centre_crop():
    for width, height in ((40, 32), (32, 40), (39, 77), (300, 41)):
        image = picture(3, width, height)
        short = 40  # int(32 / 0.8)
        if width <= height:
            w, h = short, int(short * height / width)
        else:
            w, h = int(short * width / height), short
        left, top = round((w - 32) / 2), round((h - 32) / 2)
        expected = image.resize((w, h), Image.Resampling.BICUBIC).crop((left, top, left + 32, top + 32))
        np.testing.assert_array_equal(transforms.eval_crop(SPEC)(image), np.asarray(expected))


def test_cv2_cuts_the_same_place():
    image = picture(4, 80, 60)
    pil = transforms.eval_crop(SPEC)(image).astype(int)
    cv2 = transforms.eval_crop(SPEC, "cv2")(np.asarray(image)).astype(int)
    assert np.abs(pil - cv2).mean() < 4  # other filter, same picture
    assert np.abs(pil - np.roll(cv2, 3, axis=1)).mean() > 4


def test_normalisation_is_by_channel():
    image = Image.new("RGB", (50, 50), (255, 0, 51))
    found = transforms.eval_transform(SPEC)(image)
    assert found.dtype == np.float32 and found.shape == (3, 32, 32)
    expected = (np.array([1.0, 0.0, 0.2]) - SPEC.mean) / SPEC.std
    np.testing.assert_allclose(found, np.broadcast_to(expected[:, None, None], found.shape), rtol=1e-6)


def test_reference_crops(shared):
    reference = np.load(shared / "reference/timm_reference.npz")
    spec = zoo.input_spec("convmixer_768_32")
    for name, expected in zip(reference["images"], reference["crops"]):
        image = transforms.decode((shared / "data/imagenet-sample" / str(name)).read_bytes())
        np.testing.assert_array_equal(transforms.eval_crop(spec)(image), expected)
    first = (shared / "data/imagenet-sample" / str(reference["images"][0])).read_bytes()
    np.testing.assert_array_equal(transforms.eval_transform(spec)(transforms.decode(first)), reference["input_first"])


def test_without_augmentation_training_sees_what_evaluation_sees():
    image = picture(5, 70, 50)
    found = transforms.train_transform(SPEC, Augment())(image, Draws(0, 0, [0]))
    np.testing.assert_array_equal(found, transforms.eval_transform(SPEC)(image))


def test_the_draws_alone_decide():
    transform = transforms.train_transform(SPEC, Augment((0.3, 1.0), (0.75, 1.33), 0.5, "n2-m12", 0.4, 0.5))
    image = picture(6, 70, 50)
    a, b, c = (transform(image, Draws(0, 0, [index])) for index in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    np.testing.assert_array_equal(transform(np.asarray(image), Draws(0, 0, [1])), a)


def test_crops_are_resized_either_way_by_an_even_chance():
    settings = Augment((0.3, 0.9), (0.75, 1.33), crop_interpolation="random")
    transform, image = transforms.train_transform(SPEC, settings), picture(6, 70, 50)
    bicubic = 0
    for numbers, way in transform.crop_numbers(Draws(0, 0, range(1000)), 1000):
        bicubic += way == "bicubic"
        if bicubic < 20:
            box, filter_ = augment.crop_box(70, 50, settings, numbers), Image.Resampling[way.upper()]
            expected = np.asarray(image.resize((SPEC.size, SPEC.size), filter_, box=box))
            np.testing.assert_array_equal(transform.crop(image, (numbers, way)), expected)
    assert abs(bicubic - 500) < 3 * np.sqrt(250)


def test_crops_have_the_area_and_ratio_asked_for():
    settings = Augment((0.2, 0.6), (0.8, 1.25))
    numbers = np.random.default_rng(0).random((2000, augment.TRIES, 4))
    boxes = np.array([augment.crop_box(400, 300, settings, n) for n in numbers])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = width * height / (400 * 300), width / height
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 400 and boxes[:, 3].max() <= 300
    assert area.min() > 0.19 and area.max() < 0.61 and abs(area.mean() - 0.4) < 0.01
    assert ratio.min() > 0.78 and ratio.max() < 1.28 and abs(np.log(ratio).mean()) < 0.01
    for start, room in ((boxes[:, 0], 400 - width), (boxes[:, 1], 300 - height)):  # every place is as likely
        place = (start + 0.5) / (room + 1)
        assert place.min() < 0.02 and place.max() > 0.98
        assert stats.kstest(place, "uniform").pvalue > 1e-3
    # A whole-picture crop of another shape does not fit: the largest one of the nearest ratio is taken.
    assert augment.crop_box(400, 100, Augment((1.0, 1.0)), numbers[0]) == (150, 0, 250, 100)


def test_flips_happen_as_often_as_asked():
    half = np.repeat(np.arange(32, dtype=np.uint8)[None, :, None] * 8, 32, axis=0).repeat(3, axis=2)
    transform = transforms.train_transform(PLAIN, Augment(hflip=0.3))
    found = transform.finish(np.stack([half] * 1000), Draws(0, 0, range(1000)))
    assert abs((found[:, 0, 0, 0] > 0.5).sum() - 300) < 3 * np.sqrt(1000 * 0.3 * 0.7)


def test_jitter_changes_brightness_within_bounds():
    grey = np.full((500, 32, 32, 3), 100, np.uint8)
    found = transforms.train_transform(PLAIN, Augment(color_jitter=0.2)).finish(grey, Draws(0, 0, range(500)))
    means = found.mean(axis=(1, 2, 3)) * 255
    assert 78 <= means.min() < 83 and 117 < means.max() <= 122  # grey feels brightness alone


@pytest.mark.parametrize(
    "wrong",
    [{"crop_scale": (0.0, 1.0)}, {"crop_scale": (0.9, 0.5)}, {"crop_scale": (0.5, 2.0)}, {"crop_ratio": (0.5, 2.0)}]
    + [{"hflip": 1.5}, {"color_jitter": -0.1}, {"erasing": 2.0}, {"erasing_mode": "const"}, {"erasing_mode": "black"}]
    + [
        {"randaugment": "n2"},
        {"mixup": -1.0},
        {"cutmix": 1e3},
        {"mixup": 1e-5},
        {"mix_prob": 0.5},
        {"mix_switch_prob": 0.3},
    ]
    + [{"mix_prob": 0.0, "mixup": 1.0}, {"mix_switch_prob": 0.3, "mixup": 1.0}, {"mix_switch_prob": 0.3, "cutmix": 1.0}]
    + [{"mix_switch_prob": 1.0, "mixup": 1.0, "cutmix": 1.0}],
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Augment(**wrong)


def test_unknown_backend():
    with pytest.raises(UserError, match="did you mean pil"):
        transforms.eval_crop(SPEC, "pill")


def test_grey_tiff_of_12_bits():
    """Written by hand, as Pillow writes no 12 bits: a strip of two pixels, whose levels fill three bytes."""
    entries = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    strip = bytes([0x80, 0x0F, 0xFF])  # 0x800 and 0xFFF
    table = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    content = struct.pack("<2sHI", b"II", 42, 12) + strip + b"\0" + struct.pack("<H", len(entries)) + table + bytes(4)
    assert np.asarray(transforms.decode(content))[0, :, 0].tolist() == [128, 255]


@pytest.mark.parametrize("photometric", [0, 1])
def test_grey_tiff_of_16_bits_may_have_0_for_white(photometric):
    levels = np.array([[0, 1000, 65535]], np.uint16)
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, "TIFF", tiffinfo={262: photometric})
    grey = np.asarray(transforms.decode(stream.getvalue()))[0, :, 0]
    assert grey.tolist() == ([0, 4, 255] if photometric else [255, 251, 0])
