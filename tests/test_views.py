"""Pictures seen in several views, against an average computed by hand."""

import json

import numpy as np
import pytest
from conftest import picture, random_state

from ppconvmixer import UserError, card, checkpoint, cli, datasets, sources, trained, views, zoo
from ppconvmixer.engines import Dygraph
from ppconvmixer.evaluate import evaluate, see
from ppconvmixer.loader import Samples
from ppconvmixer.trained import Trained
from ppconvmixer.transforms import eval_transform
from ppconvmixer.views import View

IMAGENET = zoo.IMAGENET


@pytest.mark.parametrize(
    ("text", "model", "expected"),
    [
        ("1", "convmixer_768_32", [(224, False)]),
        ("flip", "convmixer_768_32", [(224, False), (224, True)]),
        ("0.875, 1,1.125", "convmixer_768_32", [(196, False), (224, False), (252, False)]),
        ("1.14,flip", "convmixer_1024_20", [(252, False), (252, True)]),  # 255 pixels are 18.2 patches of 14
        ("0.001", "convmixer_1024_20", [(14, False)]),
        ("1,1.0,1.001", "convmixer_768_32", [(224, False)]),
        (views.USUAL, "convmixer_768_32", [(s, f) for s in (196, 224, 252) for f in (False, True)]),
    ],
)
def test_words_mean_views(text, model, expected):
    assert views.parse(text, model, IMAGENET) == tuple(View(*view) for view in expected)


def test_the_inputs_own_size_need_not_be_whole_patches():
    spec = zoo.input_spec("convmixer_768_32", size=30)
    assert views.parse("1", "convmixer_768_32", spec) == (View(30),)


@pytest.mark.parametrize("text", ["", "flip,", "mirror", "-1", "0", "nan", "inf", "photo.jpg", "1:2"])
def test_words_that_mean_none(text):
    with pytest.raises(UserError, match="unknown view .*; want flip, scales such as 1.125"):
        views.parse(text, "convmixer_768_32", IMAGENET)


def test_a_view_no_larger_than_an_input_may_be():
    with pytest.raises(UserError, match="at most 4096 pixels"):
        views.parse("20", "convmixer_768_32", IMAGENET)


@pytest.fixture(scope="module")
def unsure_weights(tmp_path_factory):
    """Weights that give no class nearly all of the probability."""
    state = random_state(dim=64, depth=4, kernel_size=5, patch_size=4, num_classes=3)
    state["head.weight"] *= 0.03
    path = tmp_path_factory.mktemp("unsure") / "w.pdparams"
    checkpoint.write(path, state)
    card.write(path, card.Card(model="convmixer_tiny", classes=("cat", "dog", "owl")))
    return path


def softmax(logits):
    wide = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return wide / wide.sum(axis=1, keepdims=True)


@pytest.fixture
def samples(class_folders):
    spec = zoo.input_spec("convmixer_tiny", crop_pct=0.9)
    return Samples(datasets.from_folders(sources.Folder(class_folders), "val"), eval_transform(spec))


@pytest.mark.parametrize("workers", [0, 3])
def test_the_average_is_that_of_single_evaluations(samples, unsure_weights, workers):
    """Each view evaluated by itself, its pictures made anew and mirrored as pictures; the means in NumPy."""
    engine = Dygraph(Trained(unsure_weights).create())
    found = evaluate(engine, samples, 5, workers, keep_logits=True,
                     views=views.parse("flip,0.875,1,1.25", "convmixer_tiny", samples.transform.spec))  # fmt: skip
    single = []
    for size in (28, 32, 40):
        spec = zoo.input_spec("convmixer_tiny", crop_pct=0.9, size=size)
        images = np.stack([eval_transform(spec)(samples._picture(i)) for i in range(12)])
        single += [softmax(engine(images)), softmax(engine(images[:, :, :, ::-1].copy()))]
    mean, labels = np.mean(single, axis=0), samples.pictures.labels
    np.testing.assert_allclose(np.exp(found.logits), mean, rtol=1e-5)
    np.testing.assert_allclose(found.probabilities, -np.sort(-mean, axis=1), rtol=1e-5)
    metrics = found.metrics()
    assert metrics["loss"] == pytest.approx(-np.log(mean[np.arange(12), labels]).mean(), rel=1e-5)
    assert metrics["top1"] == np.mean(mean.argmax(axis=1) == labels)
    assert np.ptp(single, axis=0).max() > 1e-3  # the views do differ


def test_probabilities_too_small_to_add_are_averaged(samples):
    class Sure:
        num_classes = 2

        def __call__(self, images):
            return np.tile(np.float32([1000, -1000]), (len(images), 1))

    image = {32: np.zeros((1, 3, 32, 32), np.float32)}
    np.testing.assert_array_equal(see(Sure(), image, [View(32), View(32, True)]), [[0, -2000]])


def run(*arguments):
    return cli.main([str(a) for a in arguments])


def test_one_plain_view_is_plain_eval_to_the_bit(unsure_weights, class_folders, tmp_path):
    results = []
    for number, more in enumerate([(), ("--tta", "1"), ("--tta", "flip"), ("--tta",)]):
        files = ("--logits", tmp_path / "l.npy", "--predictions", tmp_path / "p.csv", "--output", tmp_path / "r.json")
        assert run("eval", "--weights", unsure_weights, "--data", class_folders / "val", *files, *more) == 0
        result = json.loads((tmp_path / "r.json").read_text())
        assert result.pop("images_per_second") > 0
        results.append(((tmp_path / "l.npy").read_bytes(), (tmp_path / "p.csv").read_text(), result))
        assert [len(r[2]["views"]) for r in results] == [1, 1, 2, 6][: number + 1]
    assert results[0] == results[1] and results[0][0] != results[2][0] != results[3][0]
    assert results[2][2]["views"] == [{"size": 32, "flip": False}, {"size": 32, "flip": True}]


def test_a_picture_that_only_some_views_can_have(unsure_weights, tmp_path, capsys):
    """What is too long to be enlarged is broken in all views, and named."""
    (tmp_path / "p/cat").mkdir(parents=True)
    picture(1).save(tmp_path / "p/cat/fine.png")
    picture(2).resize((60_000, 1)).save(tmp_path / "p/cat/long.png")  # 60,000 x 40 at 40 pixels, 92 million at 48
    arguments = ("eval", "--weights", unsure_weights, "--data", tmp_path / "p", "--output", tmp_path / "r.json")
    assert run(*arguments) == 0
    assert run(*arguments, "--tta", "1,1.5") == 2
    assert "1 of 2 pictures cannot be read" in (error := capsys.readouterr().err) and "long.png: " in error
    assert run(*arguments, "--tta", "1,1.5", "--skip-broken") == 0
    assert json.loads((tmp_path / "r.json").read_text())["skipped"] == 1


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_an_engine_for_pictures_of_one_size_is_one_line(unsure_weights, class_folders, capsys, monkeypatch, command):
    class Fixed(Dygraph):
        name = "fixed"

        def __call__(self, images):
            if images.shape[2:] != (32, 32):
                raise RuntimeError(f"Got invalid dimensions\n for input: {images.shape}")
            return super().__call__(images)

    monkeypatch.setattr(trained, "create_engine", lambda name, model: Fixed(model))
    rest = {"eval": ("--data", class_folders / "val"), "predict": (class_folders / "val/cat/cat 0.png",)}[command]
    assert run(command, "--weights", unsure_weights, *rest, "--tta", "flip") == 0
    capsys.readouterr()
    assert run(command, "--weights", unsure_weights, *rest, "--tta", "flip,1.125") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert "the engine fixed does not take 36 x 36 pixels (Got invalid dimensions for input" in captured.err


def test_predict_averages_too(unsure_weights, class_folders, capsys):
    path = class_folders / "val/cat/cat 0.png"
    told = []
    for more in ((), ("--tta", "flip"), ("--tta", "1"), ("--tta",)):
        assert run("predict", "--weights", unsure_weights, path, *more) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[2] and len(set(told)) == 3
