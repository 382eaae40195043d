"""All of ConvMixer but its head out of Paddle's own operators, as they are fast on a CPU: where ours cannot be had.

The layers spend most of their time in Paddle's depthwise convolution, the way back of its GELU and the addition of
biases. Here a map is (1, channels, pixels, pictures), as a batch norm takes it. A depthwise convolution is then a
product of two matrices for every channel, and a pointwise one a single product; both go over a few channels at a
time, whose intermediate results stay in the cache.
"""

from __future__ import annotations

import functools
import math
import os
from typing import TYPE_CHECKING, Any, Optional

import numpy as np
import paddle
from paddle import nn
from paddle.autograd import PyLayer

from .. import processor
from ..threads import threads
from .mixer import once

if TYPE_CHECKING:
    from ..model import ConvMixer

LARGEST = 16  # side of a kernel; the products grow beyond what Paddle's convolution takes
TILE = 4  # side of the squares of pixels, see below; larger ones multiply more, smaller ones gather more
RUN = 1 << 20  # floats of the largest intermediate result

# Paddle's MKL takes SSE on AMD's processors, 2.4 times as slow as AVX2, and twelve times once AdamW has run on the same
# threads, for it leaves the upper halves of their registers in use. MKL reads this with the first product of a process.
if "AuthenticAMD" in processor.described() and " avx2 " in processor.described():
    os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")


def usable(model: ConvMixer) -> bool:
    """Tell whether this way is worth it for the kernels of ``model``."""
    return all(block[0].fn[0].weight.shape[-1] <= LARGEST for block in model.blocks)


def mix(model: ConvMixer, images: paddle.Tensor, pooled: bool) -> paddle.Tensor:
    """Return the feature maps of ``model`` for float32 images (N, C, H, W), or, ``pooled``, their means (N, dim)."""
    paddle.base.core.set_num_threads(threads())  # Paddle's import leaves it one
    n, channels, height, width = images.shape
    patch = model.patch_size
    size = h, w = height // patch, width // patch
    relu = isinstance(model.stem[1], nn.ReLU)
    patches = images[:, :, : h * patch, : w * patch].reshape([n, channels, h, patch, w, patch])
    x = patches.transpose([1, 3, 5, 2, 4, 0]).reshape([1, -1, h * w, n])
    x = model.stem[2](_pointwise(x, model.stem[0], relu))
    for residual, pointwise, _, norm in model.blocks:
        depthwise, _, inner = residual.fn
        y = inner(_depthwise(x, depthwise, relu, size))
        x = (y * residual.shares(n).reshape([-1]) if residual.drops() else y) + x
        x = norm(_pointwise(x, pointwise, relu))
    return once(x.mean([0, 2]).t() if pooled else x.reshape([-1, h, w, n]).transpose([3, 0, 1, 2]))


def _pointwise(x: paddle.Tensor, conv: nn.Layer, relu: bool) -> paddle.Tensor:
    return _Pointwise.apply(x, conv.weight, conv.bias, relu, _keep(x, conv))


def _depthwise(x: paddle.Tensor, conv: nn.Layer, relu: bool, size: tuple[int, int]) -> paddle.Tensor:
    return _Depthwise.apply(x, conv.weight, conv.bias, relu, _keep(x, conv), size)


def _keep(x: paddle.Tensor, conv: nn.Layer) -> bool:
    """Tell whether there will be a way back: not in evaluation, and not below the lowest trained layer."""
    return paddle.is_grad_enabled() and not (x.stop_gradient and conv.weight.stop_gradient and conv.bias.stop_gradient)


class _Pointwise(PyLayer):
    """``act(weight x + bias)``; with ``keep`` the slopes of the activation stay for the way back."""

    @staticmethod
    def forward(
        ctx: Any, x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, relu: bool, keep: bool
    ) -> paddle.Tensor:
        matrix, pixels = weight.reshape([weight.shape[0], -1]), x.reshape([x.shape[1], -1])
        found = [
            _activate(paddle.matmul(matrix[run], pixels) + bias[run].unsqueeze(1), relu, keep)
            for run in _runs(len(bias), pixels.shape[1])
        ]
        ctx.kept = x, weight, bias, [slope for _, slope in found]
        return _join([value for value, _ in found]).reshape([1, -1, *x.shape[2:]])

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> tuple[Optional[paddle.Tensor], ...]:
        x, weight, bias, slopes = ctx.kept
        matrix, pixels = weight.reshape([weight.shape[0], -1]), x.reshape([x.shape[1], -1])
        gradient = gradient.reshape([len(bias), -1])
        runs = _runs(len(bias), pixels.shape[1])
        dz = _join([_times(gradient[run], slope) for run, slope in zip(runs, slopes)])
        return (
            None if x.stop_gradient else paddle.matmul(matrix, dz, transpose_x=True).reshape(x.shape),
            None if weight.stop_gradient else paddle.matmul(dz, pixels, transpose_y=True).reshape(weight.shape),
            None if bias.stop_gradient else dz.sum(1),
        )


class _Depthwise(PyLayer):
    """``act(weight * x + bias)`` for maps of ``size``; with ``keep`` the slopes of the activation stay."""

    @staticmethod
    def forward(
        ctx: Any,
        x: paddle.Tensor,
        weight: paddle.Tensor,
        bias: paddle.Tensor,
        relu: bool,
        keep: bool,
        size: tuple[int, int],
    ) -> paddle.Tensor:
        found = [
            _activate(_convolve(x[0, run], weight[run], size) + bias[run].reshape([-1, 1, 1]), relu, keep)
            for run in _window_runs(x, weight, size)
        ]
        ctx.kept = x, weight, bias, [slope for _, slope in found], size
        return _join([value for value, _ in found]).unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> tuple[Optional[paddle.Tensor], ...]:
        x, weight, bias, slopes, size = ctx.kept
        found: tuple[list[paddle.Tensor], ...] = [], [], []
        for run, slope in zip(_window_runs(x, weight, size), slopes):
            dz = _times(gradient[0, run], slope)
            if not x.stop_gradient:
                found[0].append(_convolve(dz, weight[run].flip([2, 3]), size, flipped=True))
            if not weight.stop_gradient:
                found[1].append(_correlate(x[0, run], dz, size, weight.shape[-1]))
            if not bias.stop_gradient:
                found[2].append(dz.sum([1, 2]))
        return tuple(_join(parts).reshape(p.shape) if parts else None for parts, p in zip(found, (x, weight, bias)))


def _activate(z: paddle.Tensor, relu: bool, keep: bool) -> tuple[paddle.Tensor, Optional[paddle.Tensor]]:
    """Return the activation of ``z`` and, with ``keep``, its slope; a slope of ReLU is a truth value."""
    if relu:
        return nn.functional.relu(z), (z > 0 if keep else None)
    cdf = paddle.erf(z * math.sqrt(0.5)).scale_(0.5, 0.5)
    if not keep:
        return z * cdf, None
    density = paddle.exp((z * z).scale_(-0.5, -0.5 * math.log(2 * math.pi)))
    return z * cdf, z * density + cdf


def _times(gradient: paddle.Tensor, slope: paddle.Tensor) -> paddle.Tensor:
    return gradient * slope.astype(gradient.dtype)


def _runs(channels: int, floats: int) -> list[slice]:
    """Cut channels of so many ``floats`` each into runs of about ``RUN``."""
    step = max(1, RUN // floats)
    return [slice(start, start + step) for start in range(0, channels, step)]


def _join(runs: list[paddle.Tensor]) -> paddle.Tensor:
    return runs[0] if len(runs) == 1 else paddle.concat(runs)


# --- a depthwise convolution as products of matrices -----------------------------------------------------
# The map is cut into squares of TILE x TILE pixels. What a square is computed from, its window, is a square too, of
# TILE + kernel - 1 pixels a side. For every channel a matrix (pixels of a square, pixels of a window), filled with the
# taps of the kernel, takes the windows of all squares and pictures to their results.


def _side(kernel: int) -> int:
    return TILE + kernel - 1


def _window_runs(x: paddle.Tensor, weight: paddle.Tensor, size: tuple[int, int]) -> list[slice]:
    """Cut the channels of maps (1, channels, pixels, N) so that windows and matrices stay within ``RUN`` floats."""
    squares = math.ceil(size[0] / TILE) * math.ceil(size[1] / TILE) * x.shape[-1]
    return _runs(x.shape[1], _side(weight.shape[-1]) ** 2 * max(squares, TILE**2))


def _convolve(x: paddle.Tensor, weight: paddle.Tensor, size: tuple[int, int], flipped: bool = False) -> paddle.Tensor:
    """Convolve maps (c, pixels, N) of ``size`` with ``weight`` (c, 1, k, k), padded as `model._same` says.

    ``flipped`` pads the other way round, as the gradient of the maps with a flipped kernel needs it.
    """
    channels, _, _, kernel = weight.shape
    window = _side(kernel) ** 2
    matrix = paddle.matmul(weight.reshape([channels, -1]), _taps(kernel)).reshape([channels, TILE**2, window])
    squares = paddle.matmul(matrix, _gather(x, _windows(size, kernel, flipped)).reshape([channels, window, -1]))
    return paddle.gather(squares.reshape([channels, -1, x.shape[-1]]), _pixels(size), axis=1)


def _correlate(x: paddle.Tensor, gradient: paddle.Tensor, size: tuple[int, int], kernel: int) -> paddle.Tensor:
    """Return the gradient (c, k * k) of the kernel, for that of the result of the convolution of ``x``."""
    channels = x.shape[0]
    windows = _gather(x, _windows(size, kernel)).reshape([channels, _side(kernel) ** 2, -1])
    squares = _gather(gradient, _windows(size, 1)).reshape([channels, TILE**2, -1])
    matrix = paddle.matmul(squares, windows, transpose_y=True)
    return paddle.matmul(matrix.reshape([channels, -1]), _taps(kernel), transpose_y=True)


def _gather(x: paddle.Tensor, pixels: paddle.Tensor) -> paddle.Tensor:
    """Return the ``pixels`` of maps (c, pixels, N); one beyond the last is zero."""
    return paddle.gather(paddle.concat([x, paddle.zeros_like(x[:, :1])], axis=1), pixels, axis=1)


@functools.lru_cache(maxsize=8)
def _taps(kernel: int) -> paddle.Tensor:
    """Return which tap is where in the matrix: ones in (kernel * kernel, pixels of a square * pixels of a window)."""
    side = _side(kernel)
    y, x, v, u = np.ogrid[:TILE, :TILE, :side, :side]
    row, column = v - y, u - x
    tap = np.where((row >= 0) & (row < kernel) & (column >= 0) & (column < kernel), row * kernel + column, -1)
    return paddle.to_tensor((tap.ravel() == np.arange(kernel**2)[:, None]).astype(np.float32), place="cpu")


@functools.lru_cache(maxsize=32)
def _windows(size: tuple[int, int], kernel: int, flipped: bool = False) -> paddle.Tensor:
    """Return the pixel of the map for (pixel of a window, square), and the number of pixels beyond its edges."""
    height, width = size
    side, before = _side(kernel), kernel // 2 if flipped else (kernel - 1) // 2
    v, u, row, column = np.ogrid[:side, :side, :height:TILE, :width:TILE]
    y, x = row + v - before, column + u - before
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return paddle.to_tensor(np.where(inside, y * width + x, height * width).ravel(), place="cpu")


@functools.lru_cache(maxsize=8)
def _pixels(size: tuple[int, int]) -> paddle.Tensor:
    """Return where in (pixel of a square, square) the pixels of the map are."""
    height, width = size
    y, x = np.ogrid[:height, :width]
    rows, columns = math.ceil(height / TILE), math.ceil(width / TILE)
    found = ((y % TILE * TILE + x % TILE) * rows + y // TILE) * columns + x // TILE
    return paddle.to_tensor(found.ravel(), place="cpu")
