"""ConvMixer (Trockman & Kolter 2022, "Patches Are All You Need?", arXiv 2201.09792)."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, Optional

import paddle
from paddle import nn
from paddle.jit.sot.psdb import in_sot

from .errors import UserError, unknown
from .ops import mixer, rewrite

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


def layer_id(name: str, depth: int) -> int:
    """Return the layer that a parameter or a layer's name belongs to: 0 the stem, i + 1 block i, depth + 1 the head."""
    part, *rest = name.split(".")
    if part == "blocks":
        return int(rest[0]) + 1
    return 0 if part == "stem" else depth + 1


def layer_name(layer: int, depth: int) -> str:
    """Return what to call the layer with that ``layer_id``: stem, block 0, block 1, ..., head."""
    return "stem" if layer == 0 else "head" if layer > depth else f"block {layer - 1}"


class Residual(nn.Layer):
    """``x + fn(x)``; in training, a picture does without ``fn`` by the chance ``drop_path``, in [0, 1).

    What stays is divided by 1 - drop_path, so that the mean over the draws is what evaluation computes
    (stochastic depth, Huang et al. 2016, as timm draws it: for every picture by itself).
    """

    def __init__(self, fn: nn.Layer, drop_path: float = 0.0):
        super().__init__()
        self.fn, self.drop_path = fn, drop_path

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        y = self.fn(x)
        if self.drops():
            y = y * self.shares(x.shape[0]).astype(y.dtype)
        return y + x

    def drops(self) -> bool:
        """Tell whether pictures may do without ``fn`` now."""
        return self.training and self.drop_path > 0

    def shares(self, pictures: int) -> paddle.Tensor:
        """Draw how much of ``fn`` each picture gets, (pictures, 1, 1, 1)."""
        kept = paddle.rand([pictures, 1, 1, 1]) >= self.drop_path
        return kept.astype("float32") / (1 - self.drop_path)


class ConvMixer(nn.Layer):
    """A patch embedding, then ``depth`` pairs of depthwise and pointwise convolution, then the mean.

    Parameter names are timm's; the initial weights are drawn as the official network draws them.

    Args:
        dim: channels of every block.
        depth: number of blocks.
        kernel_size: side of the depthwise kernel, in patches.
        patch_size: side and stride of the patch embedding, in pixels.
        in_chans: channels of the picture.
        num_classes: outputs of the head; 0 leaves the head out and the model returns features.
        act: ``"gelu"`` or ``"relu"``.
        drop_rate: dropout before the head, in [0, 1).
        drop_path: chance that a picture does without the depthwise half of the last block, in [0, 1); it rises
            linearly from 0 in the first one. The pointwise half has no residual and is never dropped. The
            CPU operator does not know it, so that what takes its place elsewhere trains (see `ops.rewrite`).

    Input: float32 ``(N, in_chans, H, W)``, H and W at least ``patch_size``.
    Output: float32 ``(N, num_classes)`` logits, or ``(N, dim)`` when ``num_classes`` is 0.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        kernel_size: int = 9,
        patch_size: int = 7,
        in_chans: int = 3,
        num_classes: int = 1000,
        act: str = "gelu",
        drop_rate: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        if act not in ACTIVATIONS:
            raise unknown("activation", act, ACTIVATIONS)
        self.dim, self.patch_size, self.in_chans = dim, patch_size, in_chans
        activation = ACTIVATIONS[act]

        def conv(inputs: int, kernel: int, **kwargs: Any) -> tuple[nn.Layer, ...]:
            fan_in = inputs // kwargs.get("groups", 1) * kernel**2
            return nn.Conv2D(inputs, dim, kernel, **kwargs, **_uniform(fan_in)), activation(), nn.BatchNorm2D(dim)

        self.stem = nn.Sequential(*conv(in_chans, patch_size, stride=patch_size))
        self.blocks = nn.Sequential(
            *[
                nn.Sequential(
                    Residual(
                        nn.Sequential(*conv(dim, kernel_size, groups=dim, padding=_same(kernel_size))),
                        drop_path * i / max(depth - 1, 1),
                    ),
                    *conv(dim, 1),
                )
                for i in range(depth)
            ]
        )
        self.as_made = mixer.structure(self)
        self.frozen = 0
        self.dropout = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new, randomly initialised head of ``num_classes`` outputs in place; 0 removes it."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.dim, num_classes, **_uniform(self.dim)) if num_classes else nn.Identity()

    def freeze(self, layers: int) -> None:
        """Keep the lowest ``layers`` layers (see ``layer_id``) as they are in training, and train all others.

        Their parameters get no gradient, and their norms take, and leave alone, the running statistics.
        """
        self.frozen = layers
        for name, parameter in self.named_parameters():
            if not name.endswith(("._mean", "._variance")):  # Paddle counts them among the parameters
                parameter.stop_gradient = layer_id(name, len(self.blocks)) < layers
        if self.training:
            self.train()

    def train(self) -> ConvMixer:
        super().train()
        for layer in [self.stem, *self.blocks, self.head][: self.frozen]:
            layer.eval()
        return self

    def forward_features(self, x: paddle.Tensor) -> paddle.Tensor:
        """Return the feature map, ``(N, dim, H // patch_size, W // patch_size)``."""
        self._check(x)
        way = self._way(x)
        return way.mix(self, x, pooled=False) if way else self.blocks(self.stem(x))

    @paddle.jit.not_to_static
    def _way(self, x: paddle.Tensor) -> Optional[ModuleType]:
        """Return what takes the place of the layers here: the CPU operator, or their rewriting, or None."""
        if in_sot() or not mixer.replaceable(self, x):
            return None
        if mixer.usable(self):
            return mixer
        return rewrite if rewrite.usable(self) else None

    @paddle.jit.not_to_static  # a static graph knows sizes that are left open as -1, and its transcript as tensors
    def _check(self, x: paddle.Tensor) -> None:
        _, channels, height, width = x.shape
        if channels not in (self.in_chans, -1) or min(height, width) in range(self.patch_size):
            raise UserError(
                f"the input is {channels} x {height} x {width}; this network takes {self.in_chans} channels "
                f"and at least {self.patch_size} x {self.patch_size} pixels"
            )

    def forward_head(self, x: paddle.Tensor, pre_logits: bool = False) -> paddle.Tensor:
        """Return logits ``(N, num_classes)`` of a feature map, or its mean ``(N, dim)`` with ``pre_logits``."""
        x = self.dropout(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return x if pre_logits else self.head(x)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        way = self._way(x)
        if way:
            self._check(x)
            return self.head(self.dropout(way.mix(self, x, pooled=True)))
        return self.forward_head(self.forward_features(x))


def _same(kernel: int) -> list[int]:
    """Padding that keeps height and width; an even kernel's odd pixel goes below and right, as in torch."""
    before = (kernel - 1) // 2
    return [before, kernel - 1 - before] * 2


def _uniform(fan_in: int) -> dict[str, paddle.ParamAttr]:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weight and bias: the draw the published networks started from."""
    bound = 1 / math.sqrt(fan_in)
    return {
        name: paddle.ParamAttr(initializer=nn.initializer.Uniform(-bound, bound))
        for name in ("weight_attr", "bias_attr")
    }
