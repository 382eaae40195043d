import dataclasses

import numpy as np
import paddle
import pytest
from conftest import random_state, write_layout

from ppconvmixer import UserError, card, checkpoint, finetune, layouts, recipe
from ppconvmixer.distill import Teacher, create_teacher
from ppconvmixer.trainer import Trainer

TINY = {"dim": 64, "depth": 4, "kernel_size": 5, "patch_size": 4}


class Fixed(paddle.nn.Layer):
    """Answers with the logits it was given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = paddle.to_tensor(logits)

    def forward(self, images):
        return self.logits


def expected(student, teacher, labels, temperature, alpha):
    """The loss and its gradient by the student's logits, in float64 and with NumPy alone."""

    def softmax(x):
        e = np.exp(x - x.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    n = np.arange(len(labels))
    p, q, hard = softmax(teacher / temperature), softmax(student / temperature), softmax(student)
    divergence = (p * np.log(p / q)).sum(1).mean()
    loss = alpha * temperature**2 * divergence + (1 - alpha) * -np.log(hard[n, labels]).mean()
    hard[n, labels] -= 1
    return loss, (alpha * temperature * (q - p) + (1 - alpha) * hard) / len(labels)


@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 0.5), (4.0, 0.9), (0.5, 0.1), (20.0, 1.0)])
def test_the_loss_is_the_papers(temperature, alpha):
    rng = np.random.default_rng(0)
    student, theirs = (3 * rng.standard_normal((6, 5)).astype(np.float32) for _ in range(2))
    labels = rng.integers(0, 5, 6)
    teacher = Teacher(Fixed(theirs), temperature, alpha)
    teacher.look(np.zeros((6, 3, 2, 2), np.float32))
    logits = paddle.to_tensor(student, stop_gradient=False)
    found = teacher.loss(paddle.nn.CrossEntropyLoss())(logits, paddle.to_tensor(labels))
    found.backward()
    loss, gradient = expected(student.astype(float), theirs.astype(float), labels, temperature, alpha)
    assert float(found) == pytest.approx(loss, rel=2e-6)
    np.testing.assert_allclose(logits.grad.numpy(), gradient, rtol=0, atol=2e-7 * temperature)


def test_a_step_asks_the_teacher_about_its_own_batch():
    """Each of the batches of a step has its own lesson, and the teacher stays as it is."""
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((2, 4, 6)).astype(np.float32), rng.integers(0, 5, (2, 4))
    student, theirs = paddle.nn.Linear(6, 5, bias_attr=False), paddle.nn.Linear(6, 5, bias_attr=False)
    weight, fixed = student.weight.numpy().astype(float), theirs.weight.numpy().copy()
    teacher = Teacher(theirs, 2.0, 0.7)
    model = Trainer(student, teacher=teacher)
    sgd = paddle.optimizer.SGD(0.5, parameters=student.parameters())
    metric = paddle.metric.Accuracy(name="top1")
    model.prepare(sgd, teacher.loss(paddle.nn.CrossEntropyLoss()), metric, "O0")
    (found,), _ = model.train_batch([images], [labels])
    losses, gradients = zip(
        *[expected(x @ weight, x @ fixed, y, 2.0, 0.7) for x, y in zip(images.astype(float), labels)]
    )
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-6)
    after = weight - 0.5 * sum(x.T @ g for x, g in zip(images, gradients)) / 2
    np.testing.assert_allclose(student.weight.numpy(), after, rtol=0, atol=1e-6)
    assert metric.total[0] == ((images @ weight).argmax(2) == labels).sum() and metric.count[0] == 8
    assert theirs.weight.grad is None and np.array_equal(theirs.weight.numpy(), fixed)


def with_teacher(class_folders, teacher, weights, *overrides):
    own = [
        *("data.dataset=folder", f"data.path={class_folders}", "data.train=train", "data.val=val"),
        *("data.val_fraction=null", "train.epochs=1", "train.batch_size=8", "data.workers=0"),
        *(f"distill.teacher={teacher}", f"distill.weights={weights}"),
    ]
    return recipe.load("digits", [*own, *overrides])


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_a_teacher_of_the_zoo_in_any_layout(class_folders, tmp_path, layout):
    state = random_state(**TINY, num_classes=3)
    weights = write_layout(tmp_path / "w.safetensors", state, layout)
    ours = with_teacher(class_folders, "convmixer_tiny", weights)
    teacher = create_teacher(ours, 3, ("cat", "dog", "owl"), "O0")
    assert not any(layer.training for layer in teacher.network.sublayers(include_self=True))
    np.testing.assert_array_equal(teacher.network.head.weight.numpy(), state["head.weight"])


def test_a_student_of_a_teacher_has_plain_checkpoints(class_folders, tmp_path):
    weights = write_layout(tmp_path / "w.pdparams", random_state(**TINY, num_classes=3))
    results = []
    for overrides in ((), ("distill=null",)):
        ours = with_teacher(class_folders, "convmixer_tiny", weights, *overrides)
        results.append(finetune.finetune(ours, tmp_path / f"run{len(results)}"))
    states = [checkpoint.read(tmp_path / f"run{i}/last.pdparams") for i in (0, 1)]
    assert set(states[0]) == set(states[1]) == set(random_state(**TINY, num_classes=3))
    assert not np.array_equal(states[0]["head.weight"], states[1]["head.weight"])


def test_a_classifier_of_paddles_as_teacher(class_folders, tmp_path):
    paddle.seed(3)
    theirs = paddle.vision.models.resnet18(num_classes=3)
    paddle.save(theirs.state_dict(), str(tmp_path / "resnet.pdparams"))
    ours = with_teacher(class_folders, "paddle.vision.models.resnet18", tmp_path / "resnet.pdparams")
    teacher = create_teacher(ours, 3, None, "O0")
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    teacher.look(images)
    theirs.eval()
    np.testing.assert_array_equal(teacher.logits.numpy(), theirs(paddle.to_tensor(images)).numpy())
    assert np.isfinite(finetune.finetune(ours, tmp_path / "run")["loss"])


def test_teachers_that_do_not_fit(class_folders, tmp_path, caplog):
    tiny = write_layout(tmp_path / "tiny.pdparams", random_state(**TINY, num_classes=3))
    paddle.save(paddle.vision.models.resnet18(num_classes=3).state_dict(), str(tmp_path / "resnet.pdparams"))
    resnet, models = tmp_path / "resnet.pdparams", "paddle.vision.models."
    for name, weights, classes, message in [
        ("convmixer_tiny", tiny, 4, "knows 3 classes, the data has 4"),
        ("convmixer_256_8", tiny, 3, "the model is ConvMixer-256/8"),
        ("convmixer_tiny", tmp_path / "no.pdparams", 3, "No such file"),
        (f"{models}resnet18", resnet, 4, r"of 4 classes: fc.weight is \(512, 3\) and not \(512, 4\)"),
        (f"{models}resnet34", resnet, 3, "layer1.2.conv1.weight is missing; .* more"),
        (f"{models}resnet18", tiny, 3, "conv1.weight is missing"),
        (f"{models}resnet19", resnet, 3, "did you mean .*resnet18"),
        (f"{models}ResNet", resnet, 3, "unknown teacher"),
        (f"{models}__doc__", resnet, 3, "unknown teacher"),
    ]:
        with pytest.raises(UserError, match=message):
            create_teacher(with_teacher(class_folders, name, weights), classes, None, "O0")
    card.write(tiny, card.Card("convmixer_tiny", {"size": 64}, classes=("a", "b", "c")))
    ours = with_teacher(class_folders, "convmixer_tiny", tiny)
    with pytest.raises(UserError, match="tells other classes apart by its card"):
        create_teacher(ours, 3, ("cat", "dog", "owl"), "O0")
    create_teacher(ours, 3, None, "O0")
    assert "made for input.size 64 and gets the student's, 32" in caplog.text
    small = dataclasses.replace(ours, train=recipe.Train(phases=(recipe.Phase(1, 8, 8),)))
    paddle.save(paddle.vision.models.alexnet(num_classes=3).state_dict(), str(tmp_path / "alexnet.pdparams"))
    small = dataclasses.replace(small, distill=recipe.Distill(f"{models}alexnet", str(tmp_path / "alexnet.pdparams")))
    with pytest.raises(UserError, match="does not take 8 x 8 pixels"):
        create_teacher(small, 3, None, "O0")
    paddle.save(paddle.vision.models.googlenet(num_classes=3).state_dict(), str(tmp_path / "googlenet.pdparams"))
    google = with_teacher(class_folders, f"{models}googlenet", tmp_path / "googlenet.pdparams")
    with pytest.raises(UserError, match="does not (answer with|take)"):
        create_teacher(google, 3, None, "O0")
