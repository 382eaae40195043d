"""A network as a folder of static files: a page that classifies pictures in the browser, by ONNX Runtime Web."""

from __future__ import annotations

import dataclasses
import json
from importlib import resources
from pathlib import Path
from typing import Optional

import numpy as np

from ..export import Form, Verified, export
from ..files import atomic_write, write_text
from ..trained import Trained

PAGE = ("crop.mjs", "picture.mjs", "page.mjs", "page.css", "index.html")
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
"""What the page needs of the npm package onnxruntime-web, beside it; the user puts it there."""


def files(folder: Path) -> list[Path]:
    """Return all files that ``write`` writes."""
    return [folder / name for name in ("model.onnx", "model.json", *PAGE)]


def write(network: Trained, folder: Path, bits: int = 32, pictures: Optional[np.ndarray] = None) -> Verified:
    """Write the page, the graph and what the page must know of it; other files there stay.

    Args:
        bits: of the weights, as in ``export.Form``.
        pictures: as in ``export.export``.

    Raises:
        UserError: as ``export.export``.
    """
    found = export(network, folder / "model.onnx", Form("onnx", pixels=True, bits=bits), pictures)
    write_text(folder / "model.json", json.dumps(describe(network), indent=1, ensure_ascii=False) + "\n")
    for name in PAGE:
        with atomic_write(folder / name) as stream:
            stream.write((resources.files(__package__) / name).read_bytes())
    return found


def describe(network: Trained) -> dict[str, object]:
    """Return what the page must know: how a picture becomes the input, and the names of the classes."""
    spec = dataclasses.asdict(network.input)
    return {
        "model": network.name,
        **{name: spec[name] for name in ("size", "crop_pct", "interpolation")},  # the rest is in the graph
        "classes": network.classes or [f"class {i}" for i in range(network.num_classes)],
    }
