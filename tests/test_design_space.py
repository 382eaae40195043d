"""Many networks compared: what they cost, how accurate they become, and which are recommended."""

import dataclasses
import json
import os
import signal

import pytest
from conftest import refused, run

from ppconvmixer import UserError, callbacks, zoo
from ppconvmixer.insight import design_space, design_space_page, trials

GRID = ("--dim", 8, 12, "--depth", 1, "--patch", 4, 8)
NAMES = ["convmixer_8_1_ks5_p4", "convmixer_8_1_ks5_p8", "convmixer_12_1_ks5_p4", "convmixer_12_1_ks5_p8"]
SPEEDS = {"fastest_ms": 1.0, "slowest_ms": 9.0, "images_per_second": 50.0, "peak_mb": 300.0}


@pytest.fixture(scope="module")
def recipe(class_folders, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(
        f"""
model: {{name: convmixer_tiny}}
data: {{dataset: folder, path: {class_folders}, train: train, val: val, workers: 0}}
input: {{size: 16}}
optimizer: {{name: adamw, lr: 0.01}}
train: {{epochs: 3, batch_size: 8}}
"""
    )
    return path


@pytest.fixture
def speeds(monkeypatch):
    """Times that are said instead of measured: 2 ms for the first candidate, 3 for the next, ...; a list of the calls."""
    calls = []

    def measure(candidates, rounds):
        calls.append(list(candidates))
        return {name: {"latency_ms": 2.0 + i, **SPEEDS} for i, name in enumerate(candidates)}

    monkeypatch.setattr(design_space, "measure", measure)
    return calls


def halving(recipe, folder, *more):
    """The command that trains four networks for an epoch, and two of them for two."""
    return (
        *("inspect", "design-space", *GRID, "--rounds", 0, "-c", recipe, "--budget", 8, "--finalists", 2),
        *("--runs", folder, *more),
    )


def facts_of(capsys, *arguments):
    capsys.readouterr()
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


# --- costs -------------------------------------------------------------------------------------------


def test_every_shape_is_there_once_by_its_first_name():
    names = [*design_space.grid([64], [4], [5], [4, 2]), "convmixer_tiny", "convmixer_64_4_ks5_p2_relu"]
    found = design_space.shapes(names, zoo.CIFAR10, 10)
    assert list(found) == ["convmixer_64_4_ks5_p4", "convmixer_64_4_ks5_p2", "convmixer_64_4_ks5_p2_relu"]
    assert found["convmixer_64_4_ks5_p4"] == zoo.VARIANTS["convmixer_tiny"]


def test_times_are_measured():
    candidates = design_space.shapes(NAMES[:1], dataclasses.replace(zoo.CIFAR10, size=16), 10)
    (found,) = design_space.measure(candidates, 1).values()
    assert 0 < found["fastest_ms"] == found["latency_ms"] == found["slowest_ms"] < 60_000
    assert found["images_per_second"] > 1 and 20 < found["peak_mb"] < 20_000


def test_times_are_kept_for_the_same_candidates(tmp_path, speeds):
    candidates = design_space.shapes(NAMES, zoo.CIFAR10, 10)
    path = tmp_path / "costs.json"
    first = design_space.measure_once(candidates, 5, path)
    assert design_space.measure_once(candidates, 5, path) == first and len(speeds) == 1
    design_space.measure_once(candidates, 3, path)
    design_space.measure_once(design_space.shapes(NAMES[:2], zoo.CIFAR10, 10), 3, path)
    assert len(speeds) == 3
    path.write_text('{"rent": 700}')
    with pytest.raises(UserError, match=r"costs\.json is none of this command's files; move it away"):
        design_space.measure_once(candidates, 5, path)
    assert path.read_text() == '{"rent": 700}'
    path.write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*costs\.json: .*; remove it"):
        design_space.measure_once(candidates, 5, path)


def test_without_training_nothing_is_said_of_accuracy(tmp_path, speeds, capsys):
    picture = tmp_path / "costs.png"
    facts = facts_of(capsys, "inspect", "design-space", *GRID, "--limit-ms", 3, "--output", picture)
    assert facts["recommendations"] is facts["front"] is facts["training"] is None
    assert [c["name"] for c in facts["candidates"]] == NAMES and picture.read_bytes().startswith(b"\x89PNG")
    assert [c["within_limit"] for c in facts["candidates"]] == [True, True, False, False]
    text = design_space_page.table(facts)
    assert "Nothing was trained" in text and "top-1" not in text and text.count("beyond the limit") == 2
    assert "the slowest round took over 2 times the fastest for 4 networks" in text.lower()


# --- training ----------------------------------------------------------------------------------------


def test_ctrl_c_and_going_on_end_as_without_it(recipe, tmp_path, monkeypatch, capsys):
    whole = facts_of(capsys, *halving(recipe, tmp_path / "whole"))
    begun, original, steps = [], callbacks.Count.on_train_batch_begin, []
    trained = trials.finetune

    def finetune(recipe, folder, resume=False):
        begun.append((folder.name, resume))
        return trained(recipe, folder, resume=resume)

    def watch(self, *arguments):
        steps.append(1)
        if len(steps) == 5:  # three steps an epoch: in the second run
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments)

    monkeypatch.setattr(trials, "finetune", finetune)
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Count, "on_train_batch_begin", watch)
        assert run(*halving(recipe, tmp_path / "runs")) == 130
    assert begun == [(f"{name}-1-epochs", False) for name in NAMES[:2]]
    begun.clear()
    facts = facts_of(capsys, *halving(recipe, tmp_path / "runs", "--output", tmp_path / "front.png"))
    assert begun[:3] == [(f"{NAMES[1]}-1-epochs", True)] + [(f"{name}-1-epochs", False) for name in NAMES[2:]]
    assert len(begun) == 5 and all(name.endswith("-2-epochs") and not resume for name, resume in begun[3:])
    assert facts["candidates"] == whole["candidates"] and facts["front"] == whole["front"]
    assert facts["recommendations"] == whole["recommendations"]
    begun.clear()
    assert facts_of(capsys, *halving(recipe, tmp_path / "runs")) == facts and not begun
    check_facts(facts, tmp_path)
    message = refused(capsys, *halving(recipe, tmp_path / "runs", "-o", "optimizer.lr=0.02"))
    assert "holds a run of something else: optimizer.lr: 0.01 -> 0.02" in message and "another folder" in message


def check_facts(facts, folder):
    """What is said is what the run folders hold, and the definitions."""
    assert facts["training"]["rungs"] == [{"candidates": 4, "epochs": 1}, {"candidates": 2, "epochs": 2}]
    assert facts["training"]["epochs"] == 8 and facts["training"]["judged_by"] == 12 and facts["classes"] == 3
    runs = {(c["name"], r["epochs"]): r["top1"] for c in facts["candidates"] for r in c["runs"]}
    assert len(runs) == 6
    for (name, epochs), top1 in runs.items():
        result = json.loads((folder / "runs" / f"{name}-{epochs}-epochs" / "result.json").read_text())
        assert result["top1"] == top1 and result["epochs"] == epochs and result["model"] == name
    last = {name: top1 for (name, epochs), top1 in runs.items() if epochs == 2}
    macs = {c["name"]: c["macs"] for c in facts["candidates"]}
    best = max(last.values())
    assert last[facts["recommendations"]["accurate"]] == best and set(facts["front"]) <= set(last)
    light = facts["recommendations"]["light"]
    assert light == min((n for n in last if last[n] >= best - 0.05), key=lambda n: (macs[n], -last[n]))
    text = design_space_page.table(facts)
    assert "one run (seed 0)" in text and "12 pictures" in text and f"{100 * best:.2f} %" in text
    assert (folder / "front.png").stat().st_size > 5000


def test_a_network_whose_loss_is_no_number_is_out(recipe, tmp_path, monkeypatch, capsys):
    tried = []

    def finetune(recipe, folder, resume=False):
        tried.append(recipe.model.name)
        folder.mkdir(parents=True)
        if recipe.model.name in (NAMES[0], NAMES[1]):
            (folder / "not_finite.txt").write_text("a picture\n")
            raise UserError("the loss is nan")
        (folder / "result.json").write_text('{"top1": 0.5}')
        return {"top1": 0.5}

    monkeypatch.setattr(trials, "finetune", finetune)
    facts = facts_of(capsys, *halving(recipe, tmp_path / "runs"))
    assert [c["runs"][0]["top1"] for c in facts["candidates"]] == [None, None, 0.5, 0.5] and len(tried) == 6
    assert facts["front"] == [NAMES[3]]  # as good as the other one, and cheaper
    assert design_space_page.table(facts).count("diverged") == 2
    assert facts_of(capsys, *halving(recipe, tmp_path / "runs")) == facts and len(tried) == 6
    monkeypatch.setattr(trials.Trials, "train", lambda *_: None)
    facts = facts_of(capsys, *halving(recipe, tmp_path / "none", "--output", tmp_path / "none.png"))
    assert facts["front"] == [] and facts["recommendations"] is None
    assert "nothing is recommended" in design_space_page.table(facts)


# --- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "a grid of candidates needs --dim and --depth"),
        (("--dim", 8), "a grid of candidates needs --dim and --depth"),
        ((*GRID, "--budget", 9), "--budget and -o need a recipe"),
        ((*GRID, "-c", "digits", "--size", 32), "give -o input.size=N in place of --size"),
        ((*GRID, "-c", "digits", "--budget", 9, "--tolerance", 101), "want 0 to 100 points"),
        ((*GRID, "--tolerance", 5), "--tolerance has no effect without --budget"),
        ((*GRID, "--eta", 2), "--eta has no effect without --budget"),
        ((*GRID, "-c", "digits", "--finalists", 3), "--finalists has no effect without --budget"),
        ((*GRID, "--runs", "runs/design-space"), "--runs has no effect without --budget"),
        ((*GRID, "--limit-ms", 0), "--limit-ms is 0.0; want a number above 0"),
        ((*GRID, "--limit-ms", "inf"), "--limit-ms is inf; want a number above 0"),
        (("--network", "convmixer_tiny", "--kernel", 5), "--kernel and --patch are of a grid of candidates"),
        ((*GRID, "--limit-ms", 1, "--rounds", 0), "--limit-ms needs measured times"),
        ((*GRID, "--limit-parameters", 10), "the least, convmixer_8_1_ks5_p4, has 810 parameters"),
        ((*GRID, "--size", 7), "convmixer_8_1_ks5_p8 cuts patches of 8 pixels, and the pictures have 7"),
        ((*GRID, "--output", "front.bmp"), "name a file ending in .png"),
        (("--network", "convmixer_256_9"), "unknown model 'convmixer_256_9'; did you mean"),
        (("--dim", *range(8, 20), "--depth", 1, 2, 3), "there are 36 candidates; want at most 32"),
        ((*GRID, "-c", "digits", "--budget", 3), "a budget of 3 epochs is too small for 4 candidates; want at least 4"),
        ((*GRID, "-c", "digits", "--budget", 9, "-o", "model.weights=x"), "model.weights fit one shape only"),
        (
            (*GRID, "-c", "digits", "--budget", 9, "-o", "train.epochs=null", "train.phases=[{epochs: 1}]"),
            "train.phases have epochs of their own",
        ),
        (
            (*GRID, "-c", "digits", "--budget", 9, "-o", "schedule.name=cosine", "schedule.warmup_epochs=5"),
            "a run of 2 epochs: schedule.warmup_epochs is 5",
        ),
    ],
)
def test_mistakes_are_said_before_the_work(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rounds = () if "--limit-ms" in arguments else ("--rounds", 0)
    assert message in refused(capsys, "inspect", "design-space", *rounds, *arguments)
    assert not list(tmp_path.iterdir())


def test_figures_that_are_none_are_refused(recipe, tmp_path, capsys):
    folder = tmp_path / "runs" / f"{NAMES[0]}-1-epochs"
    folder.mkdir(parents=True)
    for text, message in (("[", "cannot read"), ("[]", "holds no figures"), ('{"top1": 7.0}', "has no top1")):
        (folder / "result.json").write_text(text)
        assert message in refused(capsys, *halving(recipe, tmp_path / "runs"))
