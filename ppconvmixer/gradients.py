"""The norm of the gradients of a step: measured always, cut where a recipe says so."""

from __future__ import annotations

import math
from typing import Any, Optional

import paddle


class Gradients(paddle.nn.ClipGradByGlobalNorm):
    """Paddle's cut of the global norm, which also says what the norm was before.

    An optimiser calls it with the gradients it is about to follow: those of all batches of the step, over all
    processes, without the loss scale of mixed precision, and without decay. A step that mixed precision
    leaves out does not come here.

    Args:
        clip_norm: the norm is cut to this; None leaves the gradients alone.
    """

    norm: Optional[paddle.Tensor] = None
    """Of the last step, float32; who reads it may set it back."""
    squares: dict[str, paddle.Tensor]
    """Of every parameter that had a gradient in the last step, by Paddle's name, its square, float32."""

    def __init__(self, clip_norm: Optional[float]):
        super().__init__(clip_norm or math.inf)
        self.cuts, self.squares = clip_norm is not None, {}

    def __call__(self, params_grads: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        self.squares = {p.name: g.astype("float32").square().sum() for p, g in params_grads if g is not None}
        self.norm = paddle.add_n(list(self.squares.values())).sqrt() if self.squares else None
        return super().__call__(params_grads) if self.cuts else params_grads
