"""Time contenders against each other: each in a process of its own, in turn, so that all meet the same machine."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import io
import logging
import multiprocessing
import os
import platform
import re
import signal
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Optional

import numpy as np

from . import __version__, peers, processor
from .errors import UserError, unknown
from .peers import OURS, PADDLE, STOCK, Workload
from .progress import Progress
from .threads import threads
from .zoo import VARIANTS, canonical, variant

logger = logging.getLogger("ppconvmixer")

LIMIT = 20.0  # seconds that a contender may compute for a workload, once it has been measured
PAUSE = 0.5  # seconds until the threads of the one before have stopped looking for work
LONG = 10.0  # seconds of a first step, compiling included, that make a second one to warm up superfluous
TOLERANCE = 1e-3  # of the largest logit, or of the loss: more is another network, not another rounding
GOALS = {  # what docs/performance.md shows
    "inference": [("convmixer_1024_20", (1, 4, 16)), ("convmixer_768_32", (1, 4, 16))],
    "training": [("convmixer_256_8_ks5_p2", (64, 256)), ("convmixer_256_8_ks9_p1", (32,)), ("convmixer_768_32", (8,))],
    "augmentation": [("convmixer_256_8_ks5_p2", (512,))],
    "data": [("convmixer_768_32", (32,))],
    "eval": [("convmixer_768_32", (16,))],
}
BASE = dataclasses.replace(VARIANTS["convmixer_512_12"], kernel_size=9)
"""What the curves of ``scaling`` vary, at a batch of 4."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one contender reached on a workload.

    Args:
        images_per_second: the median over the rounds; ``low`` and ``high`` are the slowest and the fastest.
        rounds: how many there were.
        peak_mb: most memory the process had at once while it computed, in MiB; None where the system does not tell.
        difference: largest difference of its result to the first contender's, over the largest value there.
    """

    contender: str
    images_per_second: float
    low: float
    high: float
    rounds: int
    peak_mb: Optional[float]
    difference: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All contenders on one workload."""

    workload: Workload
    timings: tuple[Timing, ...]

    def of(self, contender: str) -> Optional[Timing]:
        """Return the timing of ``contender``, if it took part."""
        return next((t for t in self.timings if t.contender == contender), None)

    def best_peer(self) -> Optional[Timing]:
        """Return the fastest contender that is no Paddle; None where we did not take part."""
        rivals = [t for t in self.timings if t.contender not in PADDLE] if self.of(OURS) else []
        return max(rivals, key=lambda t: t.images_per_second, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON has them, ratios first."""
        ours, best, stock = self.of(OURS), self.best_peer(), self.of(STOCK)

        def ratio(other: Optional[Timing]) -> Optional[float]:
            return ours.images_per_second / other.images_per_second if ours and other else None

        work = self.workload
        return {
            **{"task": work.task, "model": work.name, "size": work.variant.input.size, "batch": work.batch},
            **{"best_peer": best and best.contender, "ratio_to_best_peer": ratio(best)},
            "ratio_to_paddle": ratio(stock),
            "macs_per_image": work.variant.macs() * (3 if work.task == "training" else 1),
            "results": [dataclasses.asdict(timing) for timing in self.timings],
        }


def workloads(part: str, model: Optional[str] = None, batches: Optional[Sequence[int]] = None) -> list[Workload]:
    """Return what ``part`` compares: the networks of ``GOALS``, or ``model``, at ``batches``.

    Raises:
        UserError: unknown model.
    """
    if part == "scaling":
        return [work for _, _, work in scaling()]
    chosen = [(canonical(model), GOALS[part][0][1])] if model else GOALS[part]
    return [Workload(part, name, variant(name), batch) for name, some in chosen for batch in (batches or some)]


def scaling() -> Iterator[tuple[str, int, Workload]]:
    """Yield what is varied, its value, and the workload, for inference of ``BASE``."""

    def work(batch: int = 4, **shape: Any) -> Workload:
        return Workload("inference", "convmixer_512_12, kernel 9", dataclasses.replace(BASE, **shape), batch)

    for batch in (1, 2, 4, 8, 16, 32, 64):
        yield "batch", batch, work(batch)
    for depth in (4, 8, 12, 16, 24, 32):
        yield "depth", depth, work(depth=depth)
    for dim in (128, 256, 384, 512, 768, 1024):
        yield "dim", dim, work(dim=dim)
    for kernel in range(3, 16, 2):
        yield "kernel_size", kernel, work(kernel_size=kernel)
    for size in (128, 160, 192, 224, 288, 384):
        yield "size", size, work(input=dataclasses.replace(BASE.input, size=size))


def compare(workload: Workload, contenders: Sequence[str], rounds: int = 5, seconds: float = 1.0) -> Comparison:
    """Time ``contenders`` on ``workload`` in turn, forwards and backwards through the list.

    Args:
        rounds: samples of each.
        seconds: least length of a sample; it is as many whole steps as that takes.

    Raises:
        UserError: a contender cannot be made, or its result is not that of the first one.
    """
    makes = {contender: functools.partial(peers.make, workload, contender) for contender in contenders}
    timings = race(makes, workload.pictures, rounds, seconds)
    for timing in timings:
        if not timing.difference <= TOLERANCE:
            raise UserError(
                f"{timing.contender} computes something else: it is {timing.difference:.2g} off on {workload}"
            )
    return Comparison(workload, timings)


def race(
    makes: Mapping[str, Callable[[], peers.Step]], pictures: int, rounds: int = 5, seconds: float = 1.0
) -> tuple[Timing, ...]:
    """Time steps in turn, forwards and backwards through ``makes``, each in a process of its own.

    Args:
        makes: what makes the step of each contender, as ``pickle`` can hand it to a process.
        pictures: of a step.

    Raises:
        UserError: a contender cannot be made.
    """
    runners: list[_Runner] = []
    try:
        for contender, make in makes.items():
            runners.append(_Runner(contender, make))
        for i in range(rounds):
            for runner in runners[:: -1 if i % 2 else 1]:
                if sum(runner.samples) * runner.steps < LIMIT or not runner.samples:
                    time.sleep(PAUSE)
                    runner.sample(seconds)
        return tuple(runner.timing(pictures, runners[0]) for runner in runners)
    finally:
        for runner in runners:
            runner.close()


class _Runner:
    """A contender in a process of its own, which computes when it is told and sleeps while others do."""

    def __init__(self, contender: str, make: Callable[[], peers.Step]):
        self.contender = contender
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, contender, make), daemon=False)
        # Paddle and torch read it when they are imported; Paddle would set it to 1.
        with _environment(OMP_NUM_THREADS=str(threads())):
            self.process.start()
        theirs.close()
        self.samples: list[float] = []
        """Seconds a step, one number a round."""
        self.steps, self.peak = 1, None
        self.result = self._receive()

    def sample(self, seconds: float) -> None:
        """Have it repeat its step for so long."""
        with contextlib.suppress(OSError):  # it is gone; `_receive` says so
            self.connection.send(seconds)
        taken, self.steps, self.peak = self._receive()
        self.samples.append(taken)

    def timing(self, pictures: int, reference: _Runner) -> Timing:
        """Return what it reached, and how far its result is from that of ``reference``."""
        rates = [pictures / seconds for seconds in self.samples]
        difference = 0.0
        if self.result is not None:
            difference = float(np.abs(self.result - reference.result).max() / np.abs(reference.result).max())
        return Timing(
            self.contender, statistics.median(rates), min(rates), max(rates), len(rates), self.peak, difference
        )

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.join(10)
        self.process.kill()

    def _receive(self) -> Any:
        try:
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            raise UserError(f"{self.contender} ended without a result; was memory short?") from error
        if isinstance(answer, UserError):
            raise answer
        return answer


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection, contender: str, make: Callable[[], peers.Step]) -> None:
    """Make the contender and run samples of it until the other side closes."""
    os.environ.setdefault("GLOG_minloglevel", "2")
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells everybody; the parent decides
    multiprocessing.set_start_method(None, force=True)  # "spawn" is inherited; a peer starts its workers as for a user
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # frameworks comment on the number of threads
            step = make()
            started = time.perf_counter()
            result = step()
            if time.perf_counter() - started < LONG:
                step()
    except Exception as error:  # whatever a peer raises, the benchmark must say whose it is
        known = isinstance(error, UserError)
        connection.send(error if known else UserError(f"{contender}: {type(error).__name__}: {error}"))
        return
    _forget_peak()
    try:
        connection.send(result)
    except BrokenPipeError:  # Ctrl-C, before anybody could wait for it
        return
    while True:
        try:
            seconds = connection.recv()
        except EOFError:
            return
        steps, started = 0, time.perf_counter()
        while not steps or time.perf_counter() - started < seconds:
            step()
            steps += 1
        try:
            connection.send(((time.perf_counter() - started) / steps, steps, _peak_mb()))
        except BrokenPipeError:
            return


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM: making and compiling do not count
    except OSError:
        pass


def _peak_mb() -> Optional[float]:
    try:
        return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    except (OSError, TypeError):
        return None


# --- the whole ----------------------------------------------------------------------------------------


def benchmark(
    parts: Sequence[str],
    model: Optional[str] = None,
    batches: Optional[Sequence[int]] = None,
    contenders: Optional[Sequence[str]] = None,
    rounds: int = 5,
    seconds: float = 1.0,
) -> dict[str, Any]:
    """Run ``parts`` and return the report: machine, versions, and for every workload the ratios and timings.

    Args:
        model: compare this one instead of those of ``GOALS``.
        batches: batch sizes to take instead.
        contenders: those to run; None runs all that are installed.

    Raises:
        UserError: as ``compare``, or a contender of none of the parts.
    """
    known = {name for part in parts if part != "scaling" for name in peers.CONTENDERS[part]}
    for name in contenders or ():
        if name not in known:
            raise unknown("contender", name, known)
    report: dict[str, Any] = {"machine": machine(), "versions": versions(), "comparisons": [], "scaling": []}
    for part in parts:
        work = workloads(part, model, batches)
        chosen = [OURS] if part == "scaling" else _chosen(part, contenders)
        if not chosen:
            logger.info("%s has none of these contenders; left out", part)
            continue
        with Progress(len(work), part, "workload") as progress:
            for i, workload in enumerate(work):
                found = compare(workload, chosen, rounds, seconds)
                progress.advance(1)
                if part == "scaling":
                    varied, value, _ = list(scaling())[i]
                    report["scaling"].append({"varied": varied, "value": value, **found.to_dict()})
                else:
                    report["comparisons"].append(found.to_dict())
                    logger.info("%s", line(report["comparisons"][-1]))
    return report


def _chosen(part: str, contenders: Optional[Sequence[str]]) -> list[str]:
    known = peers.CONTENDERS[part]
    if contenders:
        return [name for name in contenders if name in known]
    absent = {name: peers.missing(name) for name in known}
    lacking = sorted({package for package in absent.values() if package})
    if lacking:
        logger.info("not installed, so not compared: %s; pip install 'ppconvmixer[peers]'", ", ".join(lacking))
    return [name for name, package in absent.items() if not package]


def line(comparison: dict[str, Any]) -> str:
    """Return a comparison in a line, ratios first."""
    ratios = [
        f"{comparison[key]:.2f} x {name}"
        for key, name in (("ratio_to_best_peer", comparison["best_peer"]), ("ratio_to_paddle", "Paddle"))
        if comparison[key]
    ]
    rates = [f"{t['contender']} {t['images_per_second']:.4g}" for t in comparison["results"]]
    what = f"{comparison['task']} {comparison['model']} batch {comparison['batch']}"
    return f"{what}: {', '.join(ratios)}{': ' if ratios else ''}{', '.join(rates)} img/s"


def machine() -> dict[str, Any]:
    """Return processor, threads, memory and the ceilings that were measured: MACs and bytes a second."""
    described = processor.described()
    meminfo = Path("/proc/meminfo")
    memory = int(re.search(r"\d+", meminfo.read_text())[0]) / 2**20 if meminfo.exists() else None
    macs, rate = _in_child(_ceilings) or (None, None)
    return {
        "processor": processor.name(),
        "threads": threads(),
        "vectors": next((name for name in ("avx512f", "avx2") if name in described), None),
        "memory_gib": memory,
        "macs_per_second": macs,
        "bytes_per_second": rate,
        "system": platform.platform(terse=True),
    }


def _ceilings(connection: Connection) -> None:
    from .ops import build

    found = [build.ceilings(threads()) for _ in range(3)]
    connection.send(None if found[0] is None else [max(values) for values in zip(*found)])


def _in_child(target: Any) -> Any:
    """Return what ``target`` sends: Paddle, once imported here, would change what later processes inherit."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs,))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return None
    finally:
        process.join()


def versions() -> dict[str, str]:
    """Return the versions of ourselves and of everything compared that is installed."""
    found = {"ppconvmixer": __version__, "python": platform.python_version()}
    for name in (
        "paddlepaddle",
        "paddlepaddle-gpu",
        "numpy",
        "pillow",
        "opencv-python",
        "onnxruntime",
        "onnxruntime-gpu",
        "openvino",
        "torch",
    ):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
