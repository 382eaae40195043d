"""Ways to run a network: a batch goes in, logits come out.

All but the dynamic graph run a static graph of the network. It is made on first use and kept in the
cache under the digest of its content, so that the next start does without.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import download
from .errors import UserError, unknown
from .files import atomic_write
from .onnx_file import to_onnx
from .threads import threads

if TYPE_CHECKING:
    from .model import ConvMixer

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
    """Paddle Inference with oneDNN, on the CPU."""

    name = "inference"

    def __init__(self, model: ConvMixer):
        import paddle
        from paddle import inference

        self.num_classes = model.num_classes
        folder = _cached(model, f"paddle-{paddle.__version__}", _save_static)
        (program,) = (path for path in folder.iterdir() if path.suffix in (".json", ".pdmodel"))
        config = inference.Config(str(program), str(folder / "graph.pdiparams"))
        config.disable_gpu()
        config.enable_mkldnn()
        config.set_cpu_math_library_num_threads(threads())
        config.disable_glog_info()
        self.predictor = inference.create_predictor(config)
        self.input = self.predictor.get_input_handle(self.predictor.get_input_names()[0])
        self.output = self.predictor.get_output_handle(self.predictor.get_output_names()[0])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return float32 logits (N, classes) for float32 images (N, C, H, W)."""
        self.input.copy_from_cpu(np.ascontiguousarray(images))
        self.predictor.run()
        return self.output.copy_to_cpu()


class OnnxRuntime:
    """ONNX Runtime, on the CPU."""

    name = "onnxruntime"

    def __init__(self, model: ConvMixer):
        onnxruntime = _package("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        self.num_classes = model.num_classes
        path = _cached(model, "onnx", _save_onnx) / "graph.onnx"
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return float32 logits (N, classes) for float32 images (N, C, H, W)."""
        return self.session.run(None, {"images": images})[0]


class OpenVino:
    """OpenVINO, on the CPU, in float32."""

    name = "openvino"

    def __init__(self, model: ConvMixer):
        openvino = _package("openvino")
        self.num_classes = model.num_classes
        path = _cached(model, "onnx", _save_onnx) / "graph.onnx"
        settings = {
            "INFERENCE_NUM_THREADS": threads(),
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.compiled = openvino.Core().compile_model(str(path), "CPU", settings)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return float32 logits (N, classes) for float32 images (N, C, H, W)."""
        return self.compiled(images)[0]


class Operator:
    """Our own operator, on the CPU, its weights prepared once."""

    name = "operator"

    def __init__(self, model: ConvMixer):
        from .ops import mixer

        if not mixer.known(model):
            raise UserError(
                "the engine operator needs a C++ compiler and an unchanged float32 network; take --engine auto"
            )
        self.num_classes = model.num_classes
        self.network, self.head = mixer.Prepared(model), copy.deepcopy(model.head)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return float32 logits (N, classes) for float32 images (N, C, H, W)."""
        import paddle

        with paddle.no_grad():
            return self.head(paddle.to_tensor(self.network(images, pooled=True))).numpy()


ENGINES: dict[str, Callable[[Any], Any]] = {e.name: e for e in (Dygraph, Operator, Inference, OnnxRuntime, OpenVino)}


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


def fastest(model: ConvMixer) -> str:
    """Return the name of the engine that ``auto`` stands for here; docs/performance.md has the measurements."""
    import paddle

    from .ops import mixer

    if paddle.get_device() != "cpu":
        return "dygraph"
    return "operator" if mixer.known(model) else "inference"


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _package(name: str) -> Any:
    if not (_installed(name) and _installed("onnx")):
        raise UserError(f"the engine {name} needs two packages; pip install {name} onnx, or take --engine auto")
    return importlib.import_module(name)


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
    import paddle

    training = model.training
    model.eval()
    try:
        images = paddle.static.InputSpec([None, model.in_chans, None, None], "float32", "images")
        paddle.jit.save(model, str(folder / "graph"), input_spec=[images])
    finally:
        if training:
            model.train()


def _save_onnx(model: ConvMixer, folder: Path) -> None:
    with atomic_write(folder / "graph.onnx") as stream:
        stream.write(to_onnx(model))
