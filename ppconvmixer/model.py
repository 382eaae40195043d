"""ConvMixer (Trockman & Kolter 2022, "Patches Are All You Need?", arXiv 2201.09792)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from numbers import Integral
from types import ModuleType
from typing import Any, Optional, Union

import paddle
from paddle import nn
from paddle.jit.sot.psdb import in_sot

from .errors import UserError, shown, unknown
from .gpu import check_gpu
from .ops import mixer, rewrite

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}
RESIDUALS = {
    "depthwise": lambda around, depthwise, pointwise: (around(depthwise), *pointwise),
    "both": lambda around, depthwise, pointwise: (around(depthwise), around(pointwise)),
    "block": lambda around, depthwise, pointwise: (around(depthwise + pointwise),),
}
"""What a block is made of, by what its residuals go around: lists of layers, and the function that makes a residual."""


@dataclasses.dataclass(frozen=True)
class FeatureInfo:
    """What a map of ``forward_intermediates`` is known to be before there is one.

    Args:
        channels: of the map.
        stride: pixels of the picture that a pixel of the map stands for, a side.
        name: of the layer that makes it, as parameters and ``named_sublayers`` have it.
    """

    channels: int
    stride: int
    name: str


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


class MixConv(nn.LayerList):
    """Depthwise convolutions of several sizes, each of its own channels (MixConv, Tan & Le 2019, arXiv 1907.09595)."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        parts = paddle.split(x, [conv.weight.shape[0] for conv in self], axis=1)
        return paddle.concat([conv(part) for conv, part in zip(self, parts)], axis=1)


class ConvMixer(nn.Layer):
    """A patch embedding, then ``depth`` pairs of depthwise and pointwise convolution, then the mean.

    Parameter names are timm's; the initial weights are drawn as the official network draws them.

    Three arguments make networks of the literature around ConvMixer that are none: several kernel sizes, ``norm_first``
    and another ``residual``. They have parameter names of their own, no published weights, and run through Paddle's
    layers: the CPU operator, ONNX graphs and pruning know ConvMixer alone (``plain`` tells).

    Args:
        dim: channels of every block.
        depth: number of blocks.
        kernel_size: side of the depthwise kernel, in patches; several share the channels as evenly as can be, the
            first ones taking those that are left over (MixConv, Tan & Le 2019).
        patch_size: side and stride of the patch embedding, in pixels.
        in_chans: channels of the picture.
        num_classes: outputs of the head; 0 leaves the head out and the model returns features.
        act: ``"gelu"`` or ``"relu"``.
        drop_rate: dropout before the head, in [0, 1).
        drop_path: chance that a picture does without what a residual of the last block goes around, in [0, 1); it rises
            linearly from 0 in the first one. ConvMixer's pointwise half has no residual and is never dropped. The
            CPU operator does not know it, so that what takes its place elsewhere trains (see `ops.rewrite`).
        norm_first: norm before activation, as in ResNets (He et al. 2016), instead of after it; in the stem as well.
        residual: what residuals go around: ``"depthwise"``, the paper's; ``"both"``, each half by itself; ``"block"``,
            the two together.

    Input: float32 ``(N, in_chans, H, W)``, H and W at least ``patch_size``.
    Output: float32 ``(N, num_classes)`` logits, or ``(N, dim)`` when ``num_classes`` is 0.

    Raises:
        UserError: unknown ``act`` or ``residual``, kernel sizes that are no numbers from 1 on or more than channels, or
            a GPU on which Paddle cannot compute.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        kernel_size: Union[int, Sequence[int]] = 9,
        patch_size: int = 7,
        in_chans: int = 3,
        num_classes: int = 1000,
        act: str = "gelu",
        drop_rate: float = 0.0,
        drop_path: float = 0.0,
        norm_first: bool = False,
        residual: str = "depthwise",
    ):
        check_gpu()
        super().__init__()
        if act not in ACTIVATIONS:
            raise unknown("activation", act, ACTIVATIONS)
        if residual not in RESIDUALS:
            raise unknown("residual", residual, RESIDUALS)
        kernels = _kernels(kernel_size, dim)
        self.dim, self.patch_size, self.in_chans = dim, patch_size, in_chans
        self.plain = len(kernels) == 1 and not norm_first and residual == "depthwise"

        def half(conv: nn.Layer) -> list[nn.Layer]:
            activation, norm = ACTIVATIONS[act](), nn.BatchNorm2D(dim)
            return [conv, norm, activation] if norm_first else [conv, activation, norm]

        def block(drop: float) -> nn.Layer:
            depthwise, pointwise = half(_depthwise(dim, kernels)), half(_conv(dim, dim, 1))
            return nn.Sequential(
                *RESIDUALS[residual](lambda layers: Residual(nn.Sequential(*layers), drop), depthwise, pointwise)
            )

        self.stem = nn.Sequential(*half(_conv(in_chans, dim, patch_size, stride=patch_size)))
        self.blocks = nn.Sequential(*[block(drop_path * i / max(depth - 1, 1)) for i in range(depth)])
        self.as_made = mixer.structure(self) if self.plain else None
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

    def train(self, mode: bool = True) -> ConvMixer:
        super().train()
        self._hold()
        if not mode:
            self.eval()
        return self

    def _hold(self) -> None:
        """Keep the norms of frozen layers from training; a layer around this one does not call its ``train``."""
        if self.training:
            for layer in [self.stem, *self.blocks, self.head][: self.frozen]:
                for part in layer.sublayers(include_self=True):
                    part.training = False

    def forward_features(self, x: paddle.Tensor) -> paddle.Tensor:
        """Return the feature map, ``(N, dim, H // patch_size, W // patch_size)``."""
        self._check(x)
        way = self._way(x)
        return way.mix(self, x, pooled=False) if way else self.blocks(self.stem(x))

    @property
    def feature_info(self) -> list[FeatureInfo]:
        """What the maps of ``forward_intermediates`` will be, block by block."""
        return [FeatureInfo(self.dim, self.patch_size, f"blocks.{i}") for i in range(len(self.blocks))]

    def forward_intermediates(
        self, x: paddle.Tensor, indices: Union[int, Sequence[int], None] = None
    ) -> tuple[paddle.Tensor, list[paddle.Tensor]]:
        """Return the feature map as ``forward_features`` does, and with it those of some blocks, as timm does.

        Paddle's layers compute them, so that gradients reach every map. What blocks there are says ``feature_info``.

        Args:
            indices: numbers of blocks, negative ones from the last; or how many of the last; None takes all.

        Returns:
            The last block's map, and the chosen ones in the order of the blocks, each once:
            float32 ``(N, dim, H // patch_size, W // patch_size)``.

        Raises:
            UserError: there are no such blocks, or the input is none of this network.
        """
        self._check(x)
        self._hold()
        chosen, found = self.block_numbers(indices), []
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in chosen:
                found.append(x)
        return x, found

    def block_numbers(self, indices: Union[int, Sequence[int], None] = None) -> list[int]:
        """Return the numbers of the blocks, from 0 and rising, that ``forward_intermediates`` takes ``indices`` for.

        Raises:
            UserError: there are no such blocks.
        """
        depth = len(self.blocks)
        if indices is None:
            return list(range(depth))
        if isinstance(indices, Integral):
            if not 0 < indices <= depth:
                raise UserError(f"the network has {depth} blocks; the last {indices} of them cannot be taken")
            return list(range(depth - indices, depth))
        for index in indices:
            if not -depth <= index < depth:
                raise UserError(f"there is no block {index}; the network has {depth}, numbered from 0, or from -1 back")
        return sorted({index % depth for index in indices})

    @paddle.jit.not_to_static
    def _way(self, x: paddle.Tensor) -> Optional[ModuleType]:
        """Return what takes the place of the layers here: the CPU operator, or their rewriting, or None."""
        if in_sot():
            return None
        self._hold()
        if not mixer.replaceable(self, x):
            return None
        if mixer.usable(self):
            return mixer
        return rewrite if rewrite.usable(self) else None

    @paddle.jit.not_to_static  # a static graph knows sizes that are left open as -1, and its transcript as tensors
    def _check(self, x: paddle.Tensor) -> None:
        count, channels, height, width = x.shape
        if count == 0:
            raise UserError("the batch is empty; give one picture or more")
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


def _kernels(kernel_size: Union[int, Sequence[int]], dim: int) -> list[int]:
    """Return the sizes of the depthwise kernels; equal ones are one."""
    kernels = list(kernel_size) if isinstance(kernel_size, (list, tuple)) else [kernel_size]
    if not 0 < len(kernels) <= dim or not all(isinstance(kernel, Integral) and kernel > 0 for kernel in kernels):
        raise UserError(
            f"kernel_size is {shown(kernel_size)}; want a whole number from 1 on, or 1 to {dim} (dim) of them"
        )
    return kernels if len(set(kernels)) > 1 else kernels[:1]


def _conv(inputs: int, outputs: int, kernel: int, **settings: Any) -> nn.Layer:
    fan_in = inputs // settings.get("groups", 1) * kernel**2
    return nn.Conv2D(inputs, outputs, kernel, **settings, **_uniform(fan_in))


def _depthwise(dim: int, kernels: Sequence[int]) -> nn.Layer:
    """Return the convolution of every channel by itself, which keeps height and width."""
    share, over = divmod(dim, len(kernels))
    convs = []
    for i, kernel in enumerate(kernels):
        channels = share + (i < over)
        convs.append(_conv(channels, channels, kernel, groups=channels, padding=_same(kernel)))
    return MixConv(convs) if len(convs) > 1 else convs[0]


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
