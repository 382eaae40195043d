import numpy as np
import pytest

from ppconvmixer import UserError, datasets, evaluate, sources, zoo
from ppconvmixer.engines import Dygraph, create_engine
from ppconvmixer.loader import Samples
from ppconvmixer.transforms import eval_transform

SPEC = zoo.InputSpec(16, 1.0, "bilinear", (0, 0, 0), (1, 1, 1))


class Brightness:
    """An engine whose logits are known: a linear function of the mean brightness."""

    name = "brightness"

    def __init__(self, num_classes):
        self.num_classes = num_classes

    def __call__(self, images):
        mean = images.mean((1, 2, 3), dtype=np.float64)
        return (mean[:, None] * np.sin(np.arange(self.num_classes) * 7.0) * 5).astype(np.float32)


@pytest.fixture
def samples(class_folders):
    pictures = datasets.from_folders(sources.Folder(class_folders), "train")
    return Samples(pictures, eval_transform(SPEC))


@pytest.mark.parametrize("batch_size", [1, 7, 24, 100])
@pytest.mark.parametrize("workers", [0, 2])
def test_metrics_are_those_of_the_definition(samples, batch_size, workers):
    found = evaluate.evaluate(Brightness(8), samples, batch_size, workers, keep_logits=True)
    means = np.array([samples.read(i).mean(dtype=np.float64) for i in range(24)])
    logits = means[:, None] * np.sin(np.arange(8) * 7.0) * 5
    labels = samples.pictures.labels
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rank = np.argsort(-logits, axis=1)
    metrics = found.metrics()
    assert metrics["samples"] == 24 and metrics["skipped"] == 0 and metrics["k"] == 5
    assert metrics["top1"] == np.mean(rank[:, 0] == labels)
    assert metrics["top5"] == np.mean([label in row[:5] for label, row in zip(labels, rank)])
    assert metrics["loss"] == pytest.approx(-np.log(probabilities[np.arange(24), labels]).mean(), rel=1e-5)
    np.testing.assert_allclose(found.logits, logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.indices, np.arange(24))
    np.testing.assert_array_equal(found.classes, rank[:, :5])
    np.testing.assert_allclose(found.probabilities, -np.sort(-probabilities, axis=1)[:, :5], rtol=1e-5)


def test_the_loss_is_the_mean_over_samples_not_over_batches(samples):
    """24 pictures in batches of 7 leave a tail of 3, which must not weigh as much as the others."""
    a, b = (evaluate.evaluate(Brightness(4), samples, size, 0).metrics()["loss"] for size in (7, 1))
    assert a == pytest.approx(b, rel=1e-12)


def test_few_classes_make_top_k(samples):
    metrics = evaluate.evaluate(Brightness(3), samples, 8, 0).metrics()
    assert metrics["k"] == 3 and metrics["top5"] == 1.0


def test_huge_logits_stay_finite():
    classes, probabilities = evaluate.top_k(np.array([[1e4, -1e4, 0.0], [5.0, 5.0, 5.0]], np.float32))
    assert classes.tolist() == [[0, 2, 1], [0, 1, 2]]
    np.testing.assert_allclose(probabilities, [[1, 0, 0], [1 / 3] * 3])


def test_limit(samples):
    assert evaluate.evaluate(Brightness(3), samples, 8, 0, limit=10).metrics()["samples"] == 10
    assert evaluate.evaluate(Brightness(3), samples, 8, 0, limit=1000).metrics()["samples"] == 24


def test_a_label_outside_the_head_is_named(samples):
    with pytest.raises(UserError, match="owl 0.png has the label 2, but the model has 2 classes"):
        evaluate.evaluate(Brightness(2), samples, 8, 0)


def test_broken_pictures_stop_or_are_counted(class_folders, tmp_path):
    good = (class_folders / "train/cat/cat 0.png").read_bytes()
    for i in range(9):
        (tmp_path / f"{i}.png").write_bytes(good[:60] if i in (2, 7) else good)
    (tmp_path / "list.txt").write_text("".join(f"{i}.png {i % 3}\n" for i in range(9)))
    pictures = datasets.from_list(sources.Folder(tmp_path), tmp_path / "list.txt")
    broken = Samples(pictures, eval_transform(SPEC))
    with pytest.raises(UserError, match="(?s)2 of 9.*2.png.*7.png"):
        evaluate.evaluate(Brightness(3), broken, 2, 0)
    found = evaluate.evaluate(Brightness(3), broken, 2, 0, skip_broken=True)
    assert (
        found.metrics()["samples"] == 7 and found.skipped == (2, 7) and found.indices.tolist() == [0, 1, 3, 4, 5, 6, 8]
    )
    assert found.labels.tolist() == [0, 1, 0, 1, 2, 0, 2]
    nothing = Samples(pictures.subset([2, 7]), eval_transform(SPEC))
    with pytest.raises(UserError, match="none of the 2 pictures can be read"):
        evaluate.evaluate(Brightness(3), nothing, 2, 0, skip_broken=True)


def test_the_engine_evaluates_and_leaves_the_training_mode_as_it_was():
    model = zoo.create_model("convmixer_tiny", drop_rate=0.5)
    model.train()
    statistics = model.stem[2]._mean.numpy().copy()
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    engine = Dygraph(model)
    first, second = engine(images), engine(images)
    np.testing.assert_array_equal(first, second)
    assert first.dtype == np.float32 and first.shape == (2, 10)
    assert model.training
    np.testing.assert_array_equal(model.stem[2]._mean.numpy(), statistics)


def test_unknown_engine():
    with pytest.raises(UserError, match="did you mean dygraph"):
        create_engine("dygrah", None)
