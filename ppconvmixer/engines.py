"""Ways to run a network: a batch goes in, logits come out.

Some run a model, the others a static graph in a file. Of a model, that file is made on first use and kept in
the cache under the digest of its content, so that the next start does without.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from . import download, processor, signal_stack
from .errors import UserError, said, unknown
from .files import atomic_write
from .onnx_file import to_onnx
from .threads import threads

if TYPE_CHECKING:
    from .model import ConvMixer

logger = logging.getLogger("ppconvmixer")

KEPT = 4  # graphs in the cache; the largest takes 0.2 GB, and one that is missing is made in seconds


class Dygraph:
    """Paddle's dynamic graph, on the GPU where there is one."""

    name = "dygraph"

    def __init__(self, model: ConvMixer, amp: str = "O0"):
        self.model, self.num_classes, self.amp = model, model.num_classes, amp

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return float32 logits (N, classes) for float32 images (N, C, H, W)."""
        import paddle

        training = self.model.training
        self.model.eval()
        try:
            with paddle.no_grad(), paddle.amp.auto_cast(enable=self.amp != "O0", level=self.amp):
                return self.model(paddle.to_tensor(images)).astype("float32").numpy()
        finally:
            if training:
                self.model.train()


class Inference:
    """Paddle Inference with oneDNN, on the CPU; it runs a ``.json`` or ``.pdmodel`` file and its ``.pdiparams``."""

    name = "inference"

    def __init__(self, program: Path, num_classes: int):
        import paddle
        from paddle import inference

        weights = program.with_suffix(".pdiparams")
        if not weights.is_file():  # without it, Paddle 3 computes with whatever is in the memory
            raise UserError(f"there is no file {weights}, which holds the weights of {program}; the two go together")
        if program.suffix == ".json" and program_suffix() != ".json":  # which would crash
            raise UserError(
                f"{program} is of Paddle 3, and this is {paddle.__version__}; export the network anew with it"
            )
        self.num_classes = num_classes
        config = inference.Config(str(program), str(weights))
        config.disable_gpu()
        config.enable_mkldnn()
        config.set_cpu_math_library_num_threads(threads())
        config.disable_glog_info()
        self.predictor = inference.create_predictor(config)
        self.input = self.predictor.get_input_handle(self.predictor.get_input_names()[0])
        self.output = self.predictor.get_output_handle(self.predictor.get_output_names()[0])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return float32 (N, classes) for whatever images the graph takes."""
        self.input.copy_from_cpu(np.ascontiguousarray(images))
        self.predictor.run()
        return self.output.copy_to_cpu()


class OnnxRuntime:
    """ONNX Runtime, on the CPU, or with the package onnxruntime-gpu on a GPU; it runs a ``.onnx`` file."""

    name = package = "onnxruntime"

    def __init__(self, graph: Path, num_classes: int):
        onnxruntime = _package("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        self.num_classes = num_classes
        providers: list[Any] = ["CPUExecutionProvider"]
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            if hasattr(onnxruntime, "preload_dlls"):  # from 1.21 on
                onnxruntime.preload_dlls()  # CUDA's libraries, where they are packages of Python
            providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0"}))  # with significands of 11 bits
        self.session = onnxruntime.InferenceSession(str(graph), options, providers=providers)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return float32 (N, classes) for whatever images the graph takes."""
        return self.session.run(None, {"images": images})[0]


class OpenVino:
    """OpenVINO, on the CPU; it runs a ``.xml`` file and its ``.bin``, or a ``.onnx`` file."""

    name, package, precision = "openvino", "openvino", "f32"

    def __init__(self, graph: Path, num_classes: int):
        openvino = _package("openvino")
        self.num_classes = num_classes
        settings = {
            "INFERENCE_NUM_THREADS": threads(),
            "INFERENCE_PRECISION_HINT": self.precision,
            "PERFORMANCE_HINT": "LATENCY",
        }
        with signal_stack.kept():
            self.compiled = openvino.Core().compile_model(str(graph), "CPU", settings)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return float32 (N, classes) for whatever images the graph takes."""
        return self.compiled(images)[0]


class OpenVinoBf16(OpenVino):
    """OpenVINO, on the CPU, in bfloat16: float32 with a significand of 8 bits."""

    name, precision = "openvino-bf16", "bf16"

    def __init__(self, graph: Path, num_classes: int):
        if not bfloat16_is_fast():
            raise UserError("this processor has no bfloat16; take the engine openvino")
        super().__init__(graph, num_classes)


class Operator:
    """Our own operator, on the CPU, its weights prepared once."""

    name = "operator"
    eight = False

    def __init__(self, model: ConvMixer):
        from .ops import mixer

        if not mixer.known(model):
            raise UserError(
                f"the engine {self.name} needs a C++ compiler and an unchanged float32 ConvMixer; take --engine auto"
            )
        if self.eight and not mixer.eight_is_fast():
            logger.warning("this processor has no dot product of bytes (AVX-512 VNNI); the engine int8 is slow on it")
        self.num_classes = model.num_classes
        self.network, self.head = mixer.Prepared(model, self.eight), copy.deepcopy(model.head)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return float32 logits (N, classes) for float32 images (N, C, H, W)."""
        import paddle

        with paddle.no_grad():
            return self.head(paddle.to_tensor(self.network(images, pooled=True))).numpy()


class Int8(Operator):
    """Our own operator, with the matrices of the pointwise convolutions multiplied in 8 bits."""

    name = "int8"
    eight = True


def _of_paddle(model: ConvMixer) -> Inference:
    import paddle

    folder = _cached(model, f"paddle-{paddle.__version__}", _save_static)
    (program,) = (path for path in folder.iterdir() if path.suffix in (".json", ".pdmodel"))
    return Inference(program, model.num_classes)


def _of_onnx(kind: Callable[[Path, int], Any]) -> Callable[[ConvMixer], Any]:
    def make(model: ConvMixer) -> Any:
        _package(kind.package)
        return kind(_cached(model, "onnx", _save_onnx) / "graph.onnx", model.num_classes)

    return make


ENGINES: dict[str, Callable[[Any], Any]] = {
    **{kind.name: kind for kind in (Dygraph, Operator, Int8)},
    Inference.name: _of_paddle,
    **{kind.name: _of_onnx(kind) for kind in (OnnxRuntime, OpenVino, OpenVinoBf16)},
}
"""How each engine is made for a model."""

GRAPHS = {
    **dict.fromkeys((".json", ".pdmodel"), (Inference,)),
    ".onnx": (OnnxRuntime, OpenVino, OpenVinoBf16),
    ".xml": (OpenVino, OpenVinoBf16),
}
"""Who runs a static graph, by the suffix of its file."""


def create_engine(name: str, model: ConvMixer) -> Any:
    """Return the engine ``name`` for ``model``.

    Args:
        name: one of ``ENGINES``, or ``auto``: the dynamic graph on a GPU; on a CPU our operator, or
            Paddle Inference where the operator cannot be had.

    Raises:
        UserError: unknown engine, or what it needs is missing.
    """
    if name == "auto":
        name = fastest(model)
    if name not in ENGINES:
        raise unknown("engine", name, ["auto", *ENGINES])
    return ENGINES[name](model)


def open_graph(name: str, graph: Path, num_classes: int) -> Any:
    """Return the engine ``name`` for a static graph in a file; ``auto`` is the first installed one that runs it.

    Raises:
        UserError: unknown engine, one that does not run such a file, a missing package, or no graph it can read.
    """
    if name not in ("auto", *ENGINES):
        raise unknown("engine", name, ["auto", *ENGINES])
    kinds = {kind.name: kind for kind in GRAPHS[graph.suffix]}
    if name != "auto" and name not in kinds:
        raise UserError(f"the engine {name} does not run {graph}; take {' or '.join(kinds)}")
    try:
        return kinds[runners(graph)[0] if name == "auto" else name](graph, num_classes)
    except UserError:
        raise
    except Exception as error:  # each engine has exceptions of its own
        raise UserError(f"cannot read the graph {graph}: {said(error)}") from error


def runners(graph: Path) -> list[str]:
    """Return the names of the installed engines that run a static graph in its own precision.

    Raises:
        UserError: there is none.
    """
    names = [kind.name for kind in GRAPHS[graph.suffix] if kind is not OpenVinoBf16]
    found = [name for name in names if name == Inference.name or _installed(name)]
    if not found:
        raise UserError(f"nothing here runs {graph.name}; pip install {' or '.join(names)}")
    return found


def fastest(model: ConvMixer) -> str:
    """Return the name of the engine that ``auto`` stands for here; docs/performance.md has the measurements."""
    import paddle

    from .ops import mixer

    if paddle.get_device() != "cpu":
        return "dygraph"
    return "operator" if mixer.known(model) else "inference"


def bfloat16_is_fast() -> bool:
    """Tell whether the processor multiplies bfloat16."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(processor.described().split()))


def int8_is_fast(model: ConvMixer) -> bool:
    """Tell whether the engine int8 runs ``model``, and faster than in float32."""
    from .ops import mixer

    return mixer.known(model) and mixer.eight_is_fast()


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _package(name: str) -> Any:
    if not (_installed(name) and _installed("onnx")):
        raise UserError(f"the engine {name} needs two packages; pip install {name} onnx, or take --engine auto")
    send_no_statistics()
    return importlib.import_module(name)


def send_no_statistics() -> None:
    """Keep OpenVINO and NNCF, once imported, from telling their makers of their use and from writing to ``~/intel``.

    They do without the package that would, and have no setting for it but a file in the user's home.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # whoever imports it is told that it is missing


def _cached(model: ConvMixer, kind: str, save: Callable[[ConvMixer, Path], None]) -> Path:
    """Return the folder of the static graph of ``model``; ``save`` writes it where it is not in the cache yet."""
    import filelock

    graphs = download.home() / "graphs"
    folder = graphs / f"{kind}-{_digest(model)}"
    try:
        graphs.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(graphs / ".lock"):  # several processes make it once
            if folder.is_dir():
                os.utime(folder)
                return folder
            for old in sorted(graphs.glob("*-*"), key=os.path.getmtime)[: 1 - KEPT]:
                shutil.rmtree(old)
            with tempfile.TemporaryDirectory(prefix=".", dir=graphs) as temporary:
                made = Path(temporary) / "graph"
                made.mkdir()
                save(model, made)
                made.rename(folder)
            return folder
    except OSError as error:
        raise UserError(
            f"cannot keep the graph in {graphs}: {error.strerror or error}; "
            "set PPCONVMIXER_HOME to a folder with room, or take --engine dygraph"
        ) from error


def _digest(model: ConvMixer) -> str:
    """Return a digest of everything that makes the graph: structure, weights and the version that writes it."""
    from . import __version__

    digest = hashlib.sha256(f"{__version__} {model}".encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.numpy()))
    return digest.hexdigest()[:32]


def _save_static(model: ConvMixer, folder: Path) -> None:
    to_static(model, folder / "graph", [None, model.in_chans, None, None], "float32")


def program_suffix() -> str:
    """Return the suffix of the static graphs that the installed Paddle writes."""
    import paddle

    return ".pdmodel" if paddle.__version__.startswith("2.") else ".json"


def to_static(layer: Any, prefix: Path, shape: list[Optional[int]], dtype: str) -> None:
    """Write a layer's static graph, for inference, to the files ``prefix`` with Paddle's suffixes."""
    import paddle

    layer = copy.deepcopy(layer)  # Paddle 2.6 leaves code for graphs in it, which does not always run without one
    layer.eval()
    paddle.jit.save(layer, str(prefix), input_spec=[paddle.static.InputSpec(shape, dtype, "images")])


def _save_onnx(model: ConvMixer, folder: Path) -> None:
    with atomic_write(folder / "graph.onnx") as stream:
        stream.write(to_onnx(model))
