import numpy as np
import pytest

from ppconvmixer import per_class
from ppconvmixer.evaluate import Evaluation


def evaluation(labels, logits):
    order = np.argsort(-logits, axis=1, kind="stable")
    empty = np.empty(0)
    return Evaluation(np.arange(len(labels)), labels, order[:, :5], empty, empty, logits.astype(np.float32), (), 1.0)


@pytest.fixture(params=[3, 40])
def judged(request):
    """(evaluation, dense confusion matrix counted one by one)"""
    rng = np.random.default_rng(request.param)
    labels = rng.integers(0, request.param - 1, 300)  # the last class has no pictures
    logits = rng.standard_normal((300, request.param))
    logits[np.arange(300), labels] += 2
    dense = np.zeros((request.param, request.param), int)
    for label, row in zip(labels, logits):
        dense[label, row.argmax()] += 1
    return evaluation(labels, logits), dense


def test_the_cells_are_the_confusion_matrix(judged):
    found, dense = judged
    cells = found.confusion()
    assert (cells[:, 2] > 0).all() and cells.dtype == np.int64
    again = np.zeros_like(dense)
    again[cells[:, 0], cells[:, 1]] = cells[:, 2]
    np.testing.assert_array_equal(again, dense)
    pictures, right = per_class.pictures(cells, len(dense))
    np.testing.assert_array_equal(pictures, dense.sum(1))
    np.testing.assert_array_equal(right, dense.diagonal())


def test_mistakes_and_the_classes_they_are_about(judged):
    found, dense = judged
    cells, wrong = found.confusion(), dense - np.diag(dense.diagonal())
    mistakes = per_class.mistakes(cells)
    assert mistakes[:, 2].tolist() == sorted(wrong[wrong > 0].tolist(), reverse=True)
    assert all(wrong[label, predicted] == count for label, predicted, count in mistakes)
    chosen = per_class.most_confused(cells, len(dense))
    about = wrong.sum(0) + wrong.sum(1)
    assert len(chosen) == min(per_class.SHOWN, len(dense)) and (np.diff(chosen) > 0).all()
    assert sorted(about[chosen].tolist()) == sorted(about.tolist())[-len(chosen) :]
    np.testing.assert_array_equal(per_class.matrix(cells, chosen), dense[np.ix_(chosen, chosen)])


def test_precision_and_recall_are_those_of_the_definition(judged):
    found, _ = judged
    scores = found.scores()
    logits = found.logits.astype(float)
    np.testing.assert_allclose(scores, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-12)
    for label in range(scores.shape[1]):
        points = per_class.curve(scores[:, label], found.labels == label)
        for i in range(per_class.THRESHOLDS):
            taken = scores[:, label] >= (i + 1) / per_class.THRESHOLDS
            tp, fp = (taken & (found.labels == label)).sum(), (taken & (found.labels != label)).sum()
            fn, tn = (found.labels == label).sum() - tp, (found.labels != label).sum() - fp
            assert [points[k][i] for k in ("tp", "fp", "tn", "fn")] == [tp, fp, tn, fn]
            assert points["precision"][i] == (tp / (tp + fp) if tp + fp else 1)
            assert points["recall"][i] == (tp / (tp + fn) if tp + fn else 0)


def test_the_picture_has_a_row_for_every_class(judged):
    found, dense = judged
    names = [f"klass {i} \u732b" for i in range(len(dense))]
    image = per_class.draw(found.confusion(), names)
    shown = min(per_class.SHOWN, len(dense))
    assert image.dtype == np.uint8 and image.shape == (36 * shown + 46, 36 * shown + 160, 3)


def test_colours_tell_right_from_wrong():
    assert per_class.colour(0, True) == per_class.colour(0, False) == (255, 255, 255)
    right, wrong = per_class.colour(1, True), per_class.colour(1, False)
    assert right[2] > right[0] and wrong[0] > wrong[2]
