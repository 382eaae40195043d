"""The benchmark runs, compares like with like, and writes what it measured; how fast things are is no test."""

import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from ppconvmixer import benchmark, cli, peers, performance
from ppconvmixer.benchmark import Comparison, Timing
from ppconvmixer.errors import UserError
from ppconvmixer.peers import OURS, STOCK, WITHOUT, Workload
from ppconvmixer.zoo import VARIANTS

TINY = Workload("inference", "convmixer_tiny", VARIANTS["convmixer_tiny"], 2)


def timing(contender, rate):
    return Timing(contender, rate, rate * 0.9, rate * 1.1, 5, 100.0, 0.0)


def test_ratios_are_of_ours_to_the_fastest_peer_and_to_paddle():
    rates = {OURS: 30.0, STOCK: 3.0, "Paddle Inference": 40.0, "OpenVINO": 20.0, "torch eager": 10.0}
    found = Comparison(TINY, tuple(timing(*item) for item in rates.items())).to_dict()
    assert (found["best_peer"], found["ratio_to_best_peer"], found["ratio_to_paddle"]) == ("OpenVINO", 1.5, 10.0)
    alone = Comparison(TINY, (timing(OURS, 30.0),)).to_dict()
    assert alone["best_peer"] is alone["ratio_to_best_peer"] is alone["ratio_to_paddle"] is None
    without = Comparison(TINY, (timing("engine alone", 30.0), timing("eval", 20.0))).to_dict()  # both are ours
    assert without["best_peer"] is without["ratio_to_best_peer"] is None
    assert benchmark.line(found) == (
        "inference convmixer_tiny batch 2: 1.50 x OpenVINO, 10.00 x Paddle: ppconvmixer 30, Paddle dynamic graph 3, "
        "Paddle Inference 40, OpenVINO 20, torch eager 10 img/s"
    )


def test_weights_are_complete_and_drawn_alike_every_time():
    model = peers._network(TINY)
    drawn = TINY.weights()
    assert set(drawn) == set(model.state_dict())
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), drawn[name])


@pytest.mark.parametrize(("task", "contenders"), [("inference", [OURS, STOCK]), ("training", [OURS, STOCK, WITHOUT])])
def test_contenders_agree_and_are_measured(task, contenders):
    work = Workload(task, "convmixer_tiny", VARIANTS["convmixer_tiny"], 2)
    found = benchmark.compare(work, contenders, rounds=2, seconds=0.01)
    assert [t.contender for t in found.timings] == contenders
    for t in found.timings:
        assert 0 < t.low <= t.images_per_second <= t.high and t.rounds == 2
        assert t.peak_mb > 50  # Paddle alone takes more
    assert found.timings[0].difference == 0 <= max(t.difference for t in found.timings) < 1e-5


@pytest.mark.parametrize("result", [2.01, float("nan")])
def test_a_contender_that_computes_something_else_is_refused(result, monkeypatch):
    timing = benchmark.Timing("x", 1.0, 1.0, 1.0, 1, 1.0, difference=abs(result - 2.0) / 2.0)
    monkeypatch.setattr(benchmark, "race", lambda *arguments: (timing,))
    with pytest.raises(UserError, match="x computes something else"):
        benchmark.compare(TINY, ["x"])


def test_the_difference_is_that_of_the_results():
    runner, reference = (object.__new__(benchmark._Runner) for _ in range(2))
    runner.contender, runner.samples, runner.peak = "x", [1.0, 2.0, 4.0], 1.0
    runner.result, reference.result = np.array([1.0, 2.01]), np.array([1.0, 2.0])
    timing = runner.timing(8, reference)
    assert timing.difference == pytest.approx(0.005) and (timing.low, timing.images_per_second, timing.high) == (
        2,
        4,
        8,
    )
    runner.result = np.array([1.0, np.nan])
    assert not runner.timing(8, reference).difference <= 1


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(peers, "missing", lambda contender: "torch" if contender.startswith("torch") else None)
    with pytest.raises(UserError, match=r"torch eager needs the package torch; pip install 'ppconvmixer\[peers\]'"):
        peers.make(TINY, "torch eager")
    assert not [name for name in benchmark._chosen("training", None) if name.startswith("torch")]


def test_what_a_contender_raises_is_said_with_its_name():
    with pytest.raises(UserError, match="no contender 'nobody' for inference; known: ppconvmixer, "):
        benchmark.compare(TINY, ["nobody"], 1, 0.01)


@pytest.mark.parametrize("part", ["augmentation", "data", "eval"])
def test_every_contender_of_the_other_parts_runs(part):
    contenders = list(peers.CONTENDERS[part])
    spec = VARIANTS["convmixer_tiny"]
    found = benchmark.compare(Workload(part, "convmixer_tiny", spec, 32), contenders, rounds=1, seconds=0.01)
    assert [t.contender for t in found.timings] == contenders and all(t.images_per_second > 0 for t in found.timings)


def test_the_command_writes_json_page_and_picture(tmp_path, monkeypatch, capsys):
    points = [("depth", depth, TINY) for depth in (2, 4)] + [("dim", 64, TINY)]
    monkeypatch.setattr(benchmark, "scaling", lambda: iter(points))
    paths = {name: tmp_path / f"page.{name}" for name in ("json", "md", "png")}
    arguments = ["inference", "scaling", "--model", "convmixer_tiny", "--batch-size", 1, "--rounds", 1]
    arguments += ["--contenders", OURS, STOCK, "--output", paths["json"], "--markdown", paths["md"]]
    assert cli.main(["benchmark", *map(str, [*arguments, "--picture", paths["png"]])]) == 0
    report = json.loads(paths["json"].read_text())
    (comparison,) = report["comparisons"]
    ours, stock = comparison["results"]
    assert comparison["ratio_to_paddle"] == ours["images_per_second"] / stock["images_per_second"]
    assert [point["value"] for point in report["scaling"]] == [2, 4, 64]
    assert report["versions"]["numpy"] == np.__version__ and report["machine"]["threads"] >= 1
    page = paths["md"].read_text()
    assert f"{ours['images_per_second']:.4g}" in page and "(page.png)" in page
    assert "| depth | 2: " in page and "ppconvmixer benchmark inference scaling" in page
    assert min(Image.open(paths["png"]).size) > 100
    assert capsys.readouterr().out.startswith("inference convmixer_tiny batch 1: ")


def test_wrong_words_are_named(capsys):
    assert cli.main(["benchmark", "inferense"]) == 2
    assert "unknown part 'inferense'; did you mean inference" in capsys.readouterr().err
    assert cli.main(["benchmark", "inference", "data", "--contenders", "torch eagre"]) == 2
    assert "unknown contender 'torch eagre'; did you mean torch eager" in capsys.readouterr().err
    assert cli.main(["benchmark", "data", "--picture", "x.png"]) == 2
    assert "--picture draws the part scaling" in capsys.readouterr().err
    assert cli.main(["benchmark", "scaling", "--batch-size", "2"]) == 2
    assert "--batch-size has no effect on scaling" in capsys.readouterr().err
    assert cli.main(["benchmark", "scaling", "--picture", "x.jpg"]) == 2  # before the work, not after it
    assert "x.jpg" in capsys.readouterr().err


def _killed():
    os.kill(os.getpid(), signal.SIGKILL)


def _idle():
    return lambda: None


def test_a_contender_that_is_killed_is_named():
    """Not taken for a reader of our output who had enough, which ends in 0."""
    with pytest.raises(UserError, match="the first ended without a result"):
        benchmark.race({"the first": _killed}, 1)
    runner = benchmark._Runner("the second", _idle)
    try:
        runner.process.kill()
        runner.process.join()
        with pytest.raises(UserError, match="the second ended without a result"):
            runner.sample(0.01)
    finally:
        runner.close()


def test_the_ceilings_are_plausible():
    found = benchmark.machine()
    if found["macs_per_second"] is None:
        pytest.skip("needs a C++ compiler")
    assert 1e8 < found["macs_per_second"] < 1e13 and 1e8 < found["bytes_per_second"] < 1e13


def test_a_page_without_peers_says_so():
    found = Comparison(TINY, (timing(OURS, 30.0),)).to_dict()
    report = {
        "machine": {**dict.fromkeys(("vectors", "macs_per_second", "bytes_per_second")), "processor": "p", "threads": 1}
        | {"system": "s"},
        "versions": {"python": "3"},
        "comparisons": [found],
        "scaling": [],
    }
    assert "| convmixer_tiny, 32, 2 | - (none installed) | - | - |" in performance.markdown(report, "command")
