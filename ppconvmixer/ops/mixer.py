"""The operator in Paddle's dynamic graph."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Optional

import numpy as np
import paddle
from paddle import nn
from paddle.autograd import PyLayer

from ..threads import threads
from .build import library

if TYPE_CHECKING:
    from ..model import ConvMixer


def usable(model: ConvMixer, images: paddle.Tensor) -> bool:
    """Tell whether the operator computes what the layers of ``model`` would: on a CPU, in float32, for plain layers."""
    return (
        paddle.in_dynamic_mode()
        and images.place.is_cpu_place()
        and images.dtype == model.stem[0].weight.dtype == paddle.float32
        and (images.stop_gradient or not paddle.is_grad_enabled())  # the gradient of the pictures is not computed
        and _untouched(model)
        and all(map(_plain, _triples(model)))
        and all(block[0].fn[0].weight.shape[-1] % 2 for block in model.blocks)  # even kernels pad on one side more
        and library() is not None
    )


def mix(model: ConvMixer, images: paddle.Tensor, pooled: bool) -> paddle.Tensor:
    """Return the feature maps of ``model`` for float32 images (N, C, H, W), or, ``pooled``, their means (N, dim)."""
    parameters = [p for conv, norm in _pairs(model) for p in (conv.weight, conv.bias, norm.weight, norm.bias)]
    if paddle.is_grad_enabled() and not all(p.stop_gradient for p in parameters):
        return _Mixer.apply(images, model, pooled, *parameters)
    call = _Call(model, images, pooled)
    memory = _pool.take(call.floats(keep=False))
    out = call.forward(memory, keep=False)
    _pool.give(memory)
    return out


class _Mixer(PyLayer):
    @staticmethod
    def forward(
        ctx: Any, images: paddle.Tensor, model: ConvMixer, pooled: bool, *parameters: paddle.Tensor
    ) -> paddle.Tensor:
        ctx.call, ctx.parameters = _Call(model, images, pooled), parameters
        ctx.memory = _pool.take(ctx.call.floats(keep=True))
        return ctx.call.forward(ctx.memory, keep=True)

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> tuple[Optional[paddle.Tensor], ...]:
        if ctx.memory is None:
            raise RuntimeError("the way back was gone already, and its memory is in use again; run forward anew")
        gradients = [paddle.empty(p.shape, "float32") for p in ctx.parameters]
        ctx.call.backward(gradient, ctx.memory, gradients)
        _pool.give(ctx.memory)
        ctx.memory = None
        return (None, *(None if p.stop_gradient else g for p, g in zip(ctx.parameters, gradients)))


class _Shape(ctypes.Structure):
    """``Shape`` of mixer.cpp."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("n", "channels", "height", "width", "patch", "dim", "depth", "kernel", "relu", "threads")
    ]


class _Call:
    """The arguments of the library's functions; they hold addresses, so the tensors are held, too."""

    def __init__(self, model: ConvMixer, images: paddle.Tensor, pooled: bool):
        self.library = library()
        self.images, self.pooled = images.contiguous(), pooled
        n, channels, height, width = images.shape
        patch, depth = model.patch_size, len(model.blocks)
        kernel = model.blocks[0][0].fn[0].weight.shape[-1] if depth else 1
        relu = isinstance(model.stem[1], nn.ReLU)
        self.shape = _Shape(n, channels, height, width, patch, model.dim, depth, kernel, relu, threads())
        map_shape = [n, model.dim, height // patch, width // patch]
        self.out_shape = map_shape[:2] if pooled else map_shape
        self.held = [
            (conv.weight, conv.bias, norm.weight, norm.bias, norm._mean, norm._variance, norm.training)
            for conv, norm in _pairs(model)
        ]
        self.stem, *halves = [[t.data_ptr() for t in tensors] + [int(batch)] for *tensors, batch in self.held]
        # A block of mixer.cpp: six addresses of each half, then its two flags.
        self.blocks = [a[:6] + b[:6] + [a[6], b[6]] for a, b in zip(halves[::2], halves[1::2])]

    def floats(self, keep: bool) -> int:
        """Return the floats that ``forward`` works in."""
        return self.library.mixer_memory(ctypes.byref(self.shape), ctypes.c_int64(keep))

    def forward(self, memory: np.ndarray, keep: bool) -> paddle.Tensor:
        """Return the result, and with ``keep`` leave in ``memory`` what ``backward`` needs."""
        out = paddle.empty(self.out_shape, "float32")
        arguments = (_table(self.stem), _table(self.blocks), self.images.data_ptr(), self.pooled, out.data_ptr())
        self._run(self.library.mixer_forward, *arguments, memory.ctypes.data, keep)
        return out

    def backward(self, gradient: paddle.Tensor, memory: np.ndarray, gradients: list[paddle.Tensor]) -> None:
        """Fill ``gradients``, which come in the order of the parameters."""
        gradient = gradient.contiguous()
        d = _pool.take(self.library.mixer_map(ctypes.byref(self.shape)))
        found = _table([g.data_ptr() for g in gradients])
        arguments = (_table(self.stem), _table(self.blocks), self.images.data_ptr(), self.pooled, gradient.data_ptr())
        self._run(self.library.mixer_backward, *arguments, memory.ctypes.data, found, found[4:], d.ctypes.data)
        _pool.give(d)

    def _run(self, function: Any, *arguments: Any) -> None:
        addresses = [a.ctypes.data if isinstance(a, np.ndarray) else int(a) for a in arguments]
        function(ctypes.byref(self.shape), *map(ctypes.c_void_p, addresses))


class _Pool:
    """Memory of the steps before, for the next one: pages fresh from the system cost more than the arithmetic."""

    KEPT = 2  # a training step works in two arrays

    def __init__(self) -> None:
        self.free: list[np.ndarray] = []

    def take(self, size: int) -> np.ndarray:
        """Return a float32 array of ``size`` elements with any content."""
        for i, array in enumerate(self.free):
            if array.size == size:
                return self.free.pop(i)
        return np.empty(size, np.float32)

    def give(self, array: np.ndarray) -> None:
        """Take an array back."""
        self.free = [*self.free, array][-self.KEPT :]


_pool = _Pool()


def _table(values: Any) -> np.ndarray:
    return np.array(values, np.int64)


def _triples(model: ConvMixer) -> Iterator[tuple[nn.Layer, nn.Layer, nn.Layer]]:
    """Yield convolution, activation and norm of the stem and of both halves of every block."""
    yield tuple(model.stem)
    for block in model.blocks:
        yield tuple(block[0].fn)
        yield tuple(block)[1:]


def _pairs(model: ConvMixer) -> Iterator[tuple[nn.Layer, nn.Layer]]:
    return ((conv, norm) for conv, _, norm in _triples(model))


def _untouched(model: ConvMixer) -> bool:
    """Tell whether the layers stand in each other as ConvMixer puts them, and nobody has hooked into one."""
    parts = [model.stem, model.blocks]
    layers = [layer for part in parts for layer in part.sublayers(include_self=True)]
    return (
        all(type(part) is nn.Sequential for part in (*parts, *model.blocks))
        and [len(part) for part in (model.stem, *model.blocks)] == [3] + [4] * len(model.blocks)
        and all(type(block[0]).__name__ == "Residual" and len(block[0].fn) == 3 for block in model.blocks)
        and not any(layer._forward_pre_hooks or layer._forward_post_hooks for layer in layers)
    )


def _plain(triple: tuple[nn.Layer, nn.Layer, nn.Layer]) -> bool:
    """Tell whether the layers are as ConvMixer makes them."""
    conv, act, norm = triple
    return (
        type(conv) is nn.Conv2D
        and type(act) in (nn.GELU, nn.ReLU)
        and type(norm) is nn.BatchNorm2D
        and norm._epsilon == 1e-5
        and norm._momentum == 0.9
        and not norm._use_global_stats
    )
