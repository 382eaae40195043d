import csv
import gzip
import io
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from conftest import ROOT, picture
from PIL import Image

from ppconvmixer import UserError, datasets, sources


def test_class_folders(class_folders):
    found = datasets.from_folders(sources.Folder(class_folders), "train")
    assert found.classes == ("cat", "dog", "owl") and len(found) == 24
    assert found.names[9] == "train/dog/dog 1.png" and found.labels[9] == 1
    assert found.fetch(9) == (class_folders / "train/dog/dog 1.png").read_bytes()


def test_class_folders_in_the_order_of_given_classes(class_folders):
    source = sources.Folder(class_folders / "train")
    found = datasets.from_folders(source, classes=["owl", "bat", "cat", "dog"])
    assert dict(zip((n.split("/")[0] for n in found.names), found.labels)) == {"cat": 2, "dog": 3, "owl": 0}
    with pytest.raises(UserError, match="class 'owl'"):
        datasets.from_folders(source, classes=["cat", "dog"])


def test_things_that_are_no_pictures_are_left_alone(tmp_path):
    for name in ("a/x.png", "a/notes.txt", "a/.hidden.png", "top.png", "b/deep/y.JPEG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert datasets.from_folders(sources.Folder(tmp_path)).names == ["a/x.png", "b/deep/y.JPEG"]
    with pytest.raises(UserError, match="no class folders"):
        datasets.from_folders(sources.Folder(tmp_path), "a/deeper")


def test_a_class_of_pictures_that_are_not_read_does_not_go_missing(tmp_path, caplog):
    for name in ("p/cat/x.png", "p/dog/y.heic", "p/dog/z.mov", "p/.git/z", "p/notes.txt", "p/about/cats.xml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        UserError, match="the folder dog of .* holds no pictures that are read, only such as p/dog/y.heic"
    ):
        datasets.from_folders(sources.Folder(tmp_path), "p")
    with pytest.raises(UserError, match="the folder dog of .*, only such as dog/y.heic; convert them"):
        datasets.from_folders(sources.Folder(tmp_path / "p"), classes=["cat", "dog"])
    assert datasets.from_folders(sources.Folder(tmp_path / "p"), classes=["cat"]).names == ["cat/x.png"]
    for name in ("y.heic", "z.mov"):
        (tmp_path / "p/dog" / name).unlink()
    assert datasets.from_folders(sources.Folder(tmp_path / "p")).classes == ("cat",)
    assert "about holds no pictures, and is no class: it has about/cats.xml" in caplog.text


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", ", "  "])
def test_lists_of_every_separator_and_paths_with_blanks(class_folders, tmp_path, separator):
    names = ["train/cat/cat 0.png", "val/owl/owl 3.png"]
    text = "\ufeff" + "".join(f"{name}{separator}{label}\r\n" for name, label in zip(names, (0, 12)))
    (tmp_path / "list.txt").write_text(text + "\n", "utf-8")
    found = datasets.from_list(sources.Folder(class_folders), tmp_path / "list.txt")
    assert found.names == names and found.labels.tolist() == [0, 12]
    assert found.fetch(1) == (class_folders / names[1]).read_bytes()


@pytest.mark.parametrize("line", ["train/cat/cat 0.png", "train/cat/cat 0.png -1", "5", "a.png 1.5", "x.png label"])
def test_a_line_without_a_label_is_named(class_folders, tmp_path, line):
    (tmp_path / "list.txt").write_text(f"train/cat/cat 0.png 0\n{line}\n")
    with pytest.raises(UserError, match="list.txt, line 2"):
        datasets.from_list(sources.Folder(class_folders), tmp_path / "list.txt")


def test_a_list_of_other_pictures_is_refused_at_once(class_folders, tmp_path):
    (tmp_path / "list.txt").write_text("elsewhere/a.jpg 0\n")
    with pytest.raises(UserError, match=r"none of the 1 pictures of .*list.txt is in .*begins with elsewhere/a.jpg"):
        datasets.from_list(sources.Folder(class_folders), tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(UserError, match="names no pictures"):
        datasets.from_list(sources.Folder(class_folders), tmp_path / "list.txt")


def test_labels_outside_the_head_are_named(class_folders, tmp_path):
    (tmp_path / "list.txt").write_text("train/cat/cat 0.png 0\ntrain/cat/cat 1.png 10\n")
    found = datasets.from_list(sources.Folder(class_folders), tmp_path / "list.txt")
    with pytest.raises(UserError, match=r"cat 1.png has the label 10, but the model has 10 classes.*1 of 2"):
        found.check_labels(10)
    found.check_labels(11)


def write_csv(path, rows):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


def test_csv_with_names_and_with_numbers(class_folders, tmp_path):
    source = sources.Folder(class_folders)
    rows = [("path", "label"), ("train/cat/cat 0.png", "cat"), ("train/owl/owl 0.png", "a, b")]
    found = datasets.from_csv(source, write_csv(tmp_path / "a.csv", rows))
    assert found.classes == ("a, b", "cat") and found.labels.tolist() == [1, 0]
    rows = [("label", "path", "who"), ("4", "train/cat/cat 0.png", "me")]
    found = datasets.from_csv(source, write_csv(tmp_path / "b.csv", rows))
    assert found.classes is None and found.labels.tolist() == [4]
    with pytest.raises(UserError, match="no column 'path'"):
        datasets.from_csv(source, write_csv(tmp_path / "c.csv", [("file", "label"), ("a", "b")]))
    with pytest.raises(UserError, match="line 2: path or label is missing"):
        datasets.from_csv(source, write_csv(tmp_path / "d.csv", [("path", "label"), ("a.png", "")]))


def make_tar(path, folder, mode="w"):
    with tarfile.open(path, mode) as archive:
        archive.add(folder, ".")
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_a_tar_is_read_like_the_folder(class_folders, tmp_path, suffix):
    path = make_tar(tmp_path / f"p.tar{suffix}", class_folders, f"w:{suffix[1:]}")
    folder, archive = sources.Folder(class_folders), sources.Tar(path)
    assert archive.names() == folder.names()
    for name in folder.names():
        assert archive.read(name) == folder.read(name)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


def test_a_list_finds_its_pictures_in_a_flat_tar(class_folders, tmp_path):
    """The validation archive has no folders, lists often say val/NAME."""
    path = make_tar(tmp_path / "val.tar", class_folders / "val/cat")
    (tmp_path / "list.txt").write_text("val/cat 2.png 7\ncat 0.png 1\n")
    found = datasets.from_list(sources.open_source(path), tmp_path / "list.txt")
    assert found.fetch(0) == (class_folders / "val/cat/cat 2.png").read_bytes()


def test_an_ambiguous_file_name_is_not_guessed(tmp_path):
    for name in ("a/x.png", "b/x.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        (tmp_path / "in" / name).write_bytes(name.encode())
    archive = sources.Tar(make_tar(tmp_path / "p.tar", tmp_path / "in"))
    assert archive.find("c/x.png") is None and archive.find("a/x.png") == "a/x.png"


def test_a_picture_that_lies_in_another_folder_is_another(class_folders, tmp_path):
    """A dog must not be judged as the cat of its file name, which the archive lacks."""
    archive = sources.Tar(make_tar(tmp_path / "p.tar", class_folders / "val"))
    assert archive.find("cat/dog 1.png") is None and archive.find("og/dog 1.png") is None
    for name in ("dog 1.png", "dog/dog 1.png", "val/dog/dog 1.png", "./dog/dog 1.png"):
        assert archive.find(name) == "dog/dog 1.png", name


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_links_in_a_tar(class_folders, tmp_path, suffix, caplog):
    """A second name of a file is one more picture, a link to somewhere is none, and nothing goes missing in silence."""
    first = class_folders / "val/cat/cat 0.png"
    with tarfile.open(tmp_path / f"p.tar{suffix}", f"w:{suffix[1:]}") as archive:
        archive.add(first, "cat/a.png")
        member = tarfile.TarInfo("./dog/b.png")
        member.type, member.linkname = tarfile.LNKTYPE, "cat/a.png"
        archive.addfile(member)
    found = sources.Tar(tmp_path / f"p.tar{suffix}")
    assert found.names() == ["cat/a.png", "dog/b.png"] and found.read("dog/b.png") == first.read_bytes()
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        with tarfile.open(tmp_path / "q.tar", "w") as archive:
            member = tarfile.TarInfo("dog/b.png")
            member.type, member.linkname = kind, "../etc/passwd"
            archive.addfile(member)
        assert sources.Tar(tmp_path / "q.tar").names() == []
        assert "1 members are links, such as 'dog/b.png', and are left out" in caplog.text
        caplog.clear()


def test_tars_that_are_none(tmp_path):
    (tmp_path / "p.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match="cannot read the archive"):
        sources.open_source(tmp_path / "p.tar")
    with pytest.raises(UserError, match="nothing at"):
        sources.open_source(tmp_path / "missing")
    with pytest.raises(UserError, match="no folder"):
        sources.Folder(tmp_path / "missing")


def test_members_that_would_escape_are_only_read(tmp_path):
    with tarfile.open(tmp_path / "p.tar", "w") as archive:
        for name in ("../escape.png", "/absolute.png"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    found = sources.Tar(tmp_path / "p.tar")
    assert found.read("../escape.png") == b"abc"
    assert "link.png" not in found.names()
    assert not (tmp_path.parent / "escape.png").exists()


def cifar_folder(root, protocol=2, per_batch=20):
    rng = np.random.default_rng(0)
    root.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        data = rng.integers(0, 256, (per_batch, 3072), np.uint8)
        labels = rng.integers(0, 10, per_batch).tolist()
        tree = {b"batch_label": name.encode(), b"labels": labels, b"data": data, b"filenames": [b"x.png"] * per_batch}
        (root / name).write_bytes(pickle.dumps(tree, protocol=protocol))
    return root


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar10(tmp_path, archive, protocol):
    root = cifar_folder(tmp_path / "cifar-10-batches-py", protocol)
    path = make_tar(tmp_path / "cifar-10-python.tar.gz", tmp_path / "cifar-10-batches-py", "w:gz") if archive else root
    train, test = (
        datasets.cifar10(sources.open_source(path), "train"),
        datasets.cifar10(sources.open_source(path), "test"),
    )
    assert (len(train), len(test)) == (100, 20) and train.classes == datasets.CIFAR10_CLASSES
    raw = pickle.loads((root / "data_batch_2").read_bytes())
    np.testing.assert_array_equal(train.fetch(23), raw[b"data"][3].reshape(3, 32, 32).transpose(1, 2, 0))
    assert train.labels[23] == raw[b"labels"][3]


def test_cifar10_as_jpegs_in_folders(tmp_path):
    root = cifar_folder(tmp_path / "c")
    command = [sys.executable, ROOT / "tools/cifar10_jpegs.py", root, tmp_path / "jpegs", "--each", "2"]
    assert subprocess.run(command, capture_output=True).returncode == 0
    labels = pickle.loads((root / "test_batch").read_bytes())[b"labels"]
    written = datasets.from_folders(sources.open_source(tmp_path / "jpegs"), "test")
    assert written.classes == datasets.CIFAR10_CLASSES
    assert np.bincount(written.labels, minlength=10).tolist() == [min(2, labels.count(label)) for label in range(10)]
    label, pixels = labels[1], datasets.cifar10(sources.open_source(root), "test").fetch(1)
    again = Image.open(tmp_path / f"jpegs/test/{datasets.CIFAR10_CLASSES[label]}/{labels[:1].count(label):04}.jpg")
    Image.fromarray(pixels).save(tmp_path / "expected.jpg", quality=75)
    np.testing.assert_array_equal(np.asarray(again), np.asarray(Image.open(tmp_path / "expected.jpg")))
    refused = subprocess.run(command, capture_output=True, text=True)
    assert (
        refused.returncode == 2
        and "name a folder that is not there yet" in refused.stderr
        and "Traceback" not in refused.stderr
    )


def test_cifar10_as_python_2_pickled_it(tmp_path):
    """The published batches: text keys and the pixels as a byte string of Python 2."""
    root = cifar_folder(tmp_path / "c")
    raw = bytes(range(256)) * 12
    batch = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b"
        b"\x87Rq\x05(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff"
        b"\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00" + raw + b"tbU\x06labelsq\x08]q\tK\x06au."
    )
    (root / "test_batch").write_bytes(batch)
    found = datasets.cifar10(sources.open_source(root), "test")
    assert found.labels.tolist() == [6]
    np.testing.assert_array_equal(found.fetch(0).transpose(2, 0, 1).reshape(-1), np.frombuffer(raw, np.uint8))


class Trap:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    "tree",
    [
        {"data": Trap(), "labels": []},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [1]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [1, 10]},
        {"data": np.zeros((2, 3072), np.float32), "labels": [1, 2]},
        {"data": np.zeros((2, 100), np.uint8), "labels": [1, 2]},
        [1, 2],
    ],
)
def test_cifar_batches_that_are_none(tmp_path, tree, capsys):
    root = cifar_folder(tmp_path / "c")
    (root / "test_batch").write_bytes(pickle.dumps(tree, 2))
    with pytest.raises(UserError, match="test_batch"):
        datasets.cifar10(sources.open_source(root), "test")
    assert capsys.readouterr().out == ""
    (root / "test_batch").unlink()
    with pytest.raises(UserError, match="holds no test_batch"):
        datasets.cifar10(sources.open_source(root), "test")


def test_digits():
    found = datasets.digits()
    assert len(found) == 1797 and found.fetch(0).shape == (8, 8, 3) and found.fetch(0).dtype == np.uint8
    assert found.fetch(0).max() == 239  # 15 of 16 grey levels, spread over 255
    assert np.bincount(found.labels).min() >= 174


def test_holding_out_is_by_class_and_by_seed():
    pictures = datasets.digits()
    train, held = datasets.hold_out(pictures, 0.25, seed=0)
    assert len(train) + len(held) == 1797 and not set(train.names) & set(held.names)
    counts = np.bincount(pictures.labels)
    assert np.abs(np.bincount(held.labels) - counts / 4).max() <= 0.5
    again, other = datasets.hold_out(pictures, 0.25, seed=0)[1], datasets.hold_out(pictures, 0.25, seed=1)[1]
    assert held.names == again.names and held.names != other.names
    index = pictures.names.index(held.names[7])
    np.testing.assert_array_equal(held.fetch(7), pictures.fetch(index))
    assert held.labels[7] == pictures.labels[index]


def test_a_class_of_one_cannot_be_held_out(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(0).save(tmp_path / name)
    with pytest.raises(UserError, match="class b has one picture"):
        datasets.hold_out(datasets.from_folders(sources.Folder(tmp_path)), 0.2, 0)


def test_class_names_from_a_file(tmp_path):
    (tmp_path / "c.txt").write_text("cat\n\n dog \n")
    assert datasets.read_classes(tmp_path / "c.txt") == ("cat", "dog")
    (tmp_path / "c.txt").write_text("cat\ncat\n")
    with pytest.raises(UserError, match="'cat' twice"):
        datasets.read_classes(tmp_path / "c.txt")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        datasets.read_classes(tmp_path / "c.txt")


def test_folders_that_are_links_are_gone_into_once(tmp_path, caplog):
    for name in ("pictures/cat/a.png", "elsewhere/b.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "pictures/dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pictures/cat/up").symlink_to(tmp_path / "pictures")
    (tmp_path / "pictures/gone.png").symlink_to(tmp_path / "nothing")
    assert sources.Folder(tmp_path / "pictures").names() == ["cat/a.png", "dog/b.png"]
    assert "1 links lead nowhere, such as 'gone.png', and are left out" in caplog.text


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def denied(folder):
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(sources.os, "scandir", denied)
    with pytest.raises(UserError, match=f"cannot read the folder {tmp_path}: Permission denied"):
        sources.Folder(tmp_path).names()


def test_a_link_to_itself_is_named(tmp_path):
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(UserError, match=f"cannot read {tmp_path / 'round'}: Too many levels"):
        sources.Folder(tmp_path).names()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_tar_that_is_damaged_or_cut_does_not_lose_pictures_in_silence(tmp_path, suffix, caplog):
    """Python's tarfile takes a header that is none for the end."""

    def packed(content):
        path = tmp_path / f"p.tar{suffix}"
        path.write_bytes(gzip.compress(content) if suffix else content)
        return path

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for i in range(5):
            member = tarfile.TarInfo(f"cat/{i}.png")
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    content = stream.getvalue()
    assert len(sources.Tar(packed(content)).names()) == 5 and not caplog.text
    with pytest.raises(UserError, match="it is damaged at byte 2,048"):
        sources.Tar(packed(content[:2050] + b"?" + content[2051:]))
    assert len(sources.Tar(packed(content[:2048])).names()) == 2
    assert "has no end; what came behind 2 members may be lost" in caplog.text


def test_links_that_lead_to_the_same_folder_again_and_again_are_refused(tmp_path):
    for i in range(30):
        (tmp_path / f"d{i}").mkdir()
        if i:
            for name in "ab":
                (tmp_path / f"d{i - 1}" / name).symlink_to(tmp_path / f"d{i}")
    with pytest.raises(UserError, match="more than 1,000 times; take some out"):
        sources.Folder(tmp_path / "d0").names()
