"""Write a ConvMixer as an ONNX graph, with the ``onnx`` package alone.

The graph takes float32 ``images`` (N, channels, H, W) and gives ``logits`` (N, classes), for any N. With the
normalisation in it, it takes uint8 ``images`` (N, H, W, channels) and gives ``probabilities``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from .errors import UserError

if TYPE_CHECKING:
    from .model import ConvMixer
    from .zoo import InputSpec

METADATA = "ppconvmixer"
OPSET = 17  # read by ONNX Runtime 1.13, OpenVINO 2023, TensorRT 8.6 and whatever came later


def to_onnx(
    model: ConvMixer,
    size: Optional[int] = None,
    pixels: Optional[InputSpec] = None,
    card: Optional[str] = None,
    bits: int = 32,
) -> bytes:
    """Return the serialised graph of ``model``, for inference.

    Args:
        size: height and width of the images; None leaves them open.
        pixels: put the normalisation of this input and a softmax into the graph.
        card: text to keep in the file's metadata, under ``METADATA``.
        bits: of the weights: 32; 16 for float16; 8 for whole numbers with a scale for every output, in the
            convolutions alone. The arithmetic is in float32: the engine widens them.

    Raises:
        UserError: the package ``onnx`` is missing, or the network is a variant that is no ConvMixer.
    """
    if not model.plain:
        raise UserError(
            "an ONNX graph is of ConvMixer itself, not of its variants (several kernel sizes, norm_first, residual); "
            "take the engine dygraph or inference, or paddle.jit.save"
        )
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError as error:
        raise UserError("an ONNX graph needs the package onnx; pip install onnx") from error

    graph = _Graph({name: value.astype("float32").numpy() for name, value in model.state_dict().items()}, bits)
    gelu = type(model.stem[1]).__name__ == "GELU"
    x = graph.mix(graph.pixels(pixels) if pixels else "images", "stem", gelu, strides=[model.patch_size] * 2)
    for i in range(len(model.blocks)):
        kernel = graph.arrays[f"blocks.{i}.0.fn.0.weight"].shape[-1]
        before = (kernel - 1) // 2
        pads = [before, before, kernel - 1 - before, kernel - 1 - before]
        mixed = graph.mix(x, f"blocks.{i}.0.fn", gelu, group=model.dim, pads=pads)
        x = graph.mix(graph.node("Add", mixed, x), f"blocks.{i}", gelu, first=1)
    x = graph.node("ReduceMean", x, axes=[2, 3], keepdims=0)
    if model.num_classes:
        x = graph.node("Gemm", x, graph.weight("head.weight"), graph.weight("head.bias"))
    if pixels:
        graph.node("Softmax", x, axis=1)
    output = graph.nodes[-1].output[0] = "probabilities" if pixels else "logits"
    sides = [size, size] if size else ["height", "width"]
    shape = ["n", *sides, model.in_chans] if pixels else ["n", model.in_chans, *sides]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8 if pixels else TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", model.num_classes or model.dim])
    proto = helper.make_graph(graph.nodes, "ConvMixer", [images], [result], graph.initializers)
    opset = helper.make_opsetid("", OPSET)
    result = helper.make_model(proto, opset_imports=[opset], ir_version=8, producer_name="ppconvmixer")
    if card is not None:
        helper.set_model_props(result, {METADATA: card})
    onnx.checker.check_model(result, full_check=True)
    return result.SerializeToString()


class _Graph:
    """Nodes and weights as they are added; every value has the name of what made it."""

    def __init__(self, arrays: dict[str, np.ndarray], bits: int):
        self.arrays, self.bits = arrays, bits
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def pixels(self, spec: InputSpec) -> str:
        """Add the way from uint8 ``images`` to the network's input: v / 255, minus the mean, by the deviation."""
        from onnx import TensorProto

        x = self.node("Transpose", self.node("Cast", "images", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
        mean, std = (255 * np.array(v, np.float64).reshape(3, 1, 1) for v in (spec.mean, spec.std))
        x = self.node("Sub", x, self._initializer("mean", mean.astype(np.float32)))
        return self.node("Div", x, self._initializer("std", std.astype(np.float32)))

    def mix(self, x: str, prefix: str, gelu: bool, first: int = 0, **attributes: Any) -> str:
        """Add a convolution, the activation and the batch norm, which stand at ``first`` + 0, 1, 2 below ``prefix``."""
        conv, norm = f"{prefix}.{first}", f"{prefix}.{first + 2}"
        z = self.node("Conv", x, self.weight(f"{conv}.weight"), self.weight(f"{conv}.bias"), **attributes)
        statistics = [self.weight(f"{norm}.{leaf}") for leaf in ("weight", "bias", "_mean", "_variance")]
        return self.node(
            "BatchNormalization", self.gelu(z) if gelu else self.node("Relu", z), *statistics, epsilon=1e-5
        )

    def gelu(self, z: str) -> str:
        """Add z / 2 (1 + erf(z / sqrt 2)), the form that runtimes know and fuse; the operator Gelu came later."""
        erf = self.node("Erf", self.node("Div", z, self._constant("sqrt2", math.sqrt(2))))
        product = self.node("Mul", z, self.node("Add", erf, self._constant("one", 1.0)))
        return self.node("Mul", product, self._constant("half", 0.5))

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its value."""
        from onnx import helper

        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name: str) -> str:
        """Add a weight and return the name of its value."""
        from onnx import TensorProto

        value = self.arrays[name]
        if self.bits == 32 or value.ndim == 1:
            return self._initializer(name, value)
        if self.bits == 16:
            return self.node("Cast", self._initializer(name, value.astype(np.float16)), to=TensorProto.FLOAT)
        if name.startswith("head."):  # ONNX Runtime would bring what it is multiplied with to 8 bits too
            return self._initializer(name, value)
        scale = np.abs(value).max(axis=(1, 2, 3), keepdims=True) / 127
        whole = np.rint(value / np.where(scale, scale, 1)).astype(np.int8)
        scales = self._initializer(f"{name}.scale", scale.reshape(-1))
        zero = self._initializer(f"{name}.zero", np.zeros(scale.size, np.int8))
        return self.node("DequantizeLinear", self._initializer(name, whole), scales, zero, axis=0)

    def _constant(self, name: str, value: float) -> str:
        return self._initializer(name, np.array(value, np.float32))

    def _initializer(self, name: str, value: np.ndarray) -> str:
        from onnx import numpy_helper

        if all(known.name != name for known in self.initializers):
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name))
        return name
