import json
import re
import tarfile

import numpy as np
import pytest
from conftest import picture, random_state, refused, run

from ppconvmixer import UserError, card, checkpoint, datasets, evaluate, files, labels, sources, zoo
from ppconvmixer.loader import Samples
from ppconvmixer.transforms import eval_transform

SPEC = zoo.InputSpec(16, 1.0, "bilinear", (0, 0, 0), (1, 1, 1))
IDS = [f"n{i:08}" for i in range(1_000_000, 1_000_012)]  # twelve classes, in the order of their labels
REAL = [[3], [], [0, 7], [1], [2, 5, 9], [], [11], [4, 4]]


class Engine:
    """Logits that differ with the picture in a known way."""

    name, num_classes = "known", 12

    def __call__(self, images):
        mean = images.mean((1, 2, 3), dtype=np.float64)
        return (5 * np.sin(mean[:, None] * 40 * np.arange(1, 13))).astype(np.float32)


def folders(root, names, each=2):
    for seed, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(each):
            picture(10 * seed + i).save(root / name / f"{i}.jpg")
    return datasets.unlabelled(sources.Folder(root))


@pytest.fixture
def validation(tmp_path):
    """Eight pictures named as ImageNet's validation set."""
    root = tmp_path / "val"
    root.mkdir()
    for i in range(1, 9):
        picture(i).save(root / f"ILSVRC2012_val_{i:08}.JPEG")
    (tmp_path / "real.json").write_text(json.dumps(REAL))
    return root


def evaluated(pictures, engine=None):
    samples = Samples(pictures, eval_transform(SPEC))
    found = evaluate.evaluate(engine or Engine(), samples, 3, 0, keep_logits=True)
    inputs = np.stack([samples.read(i) for i in range(len(pictures))])
    return found, Engine()(inputs).astype(np.float64)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_real_labels_are_judged_as_their_authors_do(validation, tmp_path):
    judged = labels.relabel("real", datasets.unlabelled(sources.Folder(validation)), file=tmp_path / "real.json")
    right = [row for row in REAL if row]
    assert judged.left_out == 2 and judged.chosen is None
    assert [sorted(set(row)) for row in judged.pictures.labels.tolist()] == [sorted(set(row)) for row in right]
    assert [re.findall(r"0(\d)\.", name)[0] for name in judged.pictures.names] == list("134578")
    found, logits = evaluated(judged.pictures)
    rank = np.argsort(-logits, axis=1)
    metrics = found.metrics()
    assert metrics["samples"] == 6
    assert metrics["top1"] == np.mean([row[0] in wanted for row, wanted in zip(rank, right)])
    assert metrics["top5"] == np.mean([bool(set(row[:5]) & set(wanted)) for row, wanted in zip(rank, right)])
    assert 0 < metrics["top5"] < 1  # what is compared differs from picture to picture
    given = [row[sorted(set(wanted))].sum() for row, wanted in zip(softmax(logits), right)]
    np.testing.assert_allclose(found.losses, -np.log(given), rtol=1e-9)


def test_one_label_each_is_judged_as_ever(validation, tmp_path):
    single = datasets.Pictures(
        *(lambda p: (p.names, np.arange(8), None, p.fetch))(datasets.unlabelled(sources.Folder(validation)))
    )
    padded = datasets.Pictures(single.names, np.repeat(single.labels[:, None], 3, 1), None, single.fetch)
    (a, _), (b, _) = evaluated(single), evaluated(padded)
    np.testing.assert_array_equal(a.losses, b.losses)
    assert {k: v for k, v in a.metrics().items() if k != "images_per_second"} == {
        k: v for k, v in b.metrics().items() if k != "images_per_second"
    }


@pytest.mark.parametrize("archive", [False, True])
def test_the_folders_of_v2_are_numbers(tmp_path, archive):
    folders(tmp_path / "set" / "v2", ["0", "1", "2", "10", "11"])
    source = sources.Folder(tmp_path / "set")
    if archive:
        with tarfile.open(tmp_path / "v2.tar", "w") as tar:
            tar.add(tmp_path / "set" / "v2", "imagenetv2-matched-frequency-format-val")
        source = sources.open_source(tmp_path / "v2.tar")
    found = labels.relabel("v2", datasets.unlabelled(source)).pictures
    assert {name.split("/")[-2]: label for name, label in zip(found.names, found.labels.tolist())} == {
        **{"0": 0, "1": 1, "2": 2, "10": 10, "11": 11}
    }
    assert sorted(found.labels.tolist()) == [0, 0, 1, 1, 2, 2, 10, 10, 11, 11]


def test_a_subset_is_chosen_among_alone(tmp_path):
    chosen = [1, 4, 5, 6, 8, 9, 11]
    pictures = folders(tmp_path / "imagenet-a", [IDS[i] for i in chosen[::-1]])
    names = [f"{wordnet_id} a name, another name" for wordnet_id in IDS]  # as in LOC_synset_mapping.txt
    judged = labels.relabel("a", pictures, names)
    np.testing.assert_array_equal(judged.chosen, chosen)
    assert [IDS[i] for i in judged.pictures.labels] == [name.split("/")[-2] for name in judged.pictures.names]
    found, logits = evaluated(judged.pictures, labels.Restricted(Engine(), judged.chosen))
    among = logits[:, chosen]
    rank = np.argsort(-among, axis=1)
    place = np.array([chosen.index(label) for label in judged.pictures.labels])
    np.testing.assert_array_equal(found.classes, np.array(chosen)[rank[:, :5]])
    metrics = found.metrics()
    assert metrics["top1"] == np.mean(rank[:, 0] == place)
    assert metrics["top5"] == np.mean((rank[:, :5] == place[:, None]).any(1)) < 1
    probabilities = softmax(among)
    np.testing.assert_allclose(found.probabilities, -np.sort(-probabilities, axis=1)[:, :5], rtol=1e-6)
    np.testing.assert_allclose(found.losses, -np.log(probabilities[np.arange(len(place)), place]), rtol=1e-6)
    assert np.isneginf(found.logits[:, [0, 2, 3, 7, 10]]).all()
    np.testing.assert_array_equal(found.logits[:, chosen], among.astype(np.float32))
    whole, _ = evaluated(judged.pictures)
    assert (whole.classes != found.classes).any()  # the choice matters here


def test_averaged_views_of_a_subset_stay_probabilities():
    engine = labels.Restricted(Engine(), np.array([2, 3, 7]))
    images = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
    from ppconvmixer.views import View

    logits = evaluate.see(engine, {16: images, 24: np.full((4, 3, 24, 24), 0.3, np.float32)}, [View(16), View(24)])
    found = evaluate.softmax(logits)
    assert (found[:, [0, 1, 4, 5]] == 0).all()
    expected = (
        softmax(Engine()(images)[:, [2, 3, 7]]) + softmax(Engine()(np.full((4, 3, 2, 2), 0.3))[:, [2, 3, 7]])
    ) / 2
    np.testing.assert_allclose(found[:, [2, 3, 7]], expected, rtol=1e-5)


def test_the_subset_of_a_file_may_have_classes_without_pictures(tmp_path):
    pictures = folders(tmp_path / "r", [IDS[3], IDS[5]])
    text = f"ImageNet-R has n01000000 and others:\n\n{IDS[3]} one\n{IDS[5]} another\n{IDS[2]} a third\n"
    (tmp_path / "README.txt").write_text(text)
    judged = labels.relabel("r", pictures, IDS, tmp_path / "README.txt")
    assert judged.chosen.tolist() == [2, 3, 5] and sorted(judged.pictures.labels) == [3, 3, 5, 5]
    (tmp_path / "README.txt").write_text(f"{IDS[3]}\n")
    with pytest.raises(UserError, match="is of a class that .*README.txt does not name"):
        labels.relabel("r", pictures, IDS, tmp_path / "README.txt")
    (tmp_path / "README.txt").write_text("nothing\n")
    with pytest.raises(UserError, match="no line of .* begins with a WordNet id"):
        labels.relabel("r", pictures, IDS, tmp_path / "README.txt")
    (tmp_path / "README.txt").write_text("n99999999\n")
    with pytest.raises(UserError, match="names n99999999, which is none of the 12 WordNet ids"):
        labels.relabel("r", pictures, IDS, tmp_path / "README.txt")


def test_sketch_chooses_among_all(tmp_path):
    judged = labels.relabel("sketch", folders(tmp_path / "sketch", [IDS[11], IDS[0]]), IDS)
    assert judged.chosen is None and judged.pictures.labels.tolist() == [0, 0, 11, 11]


@pytest.mark.parametrize(
    "text", ["{", "{}", "[]", "[1]", "[[1.5]]", "[[-1]]", "[[true]]", "[" * 100_000, f"[{[1] * 101}]"]
)
def test_what_is_no_list_of_labels_is_refused(validation, tmp_path, text):
    (tmp_path / "real.json").write_text(text)
    with pytest.raises(UserError, match=r"real\.json"):
        labels.relabel("real", datasets.unlabelled(sources.Folder(validation)), file=tmp_path / "real.json")


def test_pictures_that_the_labels_do_not_fit_are_named(validation, tmp_path):
    pictures = datasets.unlabelled(sources.Folder(validation))
    short = tmp_path / "short.json"
    for table, message in (
        ([[1]] * 5, "is number 6, and .* has labels for 1 to 5"),
        ([[]] * 8, "a label for none of the 8"),
    ):
        short.write_text(json.dumps(table))
        with pytest.raises(UserError, match=message):
            labels.relabel("real", pictures, file=short)
    short.write_text(json.dumps([[40]] * 8))
    with pytest.raises(UserError, match="00000001.JPEG has the label 40, but the model has 12 classes"):
        evaluated(labels.relabel("real", pictures, file=short).pictures)
    others = folders(tmp_path / "others", ["cat", "2"])
    with pytest.raises(UserError, match="is not named as ImageNet's validation set"):
        labels.relabel("real", others, file=short)
    with pytest.raises(UserError, match=r"cat/0\.jpg is in no folder that is the number of a class"):
        labels.relabel("v2", others)
    with pytest.raises(UserError, match="in the folder '2', which is none of the 12 WordNet ids"):
        labels.relabel("sketch", others, IDS)
    for names in (("cat", "dog"), (IDS[0], ""), (IDS[0], " ")):
        with pytest.raises(UserError, match="the WordNet ids of the classes are missing"):
            labels.relabel("a", others, names)
    with pytest.raises(UserError, match="--labels-file is missing"):
        labels.relabel("real", pictures)
    with pytest.raises(UserError, match="leave --labels-file out"):
        labels.relabel("v2", others, file=short)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "w.pdparams"
    checkpoint.write(path, random_state(dim=64, depth=4, kernel_size=5, patch_size=4, num_classes=12))
    card.write(path, card.Card(model="convmixer_tiny"))
    return path


def test_eval_by_real(validation, weights, tmp_path, capsys):
    given = ["eval", "--weights", weights, "--data", validation, "--labels", "real", "--workers", 0]
    out = ["--output", tmp_path / "r.json", "--predictions", tmp_path / "p.csv", "--logits", tmp_path / "l.npy"]
    assert run(*given, "--labels-file", tmp_path / "real.json", *out) == 0
    said = capsys.readouterr().out
    assert "6 pictures, labels real (2 pictures without any left out), 0 skipped" in said
    result, right = json.loads((tmp_path / "r.json").read_text()), [row for row in REAL if row]
    best = np.load(tmp_path / "l.npy").argmax(1)
    assert result["top1"] == np.mean([label in wanted for label, wanted in zip(best, right)])
    assert result["labels"] == {
        **{"name": "real", "classes": None, "left_out": 2, "chosen": None, "published": None},
        "file": {"path": str(tmp_path / "real.json"), "sha256": files.sha256(tmp_path / "real.json")},
    }
    rows = [line.split(",")[:2] for line in (tmp_path / "p.csv").read_text().splitlines()]
    assert rows[2] == ["ILSVRC2012_val_00000003.JPEG", "0 7"] and rows[6] == ["ILSVRC2012_val_00000008.JPEG", "4"]
    (tmp_path / "list.txt").write_text("ILSVRC2012_val_00000005.JPEG 1\nILSVRC2012_val_00000002.JPEG 3\n")
    assert run(*given, "--labels-file", tmp_path / "real.json", "--list", tmp_path / "list.txt") == 0
    assert "1 pictures, labels real (1 pictures" in capsys.readouterr().out
    assert "--labels-file is missing" in refused(capsys, *given)
    assert "--labels is missing" in refused(capsys, *given[:5], "--labels-file", tmp_path / "real.json")
    overwrite = ["--labels-file", tmp_path / "real.json", "--output", tmp_path / "real.json"]
    assert "is an input of this command" in refused(capsys, *given, *overwrite)


@pytest.mark.parametrize("name", ["real", "v2", "sketch", "a", "r"])
def test_eval_tells_what_the_published_weights_have(weights, tmp_path, capsys, monkeypatch, name):
    known = zoo.manifest()["convmixer_768_32"]
    assert list(known["top1_by_labels"]) == ["real", "v2", "sketch", "a", "r"]
    monkeypatch.setattr(zoo, "manifest", lambda: {"convmixer_tiny": known})
    (tmp_path / "ids.txt").write_text("".join(f"{wordnet_id} name\n" for wordnet_id in IDS))
    (tmp_path / "real.json").write_text(json.dumps([[1]] * 2))
    given = ["eval", "--weights", weights, "--data", tmp_path / "d", "--labels", name, "--workers", 0]
    if name == "real":
        folders(tmp_path / "d", ["x"], each=1)
        (tmp_path / "d/x/0.jpg").rename(tmp_path / "d/ILSVRC2012_val_00000001.JPEG")
        given += ["--labels-file", tmp_path / "real.json"]
    else:
        folders(tmp_path / "d", ["0", "1"] if name == "v2" else IDS[:2])
        given += [] if name == "v2" else ["--classes", tmp_path / "ids.txt"]
    assert run(*given, "--output", tmp_path / "r.json") == 0
    published = known["top1_by_labels"][name]
    assert json.loads((tmp_path / "r.json").read_text())["labels"]["published"] == published
    assert f"published weights of it have top-1 {100 * published:.2f} % (timm)" in capsys.readouterr().out


def test_eval_on_a_subset(weights, tmp_path, capsys):
    folders(tmp_path / "a", [IDS[i] for i in (0, 2, 3, 5, 7, 11)])
    (tmp_path / "ids.txt").write_text("".join(f"{wordnet_id} name\n" for wordnet_id in IDS))
    given = ["eval", "--weights", weights, "--data", tmp_path / "a", "--labels", "a", "--workers", 0]
    assert run(*given, "--classes", tmp_path / "ids.txt", "--output", tmp_path / "r.json") == 0
    assert "12 pictures, labels a, 6 classes to choose among" in capsys.readouterr().out
    result = json.loads((tmp_path / "r.json").read_text())["labels"]
    assert result["chosen"] == 6 and result["file"] is None
    assert result["classes"]["sha256"] == files.sha256(tmp_path / "ids.txt")
    assert "WordNet ids of the classes are missing" in refused(capsys, *given)
    assert "leave --list out" in refused(capsys, *given, "--list", tmp_path / "ids.txt")
    assert "needs --data" in refused(capsys, *given[:3], "--labels", "a", "-c", "digits")


def test_eval_without_other_labels_says_nothing_of_them(weights, tmp_path):
    folders(tmp_path / "d", [f"class {i:02}" for i in range(12)], each=1)
    assert (
        run("eval", "--weights", weights, "--data", tmp_path / "d", "--workers", 0, "--output", tmp_path / "r.json")
        == 0
    )
    assert "labels" not in json.loads((tmp_path / "r.json").read_text())
