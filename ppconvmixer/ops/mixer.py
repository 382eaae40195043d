"""The operator in Paddle's dynamic graph, and a network prepared for evaluation."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Optional

import numpy as np
import paddle
from paddle import nn
from paddle.autograd import PyLayer

from ..errors import UserError
from ..threads import threads
from .build import library

if TYPE_CHECKING:
    from ..model import ConvMixer


def replaceable(model: ConvMixer, images: paddle.Tensor) -> bool:
    """Tell whether another way may compute what the layers would: on a CPU, in float32, for plain layers."""
    return (
        paddle.in_dynamic_mode()
        and paddle.get_device() == "cpu"  # where results are made
        and images.place.is_cpu_place()
        and images.dtype == paddle.float32
        and paddle.base.framework._dygraph_tracer()._amp_level == paddle.base.core.AmpLevel.O0
        # A gradient of the pictures alone, as `paddle.grad` finds it, is refused where a PyLayer has other inputs.
        and (images.stop_gradient or not paddle.is_grad_enabled())
        and unchanged(model)
    )


def usable(model: ConvMixer) -> bool:
    """Tell whether the operator, which has no drop path, is here and computes all that ``model`` wants now."""
    return not any(block[0].drops() for block in model.blocks) and library() is not None


def known(model: ConvMixer) -> bool:
    """Tell whether there is an operator, and ``model`` is the network that it knows."""
    return unchanged(model) and library() is not None


def eight_is_fast() -> bool:
    """Tell whether the processor multiplies bytes faster than floats; the operator must be here."""
    return bool(library().network_eight_is_fast())


def unchanged(model: ConvMixer) -> bool:
    """Tell whether ``model`` is a plain float32 ConvMixer on a CPU, which nobody rebuilt, set otherwise or hooked."""
    weight = model.stem[0].weight
    return weight.dtype == paddle.float32 and weight.place.is_cpu_place() and structure(model) == model.as_made


def once(result: paddle.Tensor) -> paddle.Tensor:
    """Return ``result``, through which a second way back ends in an error; in a PyLayer, Paddle 3.3 would crash."""
    passed: list[bool] = []

    def check(_: paddle.Tensor) -> None:
        if passed:
            raise RuntimeError(
                "there is no second way back through the network; run it forward anew, or with "
                "images.stop_gradient = False, for which Paddle's layers compute"
            )
        passed.append(True)

    if not result.stop_gradient:
        result.register_hook(check)
    return result


def mix(model: ConvMixer, images: paddle.Tensor, pooled: bool) -> paddle.Tensor:
    """Return the feature maps of ``model`` for float32 images (N, C, H, W), or, ``pooled``, their means (N, dim)."""
    parameters = [p for conv, norm in _pairs(model) for p in (conv.weight, conv.bias, norm.weight, norm.bias)]
    if paddle.is_grad_enabled() and not all(p.stop_gradient for p in parameters):
        return once(_Mixer.apply(images, model, pooled, *parameters))
    if any(norm.training for _, norm in _pairs(model)):
        call = _Call(model, images, pooled)
        memory = _pool.take(call.floats(keep=False))
        out = call.forward(memory, keep=False)
        _pool.give(memory)
        return out
    prepared = Prepared(model)
    out = paddle.to_tensor(prepared(images.numpy(), pooled))
    _pool.give(prepared.weights)
    return out


class Prepared:
    """A network in evaluation as it is now, its weights put into the order of use; later changes do not reach it.

    Args:
        eight: multiply the matrices of the pointwise convolutions in 8 bits; all else stays float32.
    """

    def __init__(self, model: ConvMixer, eight: bool = False):
        self.library = library()
        self.shape = _shape(model, (1, model.in_chans, model.patch_size, model.patch_size))
        self.shape.eight = eight
        _, stem, blocks = _tables(model)
        self.weights = _pool.take(self.library.network_floats(ctypes.byref(self.shape)))
        _run(self.library.network_prepare, self.shape, stem, blocks, self.weights)

    def __call__(self, images: np.ndarray, pooled: bool) -> np.ndarray:
        """Return the feature maps of float32 images (N, C, H, W), or, ``pooled``, their means (N, dim).

        Raises:
            UserError: they have other channels, or less than a patch.
        """
        images = np.ascontiguousarray(images, np.float32)
        shape = _Shape.from_buffer_copy(self.shape)
        least = shape.patch
        if images.ndim != 4 or images.shape[1] != shape.channels or min(images.shape[2:]) < least:
            raise UserError(
                f"the input is {' x '.join(map(str, images.shape))}; want N x {shape.channels} x H x W, at least "
                f"{least} x {least} pixels"
            )
        shape.n, _, shape.height, shape.width = images.shape
        sizes = () if pooled else (shape.height // shape.patch, shape.width // shape.patch)
        out = np.empty((shape.n, shape.dim, *sizes), np.float32)
        memory = _pool.take(self.library.network_memory(ctypes.byref(shape)))
        _run(self.library.network_run, shape, self.weights, images, pooled, out, memory)
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
        gradients = [paddle.empty(p.shape, "float32") for p in ctx.parameters]
        first = next(i for i, p in enumerate(ctx.parameters) if not p.stop_gradient)
        ctx.call.backward(gradient, ctx.memory, gradients, lowest=(first + 4) // 8)  # four of the stem, eight a block
        _pool.give(ctx.memory)
        ctx.memory = None
        return (None, *(None if p.stop_gradient else g for p, g in zip(ctx.parameters, gradients)))


class _Shape(ctypes.Structure):
    """``Shape`` of network.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("n", "channels", "height", "width", "patch", "dim", "depth", "kernel", "relu", "threads", "eight")
    ]


class _Call:
    """A training step: forward, and backward with what it left."""

    def __init__(self, model: ConvMixer, images: paddle.Tensor, pooled: bool):
        self.library = library()
        self.images, self.pooled = images.contiguous(), pooled
        self.shape = _shape(model, images.shape)
        self.held, self.stem, self.blocks = _tables(model)
        n, _, height, width = images.shape
        sizes = [] if pooled else [height // model.patch_size, width // model.patch_size]
        self.out_shape = [n, model.dim, *sizes]

    def floats(self, keep: bool) -> int:
        """Return the floats that ``forward`` works in."""
        return self.library.mixer_memory(ctypes.byref(self.shape), ctypes.c_int64(keep))

    def forward(self, memory: np.ndarray, keep: bool) -> paddle.Tensor:
        """Return the result, and with ``keep`` leave in ``memory`` what ``backward`` needs."""
        out = paddle.empty(self.out_shape, "float32")
        _run(self.library.mixer_forward, self.shape, *self._inputs(), out, memory, keep)
        return out

    def backward(
        self, gradient: paddle.Tensor, memory: np.ndarray, gradients: list[paddle.Tensor], lowest: int
    ) -> None:
        """Fill ``gradients``, which come in the order of the parameters, down to those of the layer ``lowest``."""
        d = _pool.take(self.library.mixer_map(ctypes.byref(self.shape)))
        found = _table([g.data_ptr() for g in gradients])
        arguments = (*self._inputs(), gradient.contiguous(), memory, found, found[4:], d, lowest)
        _run(self.library.mixer_backward, self.shape, *arguments)
        _pool.give(d)

    def _inputs(self) -> tuple[Any, ...]:
        return self.stem, self.blocks, self.images, self.pooled


def _shape(model: ConvMixer, images: Sequence[int]) -> _Shape:
    depth = len(model.blocks)
    kernel = model.blocks[0][0].fn[0].weight.shape[-1] if depth else 1
    relu = isinstance(model.stem[1], nn.ReLU)
    return _Shape(*images, model.patch_size, model.dim, depth, kernel, relu, threads(), False)


def _tables(model: ConvMixer) -> tuple[list[Any], np.ndarray, np.ndarray]:
    """Return the tensors of ``model``, and their addresses as ``Stem`` and ``Block`` of network.h have them."""
    held = [
        (conv.weight, conv.bias, norm.weight, norm.bias, norm._mean, norm._variance, norm.training)
        for conv, norm in _pairs(model)
    ]
    stem, *halves = [[t.data_ptr() for t in tensors] + [int(batch)] for *tensors, batch in held]
    # A block: six addresses of each half, then its two flags.
    blocks = [a[:6] + b[:6] + [a[6], b[6]] for a, b in zip(halves[::2], halves[1::2])]
    return held, _table(stem), _table(blocks)


def _run(function: Any, shape: _Shape, *arguments: Any) -> None:
    """Call the library; of arrays and tensors it gets the addresses."""

    def word(value: Any) -> int:
        if isinstance(value, np.ndarray):
            return value.ctypes.data
        return value.data_ptr() if isinstance(value, paddle.Tensor) else int(value)

    function(ctypes.byref(shape), *(ctypes.c_void_p(word(value)) for value in arguments))


class _Pool:
    """Memory of the steps before, for the next one: pages fresh from the system cost more than the arithmetic."""

    KEPT = 2  # a training step works in two arrays

    def __init__(self) -> None:
        self.free: list[np.ndarray] = []
        self.lock = threading.Lock()

    def take(self, size: int) -> np.ndarray:
        """Return a float32 array of ``size`` elements with any content."""
        with self.lock:
            for i, array in enumerate(self.free):
                if array.size == size:
                    return self.free.pop(i)
        return np.empty(size, np.float32)

    def give(self, array: np.ndarray) -> None:
        """Take an array back."""
        with self.lock:
            self.free = [*self.free, array][-self.KEPT :]


_pool = _Pool()


def _table(values: Any) -> np.ndarray:
    return np.array(values, np.int64)


def _pairs(model: ConvMixer) -> Iterator[tuple[nn.Layer, nn.Layer]]:
    """Yield convolution and norm of the stem and of both halves of every block."""
    yield model.stem[0], model.stem[2]
    for block in model.blocks:
        yield block[0].fn[0], block[0].fn[2]
        yield block[1], block[3]


def structure(model: ConvMixer) -> list[Any]:
    """Return what the operator takes for granted of the layers: order, kinds, settings, shapes, precision and hooks."""
    found = []
    for part in (model.stem, model.blocks):
        for name, layer in part.named_sublayers(include_self=True):
            settings = {k: v for k, v in vars(layer).items() if k not in _PASSING and isinstance(v, _SETTINGS)}
            tensors = [t for held in (layer._parameters, layer._buffers) for t in held.values() if t is not None]
            shapes = [(tuple(t.shape), t.dtype == paddle.float32) for t in tensors]
            hooks = len(layer._forward_pre_hooks) + len(layer._forward_post_hooks) + ("forward" in vars(layer))
            found.append((name, type(layer), settings, shapes, hooks))
    return found


_SETTINGS = (bool, int, float, str, list, tuple, type(None))
_PASSING = ("training", "_built", "_dtype")  # the first call of a layer sets the second; the tensors say the third
