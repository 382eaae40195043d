"""Runs made sick on purpose, and a healthy one: every disease is named, and the healthy run has none."""

import json
import shlex
import shutil
import signal
import time

import numpy as np
import paddle
import pytest
from conftest import picture, refused, run
from PIL import Image
from test_model import numpy_convmixer

from ppconvmixer import (
    UserError,
    callbacks,
    card,
    checkpoint,
    datasets,
    finetune,
    losses,
    recipe,
    records,
    report,
    run_state,
    zoo,
)
from ppconvmixer.files import shipped
from ppconvmixer.insight import diagnose, diseases, remedies
from ppconvmixer.insight.evidence import Evaluations, Evidence, gather
from ppconvmixer.insight.examination import BATCH, Examination, Norm, _batch, _norms
from ppconvmixer.stopping import Stopped
from ppconvmixer.trained import Trained

SMALL = "convmixer_16_2_ks3_p4"
OWN = [f"model.name={SMALL}", "train.batch_size=32", "train.histograms=0"]


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The digits as files; ``write(name, places, labels)`` makes a list of some."""
    folder = tmp_path_factory.mktemp("digits")
    pictures = datasets.digits()
    for i in range(1000):
        Image.fromarray(pictures.fetch(i)).save(folder / f"{i}.png")

    def write(name, places, labels=pictures.labels):
        (folder / name).write_text("".join(f"{i}.png {labels[i]}\n" for i in places))
        return folder / name

    return write


@pytest.fixture(scope="session")
def sick(tmp_path_factory, digits):
    """Train a run on purpose, once, and say what ails it: ``sick(name)`` returns folder, evidence and diagnosis."""
    root, made = tmp_path_factory.mktemp("sick"), {}

    def broken_weights(name, change):
        paddle.seed(0)
        state = run_state.to_arrays(zoo.create_model(SMALL, num_classes=10).state_dict())
        change(state)
        checkpoint.write(root / f"{name}.pdparams", state)
        card.write(root / f"{name}.pdparams", card.Card(model=SMALL))
        return f"model.weights={root / name}.pdparams"

    def kill(state):
        state["blocks.1.1.bias"][:6] = -50.0  # behind GELU, these channels are 0 whatever the picture is
        state["blocks.1.3.weight"][:] = 1e-4  # what is below gets next to nothing back

    def poison(state):
        state["stem.0.bias"][0] = np.nan

    def inflate(state):
        state["head.weight"] *= 1000

    def lists(train, val, labels=None):
        more = () if labels is None else (labels,)
        first = digits(f"train {train.start} to {train.stop}.txt", train, *more)
        return [
            *("data.dataset=list", f"data.path={first.parent}", f"data.train={first}", "data.val_fraction=null"),
            f"data.val={digits(f'val {val.start} to {val.stop}.txt', val)}",
        ]

    def wrong_labels():
        labels, rng = datasets.digits().labels.copy(), np.random.default_rng(0)
        wrong = rng.choice(900, 72, replace=False)
        labels[wrong] = (labels[wrong] + rng.integers(1, 10, 72)) % 10
        (root / "wrong.json").write_text(json.dumps(sorted(wrong.tolist())))
        return labels

    def large_pictures():
        for part, counts in (("train", (20, 2)), ("val", (2, 2))):
            for label, count in enumerate(counts):
                (root / f"large/{part}/{'ab'[label]}").mkdir(parents=True)
                for i in range(count):
                    large = picture(100 * label + i, 2100, 2100)
                    large.save(root / f"large/{part}/{'ab'[label]}/{i}.jpg", quality=50)
        return ["data.dataset=folder", f"data.path={root / 'large'}", "data.train=train", "data.val=val"]

    few = lists(range(300), range(300, 400))
    plain = ["augment.crop_scale=null", "augment.crop_ratio=[1,1]"]
    sgd = ["optimizer.name=sgd", "schedule.name=constant"]
    settings = {
        "healthy": lambda: ["train.epochs=6"],
        "not finite": lambda: [*few, *sgd, "optimizer.lr=1e20", "optimizer.clip_norm=null"],
        "never finite": lambda: [*few, *sgd, broken_weights("poisoned", poison)],
        "too high": lambda: [
            *(*few, "optimizer.lr=3", "optimizer.clip_norm=null", "schedule.name=constant", "train.epochs=4"),
        ],
        "too low": lambda: [*few, "optimizer.lr=1e-5", "train.epochs=3"],
        "slow": lambda: [*few, *plain, *sgd, "optimizer.lr=1e-3", "optimizer.clip_norm=null", "train.epochs=6"],
        "overfitting": lambda: [
            *(*lists(range(80), range(300, 400)), *plain, "schedule.name=cosine", "optimizer.lr=0.01"),
            *("train.batch_size=16", "train.epochs=24"),
        ],
        "underfitting": lambda: [*few, "model.name=convmixer_2_1_ks1_p16", "train.epochs=40", "optimizer.lr=0.3"],
        "statistics": lambda: [
            *(*lists(range(700), range(900, 1000)), "train.epochs=1", "train.batch_size=128", "schedule.name=constant"),
        ],
        "broken": lambda: [*few, *sgd, broken_weights("broken", kill), "optimizer.lr=1e-4", "train.epochs=3"],
        "exploding": lambda: [*few, *sgd, broken_weights("large", inflate), "optimizer.lr=1e-9", "train.epochs=3"],
        "gradual": lambda: [
            *(f"model.weights={find('healthy')[0] / 'best.pdparams'}", "optimizer.lr=0.005", "finetune.freeze=true"),
            *("finetune.unfreeze=[{epoch: 1, blocks: 1}, {epoch: 3, blocks: 2, stem: true}]", "train.epochs=6"),
            *("train.label_smoothing=0.1", "schedule.name=cosine"),
        ],
        "plateau": lambda: [  # labels that say nothing of the pictures, and too small a network to learn them by heart
            *lists(range(400, 700), range(700, 800), np.random.default_rng(0).permutation(datasets.digits().labels)),
            *("model.name=convmixer_2_1_ks1_p16", "schedule.name=constant", "train.epochs=8"),
        ],
        "rising": lambda: [  # from good weights, with steps that grow until they undo what was learnt
            *(f"model.weights={find('healthy')[0] / 'best.pdparams'}", "optimizer.lr=0.5", "optimizer.clip_norm=null"),
            *("schedule.name=constant", "schedule.warmup_epochs=4", "train.epochs=4"),
        ],
        "wrong labels": lambda: [*lists(range(900), range(900, 1000), wrong_labels()), "train.epochs=6"],
        "large pictures": lambda: [
            *(*large_pictures(), "data.val_fraction=null", "train.epochs=3", "train.batch_size=4"),
        ],
    }

    def find(name):
        if name not in made:
            overrides = [*OWN, *settings[name]()]
            try:
                finetune.finetune(recipe.load("digits", overrides), root / name)
            except UserError as error:
                assert name in ("not finite", "never finite") and "the loss is nan" in str(error)
            evidence = gather(root / name)
            made[name] = root / name, evidence, diagnose.describe(evidence)
        return made[name]

    return find


def named(facts):
    return {finding["disease"] for finding in facts["findings"]}


def lines(facts, disease):
    (found,) = (finding for finding in facts["findings"] if finding["disease"] == disease)
    return "\n".join(found["evidence"])


def test_nothing_is_named_in_a_healthy_run_and_all_is_judged(sick):
    folder, evidence, facts = sick("healthy")
    assert facts["findings"] == [] and facts["not_judged"] == []
    assert facts["nothing_found"] == [disease.name for disease in diseases.DISEASES]
    assert facts["top1"] == pytest.approx(json.loads((folder / "result.json").read_text())["top1"], abs=1e-6)
    assert facts["top1"] > 0.8 and facts["epochs"] == facts["epochs_planned"] == 6
    assert set(evidence.layers) == {"stem", "block 0", "block 1", "head"}
    assert len(evidence.waiting) == 6 and (evidence.waiting > 0).all() and (evidence.waiting < 1).all()


SICK = [
    ("not finite", {"diverging", "learning rate too high"}),
    ("never finite", {"diverging"}),
    ("too high", {"diverging", "learning rate too high"}),
    ("too low", {"learning rate too low"}),
    ("slow", {"learning rate too low"}),
    ("overfitting", {"overfitting"}),
    ("underfitting", {"underfitting"}),
    ("statistics", {"batch-norm statistics off"}),
    ("broken", {"dead units", "vanishing gradients"}),
    ("exploding", {"exploding gradients"}),
    ("plateau", {"plateau"}),
    ("rising", {"loss rising"}),
    ("wrong labels", {"label noise"}),
    ("large pictures", {"class imbalance", "data loader starving"}),
]


@pytest.mark.parametrize(("name", "expected"), SICK)
def test_a_disease_made_on_purpose_is_named_with_advice_that_the_recipe_takes(sick, name, expected):
    folder, _, facts = sick(name)
    assert expected <= named(facts), diagnose.table(facts)
    told = [named(facts), set(facts["nothing_found"]), {item["disease"] for item in facts["not_judged"]}]
    assert sorted(d for part in told for d in part) == sorted(disease.name for disease in diseases.DISEASES)
    before = recipe.load(folder / "recipe.yaml")
    for finding in facts["findings"]:
        assert finding["evidence"] and all(finding["evidence"])
        assert finding["advice"], finding
        for advice in finding["advice"]:
            if advice["settings"]:
                assert recipe.load(folder / "recipe.yaml", advice["settings"]) != before
    json.dumps(facts, allow_nan=False)


def test_the_evidence_has_the_numbers(sick):
    folder, _, facts = sick("not finite")
    broken = (folder / "not_finite.txt").read_text().splitlines()
    assert f"no number at step 2, whose batch held {', '.join(broken[:5])} and 27 more" in lines(facts, "diverging")
    assert "at the learning rate 1e+20" in lines(facts, "learning rate too high")
    assert {"disease": "label noise", "reason": "there is no network yet: no epoch came to its end"} in facts[
        "not_judged"
    ]
    _, _, facts = sick("broken")
    assert "block 1, pointwise: 6 of 16 channels" in lines(facts, "dead units")
    assert "such as 0, 1, 2, 3, 4 and 1 more" in lines(facts, "dead units")
    assert all(name in lines(facts, "vanishing gradients") for name in ("stem: its", "block 0: its"))
    assert "head" not in lines(facts, "vanishing gradients").replace("of the head", "")
    _, _, facts = sick("large pictures")
    assert "a has 20 training pictures, b 2" in lines(facts, "class imbalance")
    assert "with data.workers=0 on" in lines(facts, "data loader starving")
    _, _, facts = sick("too low")
    assert "a step changes the weights by" in lines(facts, "learning rate too low")
    assert any(item["disease"] == "underfitting" for item in facts["not_judged"]) or "underfitting" in named(facts)


def test_a_run_whose_first_loss_was_no_number_is_named_without_curves(sick, tmp_path, capsys):
    folder, evidence, facts = sick("never finite")
    assert not records.Records(folder / "visualdl" / records.FILE).read().curves and evidence.rates is None
    assert "the loss was no number at step 1, whose batch held" in lines(facts, "diverging")
    (found,) = facts["findings"]
    assert [advice["settings"] for advice in found["advice"]] == [["model.weights=null"], []]
    assert {"disease": "plateau", "reason": "the records have no curve train/learning_rate"} in facts["not_judged"]
    assert run("inspect", "diagnose", folder, "--output", tmp_path / "a.png") == 0
    assert "0 of 10 epochs, 0 steps\nfound: diverging\n" in capsys.readouterr().out
    nothing = Evidence("x", {}, losses=np.empty(0), rates=np.empty(0), not_finite=("a.png",))
    with pytest.raises(diseases.NotJudged, match="the learning rate is not recorded"):
        diseases.rate_too_high(nothing)
    assert named(diagnose.describe(nothing)) == {"diverging"}
    (folder / "not_finite.txt").unlink()
    try:
        assert "holds no curves" in refused(capsys, "inspect", "diagnose", folder)
    finally:
        (folder / "not_finite.txt").write_text("a.png\n")


def test_nothing_is_named_where_the_layers_of_a_good_network_thaw_one_after_the_other(sick):
    _, evidence, facts = sick("gradual")
    assert facts["findings"] == [], diagnose.table(facts)
    assert evidence.recipe.finetune.unfreeze and evidence.recipe.train.label_smoothing


def test_what_another_disease_explains_is_not_judged(sick):
    _, _, facts = sick("too high")
    assert {"disease": "underfitting", "reason": "see first: diverging"} in facts["not_judged"]


def test_wrong_labels_are_found_by_name(sick, tmp_path):
    folder, _, facts = sick("wrong labels")
    wrong = set(json.loads((folder.parent / "wrong.json").read_text()))
    found = {int(item["picture"].split(".")[0]) for item in facts["label_suspects"]}
    assert len(found & wrong) > 0.4 * len(wrong) and len(found - wrong) < 0.2 * len(found)  # a guess has 92 % wrong
    surest = facts["label_suspects"][0]
    assert surest["probability"] > 0.5 > 10 * surest["probability_of_given"] and surest["given"] != surest["taken_for"]
    assert surest["picture"] in lines(facts, "label noise")


def test_suspects_are_those_off_the_diagonal_that_speak_against_the_label():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((400, 4)) * 2
    labels = rng.integers(0, 3, 400)  # nobody is given class 3
    logits[np.arange(400), labels] += 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    usual = [np.mean([p[j] for p, y in zip(probabilities, labels) if y == j]) for j in range(3)]
    expected = {}
    for i, (p, y) in enumerate(zip(probabilities, labels)):
        sure = [j for j in range(3) if p[j] >= usual[j]]
        other = max(sure, key=lambda j: p[j]) if sure else y
        if other != y and p[y] < 0.5 / 4:
            expected[i] = other
    places, others = diseases.suspects(labels, probabilities)
    assert dict(zip(places.tolist(), others.tolist())) == expected and 3 < len(expected) < 100
    assert diseases.suspects(labels, np.full((400, 4), 0.25))[0].size == 0


def test_a_suspect_is_taken_for_the_class_it_is_suspected_to_be():
    """Class 0 is usually told with 0.9, so 0.55 is not sure of it, while 0.45 is more than class 1 usually gets."""
    probabilities = np.array([[0.9, 0.05, 0.05], [0.6, 0.4, 0.0], [0.1, 0.1, 0.8], [0.55, 0.45, 0.0]])
    places, others = diseases.suspects(np.array([0, 1, 2, 2]), probabilities)
    assert places.tolist() == [3] and others.tolist() == [1]


def test_what_a_network_that_is_often_wrong_holds_against_labels_is_not_heard():
    """It gives its guess 0.7, is right in 70 % of the cases, and doubts the label in all others."""
    rng, count = np.random.default_rng(0), 1000
    guess = rng.integers(0, 10, count)
    probabilities = np.full((count, 10), 0.3 / 9)
    probabilities[np.arange(count), guess] = 0.7
    labels = np.where(rng.random(count) < 0.7, guess, (guess + rng.integers(1, 10, count)) % 10)
    assert len(diseases.suspects(labels, probabilities)[0]) > 0.25 * count
    examination = Examination(tuple(map(str, range(count))), labels, probabilities, count, (), 1.0, 1.0, 256)
    with pytest.raises(diseases.NotJudged, match="its word is weak"):
        diseases.label_noise(Evidence("x", {}, classes=tuple("abcdefghij"), examination=examination))


def test_the_least_loss_is_the_entropy_of_the_targets():
    def run(*overrides):
        return Evidence("x", {}, recipe=recipe.load("digits", overrides), classes=tuple("0123456789"))

    assert diseases.least_loss(run()) == pytest.approx(0)
    floor = -(0.91 * np.log(0.91) + 9 * 0.01 * np.log(0.01))
    assert diseases.least_loss(run("train.label_smoothing=0.1")) == pytest.approx(floor)
    mixed = diseases.least_loss(run("augment.mixup=1"))  # a share uniform in [0, 1] has half a nat of entropy
    assert mixed == pytest.approx(0.9 * 0.5, rel=0.02)
    half = diseases.least_loss(run("augment.mixup=1", "augment.mix_prob=0.5"))
    assert half == pytest.approx(mixed / 2)
    targets = losses.soft_targets(np.arange(10), 10, 0.1)
    share = np.random.default_rng(0).beta(0.5, 0.5, 10_000)[:, None]
    blended = share * targets[0] + (1 - share) * targets[1]
    expected = 0.1 * floor + 0.9 * -(blended * np.log(blended)).sum(axis=1).mean()
    both = diseases.least_loss(run("train.label_smoothing=0.1", "augment.mixup=0.5", "augment.cutmix=0.5"))
    assert both == pytest.approx(expected, rel=1e-4)
    distilled = run(
        "train.label_smoothing=0.1", "distill.teacher=convmixer_tiny", "distill.weights=x", "distill.alpha=0.7"
    )
    assert diseases.least_loss(distilled) == pytest.approx(0.3 * floor)


# --- what is measured on the network --------------------------------------------------------------------


def test_norms_are_measured_as_their_layers_compute():
    paddle.seed(0)
    network = zoo.create_model(SMALL, num_classes=10)
    network.stem[2]._mean.set_value(paddle.linspace(-1, 1, 16))
    network.eval()
    images = np.random.default_rng(0).standard_normal((70, 3, 16, 16)).astype(np.float32)
    stem, *others = _norms(network, images)
    with paddle.no_grad():
        x = network.stem[1](network.stem[0](paddle.to_tensor(images))).numpy().astype(np.float64)
        behind = network.stem(paddle.to_tensor(images)).numpy().astype(np.float64)
    np.testing.assert_allclose(stem.mean, x.mean(axis=(0, 2, 3)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(stem.variance, x.var(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(stem.spread, behind.std(axis=(0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(stem.running_mean, np.linspace(-1, 1, 16), atol=1e-6)
    assert [norm.name for norm in others] == [
        f"block {i}, {part}" for i in (0, 1) for part in ("depthwise", "pointwise")
    ]
    assert network.blocks[0][3]._mean.numpy().any() == 0  # nothing was learnt by looking


def test_the_batch_is_the_first_of_the_last_epoch_as_training_saw_it(digits):
    file = digits("batch.txt", range(300))
    overrides = [f"data.path={file.parent}", f"data.train={file}", "data.dataset=list", *OWN]
    settings = recipe.load("digits", [*overrides, "train.epochs=3", "augment.mixup=0.2", "data.workers=2"])
    train, _ = finetune.open_data(settings)
    images, labels = _batch(settings, train, 10)
    assert images.shape == (min(len(train) // 32 * 32, BATCH), 3, 32, 32)
    order = np.random.default_rng((0, 2)).permutation(len(train))
    own = train.labels[order[: len(labels)]]
    partners = own[np.arange(len(own)) ^ 1]  # a mixed picture is to be told as the one with the larger share
    assert ((labels == own) | (labels == partners)).all() and len(set(own.tolist())) == 10
    _, plain = _batch(recipe.override(settings, ["augment.mixup=0"]), train, 10)
    np.testing.assert_array_equal(plain, own)


def test_accuracy_by_the_statistics_remembered_and_by_those_of_the_batch(sick):
    """Against the formula in NumPy; a norm that remembers nothing of before takes up the statistics of the batch."""
    folder, evidence, _ = sick("statistics")
    settings, found = recipe.load(folder / "recipe.yaml"), evidence.examination
    images, labels = _batch(settings, finetune.open_data(settings)[0], 10)
    network = Trained(folder / "best.pdparams").create()

    def share_right():
        logits = numpy_convmixer(run_state.to_arrays(network.state_dict()), images.astype(float), 3, 4, 2, "gelu")
        return (logits.argmax(axis=1) == labels).mean()

    one = 1.01 / len(labels)  # a picture between two classes may go either way
    assert found.batch == len(labels) and found.remembered == pytest.approx(share_right(), abs=one)
    for layer in network.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            layer._momentum = 0.0
    network.train()
    network(paddle.to_tensor(images))
    assert found.own == pytest.approx(share_right(), abs=one) and found.own > found.remembered + 0.1


# --- shapes of curves, written as a run writes them ------------------------------------------------------


def write(folder, losses, rates=None, norms=None, epochs=0, overrides=(), top1=0.5, classes=0):
    """Write records of a run with so many evaluations, evenly spaced; with ``classes`` they say how many there are."""
    from visualdl import LogWriter

    settings = recipe.load("digits", [*OWN, f"train.epochs={max(epochs, 1)}", *overrides])
    writer = LogWriter(logdir=str(folder), file_name=records.FILE)
    writer.add_text("recipe", settings.to_yaml(), step=0)
    if classes:
        last = classes - 1
        writer.add_text(report.CONFUSION, f"label,predicted,pictures,of,for\n{last},{last},9,{last},{last}\n", step=0)
    rates = np.full(len(losses), 0.02) if rates is None else rates
    norms = np.ones(len(losses)) if norms is None else norms
    for i, (loss, rate, norm) in enumerate(zip(losses, rates, norms), 1):
        for name, value in (("loss", loss), ("learning_rate", rate), ("gradient_norm", norm), ("top1", 0.5)):
            writer.add_scalar(f"train/{name}", float(value), i)
        if epochs and i % (len(losses) // epochs) == 0:
            writer.add_scalar("eval/loss", float(loss) + 0.1, i)
            writer.add_scalar("eval/top1", top1, i)
    writer.close()
    evidence = gather(folder)
    return evidence, diagnose.describe(evidence)


STEPS = np.arange(200)
FALLING = 2.3 * np.exp(-STEPS / 40) + 0.05 + 0.02 * np.sin(STEPS)
FLAT = 1.0 + 1.3 * np.exp(-STEPS / 10)
LEAST = 0.51 + 1.8 * np.exp(-STEPS / 10)  # of targets smoothed by 0.1, of which 0.50 is the entropy
THAWED = {"norms": np.where(STEPS < 100, 1.0, 30.0)}
GRADUAL = ["model.weights=x", "finetune.freeze=true", "finetune.unfreeze=[{epoch: 1, blocks: 2}]"]


def spiky(values, factor):
    values = values.copy()
    values[60::20] *= factor
    return values


@pytest.mark.parametrize(
    ("losses", "more", "expected"),
    [
        (FALLING, {}, set()),
        (FLAT, {"epochs": 2}, {"plateau"}),
        (FLAT, {"rates": 0.02 * np.cos(STEPS / 200 * np.pi / 2) ** 4}, set()),  # it has settled, as it was to
        (FLAT, {"epochs": 2, "overrides": ["train.epochs=4"]}, set()),  # the rate of onecycle is yet to fall
        (LEAST, {"epochs": 2, "classes": 10}, {"plateau"}),
        (LEAST, {"epochs": 2, "classes": 10, "overrides": ["train.label_smoothing=0.1"]}, set()),  # there is no less
        (0.02 + STEPS / 1e4, {}, set()),  # it goes on from good weights, and how many classes there are is not said
        (0.02 + STEPS / 500, {}, {"loss rising"}),
        (FALLING, {**THAWED, "epochs": 2}, {"exploding gradients"}),
        (FALLING, {**THAWED, "epochs": 2, "overrides": GRADUAL}, set()),
        (
            np.where(STEPS < 120, FALLING, FALLING[120] + (STEPS - 120) / 80),
            {},
            {"loss rising", "learning rate too high"},
        ),
        (2.3 + STEPS / 20, {}, {"diverging", "learning rate too high"}),
        (np.where(STEPS == 150, np.nan, FALLING), {}, {"diverging"}),
        (spiky(FALLING + 0.5, 3), {}, {"learning rate too high"}),
        (2.3 - STEPS / 400, {"epochs": 1}, {"learning rate too low"}),
        (FALLING, {"norms": spiky(np.ones(200), 30)}, {"exploding gradients"}),
        (FALLING, {"norms": np.exp(STEPS / 50)}, {"exploding gradients"}),
        (FALLING, {"norms": np.exp(-STEPS / 50)}, set()),
    ],
)
def test_shapes_of_curves(tmp_path, losses, more, expected):
    _, facts = write(tmp_path, losses, **more)
    assert named(facts) - {"overfitting", "underfitting"} == expected, diagnose.table(facts)
    known = recipe.load("digits", [*OWN, f"train.epochs={max(more.get('epochs', 0), 1)}"])
    for finding in facts["findings"]:
        for advice in finding["advice"]:
            assert not advice["settings"] or recipe.override(known, advice["settings"]) != known


def test_a_layer_is_drawn_from_the_step_on_from_which_it_was_trained(tmp_path, monkeypatch):
    from visualdl import LogWriter

    writer = LogWriter(logdir=str(tmp_path), file_name=records.FILE)
    for i in range(1, 201):
        writer.add_scalar("train/loss", 1 / i, i)
        for name, first in (("block 2", 1), ("head", 1), ("block 10", 51), ("stem", 101)):
            if i >= first and i % 10 == 1:
                writer.add_scalar(f"{records.LAYERS}/{name}", 1.0, i)
    writer.close()
    evidence, drawn = gather(tmp_path), []
    steps = {name: (at[0], at[-1]) for name, at in evidence.layer_steps.items()}
    assert steps == {"head": (1, 191), "block 2": (1, 191), "block 10": (51, 191), "stem": (101, 191)}
    assert list(evidence.layers) == list(evidence.layer_steps) == ["stem", "block 2", "block 10", "head"]
    monkeypatch.setattr(diagnose.figures, "save", lambda figure, path: drawn.append(figure))
    diagnose.draw(evidence, diagnose.describe(evidence), "x.png")
    lines = {line.get_label(): line.get_xdata() for axes in drawn[0].axes for line in axes.lines}
    np.testing.assert_array_equal(lines["stem"], evidence.layer_steps["stem"])
    np.testing.assert_array_equal(lines["head"], evidence.layer_steps["head"])


def test_what_is_not_recorded_is_not_judged(tmp_path):
    _, facts = write(tmp_path, FALLING[:10])
    reasons = {item["disease"]: item["reason"] for item in facts["not_judged"]}
    assert facts["findings"] == [] and facts["nothing_found"] == []
    assert reasons["plateau"] == "the run has 10 steps; a trend takes 20"
    assert reasons["overfitting"] == "the records have no curve eval/loss"
    assert reasons["dead units"] == "there are records only, no network"
    assert reasons["vanishing gradients"] == "the records have no curves gradient norm/..."
    assert reasons["data loader starving"] == "the records have no curve train/waiting"
    assert reasons["class imbalance"] == "there are records only, no pictures.csv"


def test_a_run_under_way_is_not_called_underfitting(tmp_path):
    _, facts = write(tmp_path, FALLING, epochs=2, overrides=["train.epochs=4"])
    reasons = {item["disease"]: item["reason"] for item in facts["not_judged"]}
    assert reasons["underfitting"] == reasons["learning rate too low"] == "the run is not at its end: 2 of 4 epochs"


def test_without_plain_training_pictures_a_small_gap_proves_nothing(tmp_path):
    """With augmentation, the accuracy in training is a lower bound only; a large gap still is one."""
    _, facts = write(tmp_path / "a", FALLING, epochs=2)
    reasons = {item["disease"]: item["reason"] for item in facts["not_judged"]}
    assert reasons["overfitting"] == "training pictures were only seen augmented: there are records only, no network"
    evidence, _ = write(tmp_path / "b", FALLING, epochs=2)
    told = evidence.evaluations
    sure = Evaluations(told.ends, told.loss, told.top1, told.train_loss, np.full(2, 0.99), told.best)
    found = diseases.overfitting(Evidence("x", evidence.gaps, recipe=evidence.recipe, evaluations=sure))
    assert "50.00 % of the validation pictures are told right, 99.00 % of the training pictures" in found.evidence[0]


def test_a_validation_loss_that_rises_is_overfitting():
    ends, falling = np.arange(1, 7), np.linspace(1, 0.2, 6)
    rising = np.array([1.0, 0.8, 0.7, 0.8, 0.85, 0.9])
    told = Evaluations(ends, rising, np.full(6, 0.7), falling, np.full(6, 0.7), 2)
    found = diseases.overfitting(Evidence("x", {}, evaluations=told))
    assert found.evidence == (
        "the validation loss rose from 0.7 in epoch 3 to 0.9 at last, while the training loss fell from 0.68 to 0.2",
    )


def test_a_validation_loss_that_is_no_number_is_never_the_lowest(tmp_path):
    losses = np.where(STEPS == 99, np.nan, FALLING)  # at the end of the first of two epochs
    evidence, facts = write(tmp_path, losses, epochs=2, overrides=["train.monitor=loss"])
    assert np.isnan(evidence.evaluations.loss[0]) and evidence.evaluations.best == 1 and facts["best_epoch"] == 2
    rising = np.array([np.nan, 0.8, 0.7, 0.8, 0.85, 0.9])
    told = Evaluations(np.arange(1, 7), rising, np.full(6, 0.7), np.linspace(1, 0.2, 6), np.full(6, 0.7), 2)
    found = diseases.overfitting(Evidence("x", {}, evaluations=told))
    assert found.evidence[0].startswith("the validation loss rose from 0.7 in epoch 3 to 0.9 at last")


def test_a_gap_within_the_error_of_a_sample_is_none():
    told = Evaluations(np.array([1, 2]), np.ones(2), np.full(2, 0.89), np.ones(2), np.full(2, 0.9), 1)
    probabilities = np.tile([0.9, 0.1], (1000, 1))
    labels = (np.arange(1000) < 36).astype(int)  # 96.4 % right: a gap of two thirds, and a standard error of 0.6 %
    for total, expected in ((50_000, False), (1000, True)):
        found = Examination(("x",) * 1000, labels, probabilities, total, (), 0.9, 0.9, 256)
        finding = diseases.overfitting(Evidence("x", {}, evaluations=told, examination=found))
        assert (finding is not None) is expected


def test_dead_units_are_counted_against_the_median_channel():
    ones = np.ones(20)
    norm = Norm("stem", ones, ones, ones, np.where(np.arange(20) < 3, 1e-5, 1.0), ones)  # spread 0.003
    examination = type("Found", (), {"norms": [norm], "batch": 256})()
    found = diseases.dead_units(Evidence("x", {}, examination=examination))
    assert found.evidence[0].startswith(
        "stem: 3 of 20 channels hardly vary over 256 training pictures, such as 0, 1, 2"
    )
    norm = Norm("stem", ones, ones, ones, np.where(np.arange(20) < 2, 1e-5, 1.0), ones)
    assert diseases.dead_units(Evidence("x", {}, examination=type("F", (), {"norms": [norm], "batch": 256})())) is None


# --- advice ----------------------------------------------------------------------------------------------


def test_every_remedy_is_taken_by_some_recipe_and_none_is_refused_for_its_form():
    """What a recipe refuses is left out of the advice; a misspelt key would always be."""
    taken, offered = set(), set()
    shipped_recipes = [recipe.load(file) for file in sorted(shipped("configs").glob("*.yaml"))]
    constant = recipe.load("digits", ["schedule.name=constant", "model.drop_rate=0.1", "train.label_smoothing=0.1"])
    steps = recipe.load("digits", ["schedule={name: step, every: 2}", "augment.mixup=0.2", "augment.mix_prob=0.5"])
    for settings in (*shipped_recipes, constant, steps):
        evidence = Evidence("x", {}, recipe=settings, norms=np.full(30, 0.3))
        advice = [
            *(*remedies.calmer(evidence, 3), *remedies.longer(evidence), *remedies.capacity(evidence)),
            *(*remedies.augment(evidence), *remedies.regularise(evidence)),
            *(remedies.Advice("", remedies.falling(evidence)), remedies.Advice("", remedies.more_steps(evidence))),
            remedies.Advice("", remedies.shape(evidence, depth=0.5)),
        ]
        for item in advice:
            keys = {text.partition("=")[0] for text in item.settings or ()}
            offered |= keys
            if diagnose._accepted(settings, item):
                taken |= keys
    assert taken == offered and len(taken) > 20


# --- the command -----------------------------------------------------------------------------------------


def test_inspect_diagnose(sick, tmp_path, capsys):
    folder, evidence, facts = sick("overfitting")
    assert run("inspect", "diagnose", folder, "--output", tmp_path / "a.png", "--limit", "0") == 0
    text = capsys.readouterr().out
    assert text == diagnose.table(facts) + "\n"
    assert "found: overfitting\n" in text and "try -o augment.randaugment=n2-m12   (" in text
    assert f"ppconvmixer finetune -c {folder}/recipe.yaml -o KEY=VALUE" in text
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).reshape(-1, 3)
    for colour in ((0x1F, 0x77, 0xB4), (0xD9, 0x5F, 0x02)):  # training and validation
        assert (np.abs(pixels.astype(int) - colour).max(axis=1) < 3).sum() > 100
    assert run("inspect", "diagnose", folder / "visualdl", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == facts["steps"] and "dead units" in {item["disease"] for item in found["not_judged"]}
    assert run("inspect", "diagnose", folder / "visualdl" / records.FILE, "--output", tmp_path / "b.svg") == 0
    assert (tmp_path / "b.svg").read_bytes().startswith(b"<?xml")


def test_the_advice_names_the_recipe_that_is_there(sick, tmp_path):
    folder, _, _ = sick("too high")
    for path in (folder, folder / "visualdl", folder / "visualdl" / records.FILE):
        told = diagnose.table(diagnose.describe(gather(path)))
        assert f"ppconvmixer finetune -c {shlex.quote(str(folder / 'recipe.yaml'))} -o" in told
    alone = shutil.copytree(folder / "visualdl", tmp_path / "a/b/c")
    assert "ppconvmixer finetune -c RECIPE -o" in diagnose.table(diagnose.describe(gather(alone)))


def test_pictures_that_moved_are_said_to_be_missing_and_found_with_data(sick, tmp_path, capsys):
    folder, _, _ = sick("large pictures")
    moved = folder.parent / "moved"
    (folder.parent / "large").rename(moved)
    try:
        missing = diagnose.describe(gather(folder))
        reasons = {item["disease"]: item["reason"] for item in missing["not_judged"]}
        assert reasons["dead units"].startswith("the training pictures are not at hand: ")
        assert reasons["dead units"].endswith("say where with --data")
        assert gather(folder, str(moved)).examination.total == 22
        (moved / "train/b/1.jpg").rename(moved / "train/b/2.jpg")
        message = refused(capsys, "inspect", "diagnose", folder, "--data", moved)
        assert "they are not those of the run (pictures: 1 added (such as train train/b/2.jpg), 1 removed" in message
        (moved / "train/b/2.jpg").rename(moved / "train/b/1.jpg")
    finally:
        moved.rename(folder.parent / "large")


def test_what_cannot_be_diagnosed_is_refused(sick, tmp_path, capsys):
    folder, _, _ = sick("healthy")
    assert "there is no run" in refused(capsys, "inspect", "diagnose", tmp_path / "none")
    assert "holds no run: neither visualdl/vdlrecords.run.log nor" in refused(capsys, "inspect", "diagnose", tmp_path)
    (tmp_path / "x.log").write_bytes(b"\xff" * 1000)
    assert "holds no curves" in refused(capsys, "inspect", "diagnose", tmp_path / "x.log")
    assert "name a file ending in .png" in refused(capsys, "inspect", "diagnose", folder, "--output", "x.txt")
    assert "leave --data out" in refused(capsys, "inspect", "diagnose", folder, "--data", tmp_path)
    assert "is no run folder" in refused(capsys, "inspect", "diagnose", folder / "visualdl", "--data", tmp_path)


@pytest.mark.parametrize("topk", [(1,), (1, 2)], ids=["acc", "acc_top1"])
def test_the_records_of_paddles_own_callback_are_judged(tmp_path, topk):
    """A linear network learns 64 random pictures by heart, and nothing about 64 others."""
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((2, 64, 300)).astype(np.float32), rng.integers(0, 3, (2, 64))
    paddle.seed(0)
    model = paddle.Model(paddle.nn.Linear(300, 3))
    optimizer = paddle.optimizer.Adam(0.01, parameters=model.parameters())
    model.prepare(optimizer, paddle.nn.CrossEntropyLoss(), paddle.metric.Accuracy(topk))
    train, val = (paddle.io.TensorDataset(list(map(paddle.to_tensor, part))) for part in zip(images, labels[..., None]))
    writer = paddle.callbacks.VisualDL(str(tmp_path))
    model.fit(train, val, batch_size=16, epochs=12, verbose=0, shuffle=False, callbacks=[writer])
    facts = diagnose.describe(gather(tmp_path))
    told = gather(tmp_path).evaluations
    assert told.ends.tolist() == list(range(4, 52, 4)) and facts["steps"] == 48
    assert told.train_top1[-1] == 1.0 and facts["top1"] == told.top1.max() < 0.7
    assert "overfitting" in {finding["disease"] for finding in facts["findings"]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("part,label,path\ntrain,0,a.png\ntrain\n", "line 3 is not of the form part,label,path"),
        ("part,label,path\ntrain,zero,a.png\n", "invalid literal for int"),
        (f"part,label,path\ntrain,{10**30},a.png\n", "line 2 has the label 1000000"),
        (f"part,label,path\ntrain,0,{'a' * 200_000}\n", "field larger than field limit"),
        ("", "it lists no training pictures"),
    ],
    ids=["cut off", "no number", "too large", "too long", "empty"],
)
def test_a_damaged_list_of_pictures_leaves_a_gap(tmp_path, text, reason):
    write(tmp_path / "visualdl", FALLING)
    (tmp_path / "pictures.csv").write_text(text)
    (tmp_path / "recipe.yaml").write_text(recipe.load("digits").to_yaml())
    (tmp_path / "best.pdparams").write_bytes(b"")
    found = gather(tmp_path)
    assert found.counts is None and found.gaps["counts"].startswith(f"pictures.csv cannot be read: {reason}")
    assert "they are not those of the run" in found.gaps["examination"]


def test_records_that_cannot_be_read_are_named(tmp_path, capsys, monkeypatch):
    def read(self):
        raise PermissionError(13, "Permission denied", str(self.file))

    (tmp_path / "vdlrecords.1.log").write_bytes(b"")
    monkeypatch.setattr(records.Records, "read", read)
    said = refused(capsys, "inspect", "diagnose", tmp_path)
    assert f"cannot read {tmp_path / 'vdlrecords.1.log'}: Permission denied; give the folder of a run" in said


def test_an_accuracy_that_is_no_number_is_left_open(tmp_path):
    evidence, facts = write(tmp_path, FALLING, epochs=2, top1=np.nan)
    assert np.isnan(evidence.evaluations.top1).all() and facts["top1"] is None
    json.dumps(facts, allow_nan=False)
    assert "with top-1" not in diagnose.table(facts)


# --- what a run records for it ---------------------------------------------------------------------------


def test_going_on_records_what_an_unbroken_run_does(digits, tmp_path, monkeypatch):
    import os

    file = digits("resume.txt", range(160))
    own = [*OWN, "train.epochs=4", f"data.path={file.parent}", f"data.train={file}", "data.dataset=list"]
    settings = recipe.load("digits", [*own, "train.batch_size=16", "data.val_fraction=0.2"])
    finetune.finetune(settings, tmp_path / "whole")
    original, calls = callbacks.Count.on_train_batch_end, []

    def watch(self, *args):
        calls.append(1)
        if len(calls) == 21:  # a step with a point of the layers' curves, in the third epoch
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(callbacks.Count, "on_train_batch_end", watch)
        finetune.finetune(settings, tmp_path / "run")
    finetune.finetune(settings, tmp_path / "run", resume=True)
    whole, broken = (gather(tmp_path / name) for name in ("whole", "run"))
    assert set(whole.layers) == set(broken.layers) == {"stem", "block 0", "block 1", "head"}
    for name, values in whole.layers.items():
        np.testing.assert_array_equal(broken.layers[name], values)
        assert len(values) == 4  # after steps 1, 11, 21 and 31 of 32
    assert len(broken.waiting) == len(whole.waiting) == 4
    total = np.sqrt(sum(values**2 for values in whole.layers.values()))
    np.testing.assert_allclose(total, whole.norms[[0, 10, 20, 30]], rtol=1e-5)


def test_a_run_that_goes_on_is_no_longer_said_to_have_broken(sick, tmp_path):
    folder, _, facts = sick("too low")
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run/not_finite.txt").write_text("1.png\n")
    assert "diverging" in named(diagnose.describe(gather(tmp_path / "run")))
    finetune.finetune(recipe.load(folder / "recipe.yaml"), tmp_path / "run", resume=True)
    assert "diverging" not in named(diagnose.describe(gather(tmp_path / "run")))


def test_the_time_a_step_waits_is_that_of_its_pictures():
    from ppconvmixer.phases import Epochs

    class Slow:
        current = np.arange(2)

        def __len__(self):
            return 3

        def __iter__(self):
            for _ in range(3):
                time.sleep(0.05)
                yield [np.zeros((2, 3, 4, 4), np.float32), np.zeros(2, np.int64)]

    epochs = Epochs([Slow()], accumulate=2)
    waited = []
    for _ in epochs:
        waited.append(epochs.waited)
        time.sleep(0.2)  # training, which does not count
    assert len(waited) == 2 and 0.1 <= waited[0] < 0.2 and 0.05 <= waited[1] < 0.15
