"""Graphs in 8 bits for ONNX Runtime and OpenVINO: NNCF finds the ranges of the maps on pictures of the user's.

What costs too much agreement with the float32 network is measured and goes back to float32, one operation after the
other, the most harmful first.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .errors import UserError, said

AGREEMENT = 0.98  # of the most likely classes with float32, on the pictures, at least


def quantize(graph: Any, images: np.ndarray, open_graph: Callable[[Any], Callable[[np.ndarray], np.ndarray]]) -> Any:
    """Return ``graph`` with convolutions and head in 8 bits: weights by channel, maps by the ranges they have.

    Args:
        graph: an ``onnx.ModelProto`` or an ``openvino.Model`` that takes ``images``.
        images: some hundred inputs of the graph, of the kind it will see.
        open_graph: returns what runs a graph of the kind, or one that NNCF has compiled.

    Raises:
        UserError: NNCF is missing, or cannot do it.
    """
    try:
        import nncf
    except ImportError as error:
        raise UserError("8 bits by the ranges of the maps need the package nncf; pip install nncf") from error
    nncf.set_log_level(logging.ERROR)
    wanted = open_graph(graph)(images).argmax(axis=1)

    def agreement(candidate: Any, items: Iterable[Any]) -> tuple[float, list[float]]:
        call, same = open_graph(candidate), []
        for item in items:
            (place,) = item["place"]
            same.append(float(call(item["images"]).argmax() == wanted[place]))
        return float(np.mean(same)), same

    samples = [{"images": image[None], "place": [i]} for i, image in enumerate(images)]
    known = nncf.Dataset(samples, lambda item: {"images": item["images"]})
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # bars that no setting silences
            return nncf.quantize_with_accuracy_control(
                *(graph, known, nncf.Dataset(samples), agreement),
                max_drop=1 - AGREEMENT,
                preset=nncf.QuantizationPreset.MIXED,  # what GELU gives is not symmetric
                subset_size=len(images),
            )
    except Exception as error:  # NNCF, ONNX Runtime and OpenVINO have exceptions of their own
        raise UserError(f"the graph cannot be brought to 8 bits: {said(error)}") from error
