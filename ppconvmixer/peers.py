"""What the benchmark runs: a task on a network, by us, by stock Paddle, and by what a user would take instead.

A contender is a function of the workload that returns a step to repeat, which in turn returns what all
contenders must agree on: the logits, the loss, or nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from . import layouts
from .errors import UserError
from .threads import threads
from .zoo import Variant

Step = Callable[[], Optional[np.ndarray]]
PARTS = ("inference", "training", "augmentation", "data", "eval", "scaling")
"""The tasks, and ``scaling``, which is inference of one network as its shape changes."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """Something to do.

    Args:
        task: one of ``CONTENDERS``.
        name: what to call the network.
        variant: its shape and input.
        batch: pictures a step.
    """

    task: str
    name: str
    variant: Variant
    batch: int

    @property
    def pictures(self) -> int:
        """Pictures of one step as the contenders take it: a batch, or a data set."""
        return FILES if self.task in ("data", "eval") else self.batch

    def images(self) -> np.ndarray:
        """Return the input, float32 (batch, 3, size, size)."""
        size = self.variant.input.size
        return np.random.default_rng(1).standard_normal((self.batch, 3, size, size), np.float32)

    def labels(self) -> np.ndarray:
        """Return int64 (batch,)."""
        return np.random.default_rng(2).integers(0, self.variant.num_classes, self.batch)

    def weights(self) -> dict[str, np.ndarray]:
        """Return weights under our names, drawn like a fresh network's, without Paddle: its memory would count."""
        v, rng = self.variant, np.random.default_rng(0)

        def uniform(fan_in: int, *shape: int) -> np.ndarray:
            bound = 1 / np.sqrt(fan_in)
            return rng.uniform(-bound, bound, shape).astype(np.float32)

        def half(conv: str, norm: str, inputs: int, kernel: int) -> Iterator[tuple[str, np.ndarray]]:
            fan_in = inputs * kernel**2
            yield f"{conv}.weight", uniform(fan_in, v.dim, inputs, kernel, kernel)
            yield f"{conv}.bias", uniform(fan_in, v.dim)
            for name, value in (("weight", 1), ("bias", 0), ("_mean", 0), ("_variance", 1)):
                yield f"{norm}.{name}", np.full(v.dim, value, np.float32)

        state = dict(half("stem.0", "stem.2", 3, v.patch_size))
        for i in range(v.depth):
            state.update(half(f"blocks.{i}.0.fn.0", f"blocks.{i}.0.fn.2", 1, v.kernel_size))
            state.update(half(f"blocks.{i}.1", f"blocks.{i}.3", v.dim, 1))
        head = {"weight": uniform(v.dim, v.dim, v.num_classes), "bias": uniform(v.dim, v.num_classes)}
        return {**state, **{f"head.{name}": value for name, value in head.items()}}


# --- Paddle and we ----------------------------------------------------------------------------------


def _network(workload: Workload) -> Any:
    from .model import ConvMixer

    shape = dataclasses.asdict(workload.variant)
    del shape["input"]
    model = ConvMixer(**shape)
    model.set_state_dict(workload.weights())
    return model


def _layers(model: Any) -> Callable[[Any], Any]:
    """Return ``model`` as Paddle's own operators compute it."""
    return lambda x: model.forward_head(model.blocks(model.stem(x)))


def _engine(name: str) -> Callable[[Workload], Step]:
    def make(workload: Workload) -> Step:
        from .engines import create_engine

        engine, images = create_engine(name, _network(workload)), workload.images()
        return lambda: engine(images)

    return make


def _as_it_comes() -> None:
    """Take back what `ops.rewrite` says to Paddle's MKL when it is imported."""
    said = "MKL_DEBUG_CPU_TYPE" in os.environ
    from .ops import rewrite  # noqa: F401

    if not said:
        os.environ.pop("MKL_DEBUG_CPU_TYPE", None)


def _stock_inference(workload: Workload) -> Step:
    import paddle

    _as_it_comes()
    model, images = _network(workload), workload.images()
    model.eval()
    call = _layers(model)

    def step() -> np.ndarray:
        with paddle.no_grad():
            return call(paddle.to_tensor(images)).numpy()

    return step


def _paddle_training(workload: Workload, call: Callable[[Any], Callable[[Any], Any]] = lambda model: model) -> Step:
    import paddle

    model = _network(workload)
    model.train()
    network = call(model)
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=model.parameters(), weight_decay=0.01)
    images, labels = paddle.to_tensor(workload.images()), paddle.to_tensor(workload.labels())

    def step() -> np.ndarray:
        loss = paddle.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        return loss.numpy()

    return step


def _stock_training(workload: Workload) -> Step:
    _as_it_comes()
    return _paddle_training(workload, _layers)


def _without_operator(workload: Workload) -> Step:
    os.environ["PPCONVMIXER_OPS"] = "0"
    return _paddle_training(workload)


# --- torch ------------------------------------------------------------------------------------------


def _torch_network(workload: Workload, channels_last: bool) -> tuple[Any, Any]:
    """Return the network and its input in torch."""
    import torch
    from torch import nn

    torch.set_num_threads(threads())
    v = workload.variant
    act = {"gelu": nn.GELU, "relu": nn.ReLU}[v.act]

    class Residual(nn.Module):
        def __init__(self, fn: nn.Module):
            super().__init__()
            self.fn = fn

        def forward(self, x: Any) -> Any:
            return self.fn(x) + x

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()

            def half(*shape: Any, **settings: Any) -> tuple[nn.Module, ...]:
                return nn.Conv2d(*shape, **settings), act(), nn.BatchNorm2d(v.dim)

            mixer = {"groups": v.dim, "padding": "same"}
            self.stem = nn.Sequential(*half(3, v.dim, v.patch_size, stride=v.patch_size))
            self.blocks = nn.Sequential(
                *[
                    nn.Sequential(
                        Residual(nn.Sequential(*half(v.dim, v.dim, v.kernel_size, **mixer))), *half(v.dim, v.dim, 1)
                    )
                    for _ in range(v.depth)
                ]
            )
            self.head = nn.Linear(v.dim, v.num_classes)

        def forward(self, x: Any) -> Any:
            return self.head(self.blocks(self.stem(x)).mean((2, 3)))

    network = Network()
    state = layouts.from_ours(workload.weights(), "timm", "torch")
    network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    form = torch.channels_last if channels_last else torch.contiguous_format
    return network.to(memory_format=form), torch.from_numpy(workload.images()).to(memory_format=form)


def _torch_inference(compiled: bool = False, channels_last: bool = False) -> Callable[[Workload], Step]:
    def make(workload: Workload) -> Step:
        import torch

        network, images = _torch_network(workload, channels_last)
        network.eval()
        if compiled:
            import torch._inductor.config as inductor

            inductor.freezing = True
            network = torch.compile(network)

        def step() -> np.ndarray:
            with torch.no_grad():
                return network(images).numpy()

        return step

    return make


def _torch_training(compiled: bool = False, channels_last: bool = False) -> Callable[[Workload], Step]:
    def make(workload: Workload) -> Step:
        import torch

        network, images = _torch_network(workload, channels_last)
        optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.01, fused=True)
        labels = torch.from_numpy(workload.labels())
        call = torch.compile(network) if compiled else network

        def step() -> np.ndarray:
            loss = torch.nn.functional.cross_entropy(call(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach().numpy()

        return step

    return make


# --- pictures ---------------------------------------------------------------------------------------

FILES = 64


@contextlib.contextmanager
def _folder(size: tuple[int, int] = (500, 375)) -> Iterator[Path]:
    """Make JPEGs of ImageNet's usual size, about 100 kB each, from the two photographs of scikit-learn."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="ppconvmixer-") as folder:
        for i in range(FILES):
            picture = photographs[i % 2]
            left, top = (int(rng.integers(0, room + 1)) for room in np.subtract(picture.size, size))
            data = io.BytesIO()
            picture.crop((left, top, left + size[0], top + size[1])).save(data, "JPEG", quality=95)
            path = Path(folder) / f"class {i % 4}" / f"{i}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data.getvalue())
        yield Path(folder)


def _samples(folder: Path, workload: Workload, backend: str) -> Any:
    from . import datasets, sources
    from .loader import Samples
    from .transforms import eval_transform

    spec = workload.variant.input
    pictures = datasets.from_folders(sources.open_source(folder))
    return Samples(pictures, eval_transform(spec, backend))


def _reading(backend: str, workers: int) -> Callable[[Workload], Step]:
    def make(workload: Workload) -> Step:
        from .loader import batches

        folder = _kept(_folder())
        samples = _samples(folder, workload, backend)

        def step() -> None:
            for _ in batches(samples, range(len(samples)), workload.batch, workers):
                pass

        return step

    return make


def _augmenting(**settings: Any) -> Callable[[Workload], Step]:
    """Training pictures of the network's size, which are kept decoded, in this process alone."""

    def make(workload: Workload) -> Step:
        from . import datasets, sources
        from .augment import Augment
        from .loader import Kept, Samples
        from .transforms import train_transform

        spec, epoch = workload.variant.input, itertools.count()
        pictures = datasets.from_folders(sources.open_source(_kept(_folder((spec.size, spec.size)))))
        samples = Samples(pictures, train_transform(spec, Augment(**settings)), seed=0, kept=Kept(len(pictures)))
        images = np.empty((workload.batch, 3, spec.size, spec.size), np.float32)

        def step() -> None:
            samples.fill(images, np.arange(workload.batch) % FILES, next(epoch))

        return step

    return make


def _paddle_reading(workers: int) -> Callable[[Workload], Step]:
    """What Paddle itself offers: its folder data set, its transforms and its loader."""

    def make(workload: Workload) -> Step:
        import paddle
        from paddle.vision import datasets, transforms

        spec = workload.variant.input
        mean, std = ([255 * x for x in value] for value in (spec.mean, spec.std))
        transform = transforms.Compose(
            [
                transforms.Resize(int(spec.size / spec.crop_pct), spec.interpolation),
                transforms.CenterCrop(spec.size),
                transforms.Normalize(mean, std, data_format="HWC"),
                transforms.Transpose(),
            ]
        )
        data = datasets.DatasetFolder(str(_kept(_folder())), transform=transform)
        loader = paddle.io.DataLoader(data, batch_size=workload.batch, num_workers=workers)

        def step() -> None:
            for _ in loader:
                pass

        return step

    return make


def _engine_alone(workload: Workload) -> Step:
    from .engines import create_engine

    engine, images = create_engine("auto", _network(workload)), workload.images()

    def step() -> None:
        for start in range(0, FILES, workload.batch):
            engine(images[: FILES - start])

    return step


def _evaluation(workers: int) -> Callable[[Workload], Step]:
    def make(workload: Workload) -> Step:
        from .engines import create_engine
        from .evaluate import evaluate

        engine = create_engine("auto", _network(workload))
        samples = _samples(_kept(_folder()), workload, "pil")

        def step() -> None:
            evaluate(engine, samples, workload.batch, workers)

        return step

    return make


_open = contextlib.ExitStack()
"""Folders of this process, which end with it."""


def _kept(context: Any) -> Path:
    import atexit

    atexit.register(_open.close)
    return _open.enter_context(context)


OURS = "ppconvmixer"
STOCK = "Paddle dynamic graph"
WITHOUT = "ppconvmixer without operator"
PADDLE = (OURS, STOCK, WITHOUT, "Paddle Inference")
"""Contenders that need no package but Paddle; all others are peers."""

CONTENDERS: Mapping[str, Mapping[str, Callable[[Workload], Step]]] = {
    "inference": {
        OURS: _engine("auto"),
        STOCK: _stock_inference,
        "Paddle Inference": _engine("inference"),
        "ONNX Runtime": _engine("onnxruntime"),
        "OpenVINO": _engine("openvino"),
        "torch eager": _torch_inference(),
        "torch channels_last": _torch_inference(channels_last=True),
        "torch compiled, freezing": _torch_inference(compiled=True),
    },
    "training": {
        OURS: _paddle_training,
        STOCK: _stock_training,
        WITHOUT: _without_operator,
        "torch eager": _torch_training(),
        "torch channels_last": _torch_training(channels_last=True),
        "torch compiled": _torch_training(compiled=True),
        "torch compiled, channels_last": _torch_training(compiled=True, channels_last=True),
    },
    "augmentation": {
        "none": _augmenting(),
        "flip": _augmenting(hflip=0.5),
        "flip, RandAugment n2-m12": _augmenting(hflip=0.5, randaugment="n2-m12"),
        "crop, flip, RandAugment rand-m9-mstd0.5-inc1, erasing": _augmenting(
            crop_scale=(0.75, 1.0),
            crop_ratio=(0.75, 4 / 3),
            hflip=0.5,
            randaugment="rand-m9-mstd0.5-inc1",
            erasing=0.25,
        ),
    },
    "data": {
        **{
            f"ppconvmixer {backend}, {workers} workers": _reading(backend, workers)
            for backend, workers in itertools.product(("pil", "cv2"), (0, 1, 2))
        },
        **{f"paddle.io.DataLoader, {workers} workers": _paddle_reading(workers) for workers in (0, 2)},
    },
    "eval": {
        "engine alone": _engine_alone,
        "eval": _evaluation(2),  # the command's own number of workers
    },
}


def missing(contender: str) -> Optional[str]:
    """Return the package that ``contender`` lacks here, if any."""
    import importlib.util

    needs = {"torch": ("torch",), "ONNX": ("onnx", "onnxruntime"), "OpenVINO": ("onnx", "openvino")}
    packages = needs.get(contender.split()[0], ())
    return next((name for name in packages if importlib.util.find_spec(name) is None), None)


def make(workload: Workload, contender: str) -> Step:
    """Return the step of ``contender``; call it in a process of its own.

    Raises:
        UserError: there is no such contender for this task, or its package is missing.
    """
    known = CONTENDERS[workload.task]
    if contender not in known:
        raise UserError(f"no contender {contender!r} for {workload.task}; known: {', '.join(known)}")
    package = missing(contender)
    if package:
        raise UserError(f"{contender} needs the package {package}; pip install 'ppconvmixer[peers]'")
    return known[contender](workload)
