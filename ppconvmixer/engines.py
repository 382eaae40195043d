"""Ways to run a network: a batch goes in, logits come out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

import numpy as np

from .errors import unknown

if TYPE_CHECKING:
    from .model import ConvMixer


class Dygraph:
    """Paddle's dynamic graph, on the GPU where there is one."""

    name = "dygraph"

    def __init__(self, model: ConvMixer, amp: str = "O0"):
        self.model, self.num_classes, self.amp = model, model.num_classes, amp

    def __call__(self, images: Any) -> np.ndarray:
        """Return float32 logits (N, classes) for float32 images (N, C, H, W), a tensor or an array."""
        import paddle

        training = self.model.training
        self.model.eval()
        try:
            with paddle.no_grad(), paddle.amp.auto_cast(enable=self.amp != "O0", level=self.amp):
                tensor = images if isinstance(images, paddle.Tensor) else paddle.to_tensor(images)
                return self.model(tensor).astype("float32").numpy()
        finally:
            if training:
                self.model.train()


ENGINES: dict[str, Callable[[Any], Any]] = {"auto": Dygraph, "dygraph": Dygraph}


def create_engine(name: str, model: ConvMixer) -> Any:
    """Return the engine ``name`` for ``model``.

    Raises:
        UserError: unknown engine.
    """
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    return ENGINES[name](model)
