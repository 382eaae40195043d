import numpy as np
import paddle
import pytest

from ppconvmixer.phases import Epochs
from ppconvmixer.trainer import Trainer


def softmax_step(weight, images, labels, rate):
    """Cross-entropy and a step of plain gradient descent of a linear classifier, in float64."""
    logits = images @ weight
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[np.arange(len(labels)), labels]).mean()
    p[np.arange(len(labels)), labels] -= 1
    return loss, weight - rate * images.T @ p / len(labels)


@pytest.mark.parametrize("parts", [1, 3])
def test_a_step_takes_the_mean_over_all_its_batches(parts):
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((parts, 4, 6)).astype(np.float32), rng.integers(0, 5, (parts, 4))
    network = paddle.nn.Linear(6, 5, bias_attr=False)
    loss, expected = softmax_step(network.weight.numpy().astype(float), *(a.reshape(-1, *a.shape[2:]) for a in (images, labels)), 0.5)  # fmt: skip
    model = Trainer(network)
    sgd = paddle.optimizer.SGD(0.5, parameters=network.parameters())
    model.prepare(sgd, paddle.nn.CrossEntropyLoss(), paddle.metric.Accuracy(name="top1"), "O0")
    for _ in range(2):  # nothing of the first step may be left in the second one
        (found,), _ = model.train_batch([images], [labels])
        assert float(found) == pytest.approx(loss, rel=1e-6)
        np.testing.assert_allclose(network.weight.numpy(), expected, rtol=0, atol=1e-6)
        loss, expected = softmax_step(expected, *(a.reshape(-1, *a.shape[2:]) for a in (images, labels)), 0.5)
    assert model._metrics[0].count[0] == 2 * parts * 4


class Batches:
    """Stands for ``loader.TrainBatches``: batch ``i`` of epoch ``e`` holds the number 100 e + i."""

    def __init__(self, count):
        self.count, self.epoch, self.skip = count, 0, 0

    def __len__(self):
        return self.count

    def __iter__(self):
        numbers, self.skip = range(self.skip, self.count), 0
        for i in numbers:
            self.current = np.array([100 * self.epoch + i] * 2)
            yield [self.current.astype(np.float32), self.current]


def drawn(epochs, passes):
    return [[(step[1].tolist(), epochs.current.tolist()) for step in epochs] for _ in range(passes)]


def test_the_last_step_of_an_epoch_is_of_the_batches_that_are_left():
    first, second = Batches(5), Batches(2)
    epochs = Epochs([first, second], accumulate=3)
    assert epochs.counts == [2, 1] and len(epochs) == 2
    a, b = drawn(epochs, 2)
    assert a == [([[0, 0], [1, 1], [2, 2]], [0, 0, 1, 1, 2, 2]), ([[3, 3], [4, 4]], [3, 3, 4, 4])]
    assert b == [([[100, 100], [101, 101]], [100, 100, 101, 101])]


def test_going_on_in_the_middle_of_an_epoch():
    whole = drawn(Epochs([Batches(7)] * 3, accumulate=2), 3)
    for epoch, skip in ((0, 1), (1, 3), (2, 0)):
        epochs = Epochs([Batches(7)] * 3, accumulate=2)
        epochs.epoch, epochs.skip = epoch, skip
        assert len(epochs) == 4 - skip
        assert drawn(epochs, 3 - epoch) == [whole[epoch][skip:], *whole[epoch + 1 :]]
