"""Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531): a student learns from a teacher's logits."""

from __future__ import annotations

import logging
from typing import Callable, Optional

import numpy as np
import paddle
from paddle.nn import functional as F

from . import checkpoint
from .errors import UserError, said, shown, unknown
from .recipe import PADDLE_MODELS, Recipe
from .trained import Trained

logger = logging.getLogger("ppconvmixer")


class Teacher:
    """A network in evaluation, without gradients, and the loss of a student that it looks on with.

    Args:
        temperature: what the logits of both are divided by.
        alpha: share of the teacher in the loss, in (0, 1].
        amp: mixed precision, as ``paddle.amp.auto_cast`` has it.
    """

    def __init__(self, network: paddle.nn.Layer, temperature: float, alpha: float, amp: str = "O0"):
        network.eval()
        self.network, self.temperature, self.alpha, self.amp = network, temperature, alpha, amp
        self.logits: Optional[paddle.Tensor] = None

    def look(self, images: np.ndarray) -> None:
        """See the float32 images (N, 3, H, W) that the student gets next."""
        with paddle.no_grad(), paddle.amp.auto_cast(enable=self.amp != "O0", level=self.amp):
            self.logits = self.network(paddle.to_tensor(images)).astype("float32")

    def loss(self, hard: Callable[..., paddle.Tensor]) -> Callable[..., paddle.Tensor]:
        """Return the student's loss, a function of its logits (N, classes) and what ``hard`` takes beside them.

        It is alpha T^2 KL(teacher || student) + (1 - alpha) hard, the mean over the batch, where both
        distributions are the softmax of logits / T; T^2 keeps the size of the gradient.
        """

        def loss(logits: paddle.Tensor, *labels: paddle.Tensor) -> paddle.Tensor:
            student = F.log_softmax(logits.astype("float32") / self.temperature)
            teacher = F.log_softmax(self.logits / self.temperature)
            divergence = (teacher.exp() * (teacher - student)).sum(axis=1).mean()
            return self.alpha * self.temperature**2 * divergence + (1 - self.alpha) * hard(logits, *labels)

        return loss


def create_teacher(recipe: Recipe, num_classes: int, classes: Optional[tuple[str, ...]], amp: str) -> Teacher:
    """Make the teacher of a recipe for data of ``num_classes`` classes, and fill it.

    Raises:
        UserError: its weights cannot be had, do not fit, or tell other classes apart.
    """
    settings = recipe.distill
    name = settings.teacher
    if name.startswith(PADDLE_MODELS):
        network = _paddle_classifier(name, settings.weights, num_classes)
    else:
        network = _convmixer(recipe, num_classes, classes)
    network.eval()
    size = min(phase.size for phase in recipe.phases())
    try:
        with paddle.no_grad():
            logits = network(paddle.zeros([1, 3, size, size]))
    except Exception as error:  # whatever Paddle's layers say to a picture that is too small for them
        raise UserError(f"the teacher {name} does not take {size} x {size} pixels: {said(error)}") from error
    if not isinstance(logits, paddle.Tensor) or logits.shape != [1, num_classes]:
        raise UserError(f"the teacher {name} does not answer with the logits of {num_classes} classes alone")
    return Teacher(network, settings.temperature, settings.alpha, amp)


def _convmixer(recipe: Recipe, num_classes: int, classes: Optional[tuple[str, ...]]) -> paddle.nn.Layer:
    settings, spec = recipe.distill, recipe.input_spec()
    found = Trained(settings.weights, settings.teacher)
    if found.num_classes != num_classes:
        raise UserError(f"the teacher {found.path} knows {found.num_classes} classes, the data has {num_classes}")
    if found.classes and classes and found.classes != classes:
        raise UserError(f"the teacher {found.path} tells other classes apart by its card than the data has")
    for key in ("mean", "std", "size"):
        ours, theirs = getattr(spec, key), getattr(found.input, key)
        if ours != theirs:
            logger.warning("the teacher is made for input.%s %s and gets the student's, %s", key, theirs, ours)
    return found.create()


def _paddle_classifier(name: str, weights: str, num_classes: int) -> paddle.nn.Layer:
    """Make one of Paddle's own classifiers and fill it from a file with exactly its entries."""
    known = [f"{PADDLE_MODELS}{model}" for model in paddle.vision.models.__all__ if model.islower()]
    if name not in known:
        raise unknown("teacher", name, known)
    network = getattr(paddle.vision.models, name[len(PADDLE_MODELS) :])(num_classes=num_classes)
    state, wanted = checkpoint.read(weights), network.state_dict()
    shapes = {entry: tuple(value.shape) for entry, value in wanted.items()}
    wrong = [f"{entry} is missing" for entry in shapes if entry not in state]
    wrong += [f"{shown(entry)} is not used" for entry in state if entry not in shapes]
    wrong += [
        f"{entry} is {shown(state[entry].shape)} and not {shape}"
        for entry, shape in shapes.items()
        if entry in state and state[entry].shape != shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{weights} is no {name} of {num_classes} classes: {'; '.join(wrong[:3])}{more}")
    network.set_state_dict({entry: np.ascontiguousarray(value, np.float32) for entry, value in state.items()})
    return network
