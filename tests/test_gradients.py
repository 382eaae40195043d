import numpy as np
import paddle
import pytest

from ppconvmixer import optim, recipe, zoo
from ppconvmixer.trainer import Trainer

IMAGES = np.random.default_rng(0).standard_normal((2, 4, 3, 32, 32)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 10, (2, 4))


def trainer(*overrides):
    paddle.seed(0)
    network = zoo.create_model("convmixer_tiny", num_classes=10)
    model = Trainer(network)
    optimizer = optim.create_optimizer(recipe.load("digits", overrides), network, [100])
    model.prepare(optimizer, paddle.nn.CrossEntropyLoss(), paddle.metric.Accuracy(), "O0")
    return model


@pytest.mark.parametrize("clip", ["null", "0.01"])
def test_the_norm_is_that_of_the_gradients_of_all_batches_before_the_cut(clip):
    model = trainer(f"optimizer.clip_norm={clip}", "schedule.name=constant")
    other = trainer().network
    for _ in range(2):  # nothing of the first step may be left in the second one
        other.set_state_dict(model.network.state_dict())
        other.train()
        for images, labels in zip(IMAGES, LABELS):
            loss = paddle.nn.functional.cross_entropy(other(paddle.to_tensor(images)), paddle.to_tensor(labels))
            (loss / len(IMAGES)).backward()
        gradients = [p.grad.numpy().astype(float) for p in other.parameters() if p.grad is not None]
        other.clear_gradients()
        assert len(gradients) == 38
        model.train_batch([IMAGES], [LABELS])
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        assert norm > 0.1 and model.gradient_norm() == pytest.approx(norm, rel=1e-5)
        assert model.gradient_norm() is None


def test_the_norms_of_layers_are_those_of_their_gradients():
    model = trainer("optimizer.clip_norm=null")
    other = trainer().network
    other.set_state_dict(model.network.state_dict())
    other.train()
    paddle.nn.functional.cross_entropy(other(paddle.to_tensor(IMAGES[0])), paddle.to_tensor(LABELS[0])).backward()
    squares = {}
    for name, parameter in other.named_parameters():
        if parameter.grad is not None:
            part, number, *_ = name.split(".")
            layer = f"block {number}" if part == "blocks" else part
            squares[layer] = squares.get(layer, 0.0) + np.square(parameter.grad.numpy().astype(float)).sum()
    model.train_batch([IMAGES[:1]], [LABELS[:1]])
    found = model.layer_norms()
    assert list(found) == ["stem", *(f"block {i}" for i in range(4)), "head"] == list(squares)
    for layer, square in squares.items():
        assert found[layer] == pytest.approx(np.sqrt(square), rel=1e-4)
    assert model.gradient_norm() == pytest.approx(np.sqrt(sum(squares.values())), rel=1e-5)


def test_frozen_layers_do_not_count():
    model = trainer()
    model.network.freeze(5)
    model.train_batch([IMAGES], [LABELS])
    before = [p.numpy() for p in (model.network.head.weight, model.network.head.bias)]
    assert len(before) == 2 and 0 < model.gradient_norm() < np.inf
    assert list(model.layer_norms()) == ["head"]


def test_a_norm_that_is_not_finite_is_none():
    model = trainer("optimizer.clip_norm=null")
    model.train_batch([IMAGES * np.float32(np.nan)], [LABELS])
    assert model.gradient_norm() is None


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lamb"])
@pytest.mark.parametrize("clip", ["null", "0.01"])
def test_measuring_changes_no_bit(name, clip):
    own = [f"optimizer.clip_norm={clip}", "optimizer.epsilon=1e-8", f"optimizer.name={name}", "schedule.name=constant"]
    model, plain = trainer(*own), trainer(*own)
    plain._optimizer._grad_clip = None if clip == "null" else paddle.nn.ClipGradByGlobalNorm(float(clip))
    for _ in range(3):
        for one in (model, plain):
            one.train_batch([IMAGES], [LABELS])
    for ours, theirs in zip(model.network.state_dict().values(), plain.network.state_dict().values()):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
