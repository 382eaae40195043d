"""Graphs in 8 bits for ONNX Runtime and OpenVINO: NNCF finds the ranges of the maps on pictures of the user's.

What stays in float32 is measured: the depthwise convolutions where the engine is faster with them so, and, one
operation after the other, the most harmful first, what costs too much agreement with the float32 network.
"""

from __future__ import annotations

import contextlib
import io
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from . import signal_stack
from .engines import send_no_statistics
from .errors import UserError, said

logger = logging.getLogger("ppconvmixer")

AGREEMENT = 0.98  # of the most likely classes with float32, at least
MARGIN = 0.5  # of the loss that this allows: on pictures by which no range was found, more is lost
BATCH = 4  # pictures at a time, and to measure speed on


Open = Callable[[Any], Callable[[np.ndarray], np.ndarray]]
"""Returns what runs a graph."""


@signal_stack.kept()
def quantize(graph: Any, images: np.ndarray, open_graph: Open, depthwise: Sequence[str] = ()) -> Any:
    """Return ``graph`` with convolutions and head in 8 bits: weights by channel, maps by the ranges they have.

    Args:
        graph: an ``onnx.ModelProto`` or an ``openvino.Model`` that takes ``images``.
        images: some hundred inputs of the graph, of the kind it will see.
        open_graph: for a graph of the kind, or one that NNCF has compiled.
        depthwise: names of the operations to try in float32.

    Raises:
        UserError: NNCF is missing, or cannot do it.
    """
    send_no_statistics()
    try:
        import nncf
    except ImportError as error:
        raise UserError("8 bits by the ranges of the maps need the package nncf; pip install nncf") from error
    nncf.set_log_level(logging.ERROR)
    logger.info("bringing the graph to 8 bits by %d pictures, which may take minutes", len(images))
    usual = {"preset": nncf.QuantizationPreset.MIXED, "subset_size": len(images)}  # GELU's values are not symmetric
    wanted = most_likely(open_graph(graph), images)

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
            scopes = [None, nncf.IgnoredScope(names=list(depthwise))] if depthwise else [None]
            tried = [nncf.quantize(graph, known, ignored_scope=scope, **usual) for scope in scopes]
            seconds = _race([open_graph(each) for each in tried], images[:BATCH])
            return nncf.quantize_with_accuracy_control(
                *(graph, known, nncf.Dataset(samples), agreement),
                max_drop=MARGIN * (1 - AGREEMENT),
                ignored_scope=scopes[int(np.argmin(seconds))],
                **usual,
            )
    except Exception as error:  # NNCF, ONNX Runtime and OpenVINO have exceptions of their own
        raise UserError(f"the graph cannot be brought to 8 bits: {said(error)}") from error


def most_likely(call: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    """Return the most likely class of each picture, int64 (N,); few are run at a time, as large maps take memory."""
    return np.concatenate([call(part).argmax(axis=1) for part in np.split(images, range(BATCH, len(images), BATCH))])


def _race(calls: Sequence[Callable[[np.ndarray], np.ndarray]], images: np.ndarray) -> list[float]:
    """Return the seconds each call takes: the median of five, in turn, after one that does not count."""
    seconds: list[list[float]] = [[] for _ in calls]
    for round_ in range(6):
        for taken, call in zip(seconds, calls):
            started = time.perf_counter()
            call(images)
            if round_:
                taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in seconds]
