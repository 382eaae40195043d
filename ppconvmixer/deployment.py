"""One checkpoint in many forms, measured: float32, fewer bits, fewer channels, fewer weights."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional, Union

import numpy as np

from . import benchmark, card, export, prune, run_folder, run_state, zoo
from .engines import bfloat16_is_fast, int8_is_fast, runners
from .errors import UserError
from .evaluate import evaluate
from .exported import Exported, is_graph
from .loader import Samples
from .recipe import Finetune, Recipe, Schedule, load
from .trained import Trained

logger = logging.getLogger("ppconvmixer")

WIDTHS = (0.875, 0.75, 0.5)
SPARSITIES = (0.3, 0.5, 0.7, 0.9)
VECTOR = 16  # channels that a processor with AVX-512 takes at once: a narrow form has whole vectors of them
FIT = 256  # pictures that channels are fitted on


@dataclasses.dataclass(frozen=True)
class Form:
    """A network in a file, as an engine runs it.

    Args:
        kind: float32, bfloat16, int8, narrow or sparse.
        name: what to call it.
        model: name in the zoo.
        path: checkpoint or exported file.
        engine: who runs it.
        share: of a narrow form, of the width; of a sparse one, of the weights that are 0.
        tuned: whether it was trained on after pruning.
    """

    kind: str
    name: str
    model: str
    path: Path
    engine: str
    share: Optional[float] = None
    tuned: bool = False

    def network(self) -> Union[Trained, Exported]:
        """Return what the file holds."""
        return Exported(self.path) if is_graph(str(self.path)) else Trained(self.path, self.model)


@dataclasses.dataclass(frozen=True)
class Material:
    """What the forms are made from and judged by.

    Args:
        network: the checkpoint.
        images: of the kind the network is used for, to find ranges and fit channels on; none of those it is judged by.
        samples: what it is judged by.
        train: ``(checkpoint, name in the zoo, keep zeros, folder) -> trained checkpoint``; None trains nothing.
    """

    network: Trained
    images: np.ndarray
    samples: Samples
    train: Optional[Callable[[Path, str, bool, Path], Path]] = None


def measure(material: Material, folder: Path, rounds: int = 5) -> list[dict[str, Any]]:
    """Make the forms in ``folder``, and return the figures of each; the first is float32, by the usual engine.

    ``agreement`` is the share of the pictures with the most likely class of the first form. Speed and memory are
    measured in turn, every form in a process of its own; where the system does not tell, the memory is None.

    Raises:
        UserError: something cannot be made, written or run.
    """
    forms = list(make(material, folder))
    judged: list[dict[str, Any]] = []
    first: Optional[np.ndarray] = None
    for form in forms:
        network = form.network()
        engine = network.engine(form.engine)
        found = evaluate(engine, material.samples, 64, 2)
        first = found.classes[:, 0] if first is None else first
        metrics = found.metrics()
        logger.info("%s: top-1 %.2f %%", form.name, 100 * metrics["top1"])
        judged.append(
            {
                "kind": form.kind,
                "form": form.name,
                "engine": engine.name,
                "share": form.share,
                "tuned": form.tuned,
                **{key: metrics[key] for key in ("samples", "top1", "top5", "loss")},
                "agreement": float((found.classes[:, 0] == first).mean()),
                **_size(form, network),
            }
        )
    fast = [form for form in forms if form.kind != "sparse"]  # zeros are multiplied like any number
    for key, batch in (("latency", 1), ("throughput", 32)):
        logger.info("timing %d forms in turn, %d rounds, batch %d", len(fast), rounds, batch)
        makes = {form.name: functools.partial(_step, form, batch) for form in fast}
        timings = {timing.contender: timing for timing in benchmark.race(makes, batch, rounds)}
        for figures in judged:
            timing = timings.get(figures["form"])
            if key == "latency":
                figures["latency_ms"] = timing and 1000 / timing.images_per_second
            else:
                figures["images_per_second"] = timing and timing.images_per_second
                figures["peak_mb"] = timing and timing.peak_mb
    return judged


def make(material: Material, folder: Path) -> Iterator[Form]:
    """Write the forms into ``folder`` and yield them; those that nothing here runs are left out, and said."""
    network = material.network
    weights, model = Path(network.path), network.name
    yield Form("float32", "float32", model, weights, "auto")
    graphs = {"onnx": folder / "float32.onnx", "openvino": folder / "float32.xml"}
    kinds = {"onnx": ("ONNX Runtime", "onnxruntime"), "openvino": ("OpenVINO", "openvino")}
    there = [
        form
        for form, (label, engine) in kinds.items()
        if _made(network, graphs[form], export.Form(form)) and _runs(graphs[form], engine, label)
    ]
    for form in there:
        label, engine = kinds[form]
        yield Form("float32", f"float32, {label}", model, graphs[form], engine)
    if "openvino" in there and bfloat16_is_fast():
        yield Form("bfloat16", "bfloat16, OpenVINO", model, graphs["openvino"], "openvino-bf16")
    if int8_is_fast(network.create()):
        yield Form("int8", "int8", model, weights, "int8")
    for form in there:
        label, engine = kinds[form]
        for name, images in (("weights in 8 bits", None), ("int8 calibrated", material.images)):
            path = graphs[form].with_name(f"{name.replace(' ', '-')}{graphs[form].suffix}")
            if _made(network, path, export.Form(form, bits=8), images):
                yield Form("int8", f"{name}, {label}", model, path, engine)
    yield from _narrow(material, folder)
    yield from _sparse(material, folder)


def _narrow(material: Material, folder: Path) -> Iterator[Form]:
    network, shape = material.network, zoo.variant(material.network.name)
    widths = (round(share * shape.dim / VECTOR) * VECTOR or VECTOR for share in WIDTHS)
    for dim in dict.fromkeys(dim for dim in widths if dim < shape.dim):
        name = zoo.spelled(dataclasses.replace(shape, dim=dim))
        path = folder / f"narrow-{dim}.pdparams"
        model = prune.narrow(network.create(), dim, material.images[:FIT])
        prune.write(path, run_state.to_arrays(model.state_dict()), name, network)
        yield Form("narrow", f"{dim} channels", name, path, "auto", dim / shape.dim)
        if material.train:
            path = material.train(path, name, False, folder / path.stem)
            yield Form("narrow", f"{dim} channels, trained on", name, path, "auto", dim / shape.dim, True)


def _sparse(material: Material, folder: Path) -> Iterator[Form]:
    network = material.network
    state = run_state.to_arrays(network.create().state_dict())
    for share in SPARSITIES:
        path = folder / f"sparse-{round(100 * share)}.pdparams"
        prune.write(path, prune.sparsify(state, share), network.name, network)
        yield Form("sparse", f"{share:.0%} zeros", network.name, path, "auto", share)
        if material.train:
            path = material.train(path, network.name, True, folder / path.stem)
            yield Form("sparse", f"{share:.0%} zeros, trained on", network.name, path, "auto", share, True)


def _made(network: Trained, path: Path, form: export.Form, images: Optional[np.ndarray] = None) -> bool:
    """Export, and tell whether it could be done; a missing package, or a failure of somebody else's, is said."""
    try:
        export.export(network, path, form, images)
        return True
    except UserError as error:
        logger.warning("left out: %s", error)
        return False


def _runs(graph: Path, engine: str, label: str) -> bool:
    """Tell whether an engine is installed; a graph is verified by whatever runs it here."""
    if engine in runners(graph):
        return True
    logger.warning("left out: what %s runs; pip install %s", label, engine)
    return False


def _size(form: Form, network: Union[Trained, Exported]) -> dict[str, Any]:
    """Return bytes on the disk, parameters, those that are not 0, and multiply-accumulates of a picture."""
    files = export.files(form.path) if is_graph(str(form.path)) else [form.path]
    shape = dataclasses.replace(zoo.variant(network.name), num_classes=network.num_classes, input=network.input)
    zeros = prune.sparsity(network.translation.state) if form.kind == "sparse" else 0.0
    return {
        "bytes": sum(path.stat().st_size for path in files if not path.name.endswith(".card.json")),
        **{"parameters": shape.parameters(), "sparsity": zeros, "macs": shape.macs()},
    }


def trained_on(recipe: Recipe, epochs: int) -> Callable[[Path, str, bool, Path], Path]:
    """Return what trains a pruned network on: a recipe's data and augmentation, a tenth of its rate, falling to 0.

    The input is that of the checkpoint, by which the network is judged, whatever the recipe's is.
    A run that is there already is taken as it is, and one that was cut off goes on; a run of other settings or pictures
    is replaced.
    """

    def train(path: Path, name: str, keep_zeros: bool, folder: Path) -> Path:
        from .finetune import finetune

        average = None if keep_zeros and recipe.train.amp == "O2" else recipe.train.ema  # see ``Recipe``
        tuned = dataclasses.replace(
            recipe,
            model=dataclasses.replace(recipe.model, name=name, weights=str(path)),
            optimizer=dataclasses.replace(recipe.optimizer, lr=recipe.optimizer.lr / 10),
            schedule=Schedule("cosine"),
            input=card.read(path).input,
            finetune=Finetune(keep_zeros=keep_zeros),
            distill=None,
            train=dataclasses.replace(
                recipe.train,
                epochs=epochs,
                phases=(),
                batch_size=recipe.phases()[-1].batch_size,
                ema=average,
                histograms=0,
            ),
        )
        same = _is_run_of(folder, tuned)
        if not (same and (folder / "result.json").exists()):
            finetune(tuned, folder, resume=same, overwrite=True)
        return folder / "last.pdparams"

    return train


def _is_run_of(folder: Path, recipe: Recipe) -> bool:
    """Tell whether ``folder`` holds a run of this recipe on the pictures that are there now."""
    from .finetune import open_data

    try:
        before = load(folder / "recipe.yaml")
        pictures = (folder / "pictures.csv").read_text("utf-8", "surrogateescape")
    except (OSError, ValueError):
        return False
    return not run_folder.changed_settings(before, recipe) and pictures == run_folder.listing(*open_data(recipe))


def _step(form: Form, batch: int) -> Callable[[], np.ndarray]:
    """Return the step of the benchmark: a batch of photographs through the form."""
    network = form.network()
    engine, images = network.engine(form.engine), export.photographs(network.input, batch)
    return lambda: engine(images)
