import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from conftest import ROOT

from ppconvmixer import UserError, datasets, loader, sources, transforms, zoo
from ppconvmixer.augment import Augment
from ppconvmixer.loader import Kept, Samples, TrainBatches, batches
from ppconvmixer.transforms import eval_transform, train_transform

SPEC = zoo.InputSpec(16, 1.0, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


@pytest.fixture
def pictures(class_folders):
    return datasets.from_folders(sources.Folder(class_folders), "train")


@pytest.fixture
def with_broken(class_folders, tmp_path):
    """Three good pictures, one cut off, one that is text and one that is missing."""
    good = (class_folders / "train/cat/cat 0.png").read_bytes()
    for i, content in enumerate((good, good[:100], good, b"text", good)):
        (tmp_path / f"{i}.png").write_bytes(content)
    (tmp_path / "list.txt").write_text("".join(f"{i}.png 0\n" for i in range(6)))
    return datasets.from_list(sources.Folder(tmp_path), tmp_path / "list.txt")


def drawn(pictures, workers, epoch=0, seed=3):
    samples = Samples(pictures, train_transform(SPEC, Augment((0.3, 1.0), hflip=0.5)), seed=seed)
    loaded = TrainBatches(samples, 5, workers, epoch)
    return [(images, labels) for images, labels in loaded]


def assert_equal(a, b):
    assert len(a) == len(b)
    for (images, labels), (others, wanted) in zip(a, b):
        np.testing.assert_array_equal(images, others)
        np.testing.assert_array_equal(labels, wanted)


def test_draws_depend_on_seed_epoch_and_index_alone(pictures):
    assert_equal(drawn(pictures, 0), drawn(pictures, 2))
    first, second = drawn(pictures, 0)[0][0], drawn(pictures, 0, epoch=1)[0][0]
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, drawn(pictures, 0, seed=4)[0][0])


def test_every_pass_is_the_next_epoch(pictures):
    samples = Samples(pictures, train_transform(SPEC, Augment((0.3, 1.0))), seed=3)
    loaded = TrainBatches(samples, 5, 0)
    passes = [list(loaded) for _ in range(2)]
    samples = Samples(pictures, train_transform(SPEC, Augment((0.3, 1.0))), seed=3)
    assert_equal(passes[1], list(TrainBatches(samples, 5, 0, epoch=1)))


def test_global_random_state_is_left_alone(pictures):
    np.random.seed(0)
    expected = np.random.RandomState(0).rand()
    drawn(pictures, 0)
    assert np.random.rand() == expected


def test_a_tail_is_left_out_unless_it_is_all(pictures):
    samples = Samples(pictures, train_transform(SPEC, Augment()), seed=0)
    assert [len(labels) for _, labels in TrainBatches(samples, 7, 0)] == [7, 7, 7]
    assert [len(labels) for _, labels in TrainBatches(samples, 100, 0)] == [24]


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_pictures_arrive_marked_and_do_not_hang(with_broken, workers):
    samples = Samples(with_broken, eval_transform(SPEC))
    found = list(batches(samples, range(6), 4, workers))
    assert np.concatenate([b.readable for b in found]).tolist() == [True, False, True, False, True, False]
    assert np.concatenate([b.indices for b in found]).tolist() == list(range(6))
    assert not found[0].images[1].any()


@pytest.mark.parametrize("workers", [0, 2])
def test_all_broken_pictures_are_named_with_their_reason(with_broken, workers):
    samples = Samples(with_broken, eval_transform(SPEC))
    lines = str(loader.broken(samples, workers)).splitlines()
    assert lines[0] == "3 of 6 pictures cannot be read; mend them or take them out:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["1.png", "3.png", "5.png"]
    assert "truncated" in lines[1] and "no picture of a known kind" in lines[2] and "no such file" in lines[3]
    with pytest.raises(
        UserError, match=r"1 of 3 pictures cannot be read: 1\.png: .*truncated.*; mend it or take it out$"
    ):
        raise loader.broken(samples, workers, limit=3)


def test_training_stops_at_broken_pictures_and_names_all(with_broken):
    samples = Samples(with_broken, train_transform(SPEC, Augment()), seed=0)
    with pytest.raises(UserError, match="(?s)3 of 6 pictures cannot be read.*1.png.*3.png.*5.png"):
        list(TrainBatches(samples, 2, 0))


@pytest.mark.parametrize("kind", [".tar", ".tar.gz"])
def test_workers_read_one_tar_together(class_folders, tmp_path, kind):
    import tarfile

    with tarfile.open(tmp_path / f"p{kind}", "w:gz" if kind.endswith("gz") else "w") as archive:
        archive.add(class_folders, ".")
    plain = datasets.from_folders(sources.Folder(class_folders), "train")
    packed = datasets.from_folders(sources.open_source(tmp_path / f"p{kind}"), "train")
    order = list(range(24)) * 4
    a, b = (
        np.concatenate([batch.images for batch in batches(Samples(p, eval_transform(SPEC)), order, 3, workers)])
        for p, workers in ((plain, 0), (packed, 3))
    )
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("workers", [0, 2])
def test_small_pictures_are_decoded_once(with_broken, monkeypatch, workers, tmp_path):
    def decode(data, backend):
        with open(tmp_path / "decoded", "a") as log:  # by whichever process
            log.write("x")
        return transforms.decode(data, backend)

    monkeypatch.setattr(loader, "decode", decode)
    transform = train_transform(SPEC, Augment((0.3, 1.0), hflip=0.5, randaugment="n2-m12"))
    kept = Samples(with_broken, transform, seed=0, kept=Kept(6))
    fresh = Samples(with_broken, transform, seed=0)
    for epoch in range(3):
        found = np.concatenate([batch.images for batch in batches(kept, range(6), 2, workers, epoch)])
        expected = [fresh.read(i, epoch) if i % 2 == 0 else np.zeros((3, 16, 16)) for i in range(6)]
        np.testing.assert_array_equal(found, expected)
    # The three good ones once, the two broken ones (a third is missing) in every epoch; nine times by `fresh`.
    assert (tmp_path / "decoded").read_text().count("x") == 3 + 2 * 3 + 9
    assert len(str(loader.broken(kept, workers)).splitlines()) == 4


def test_large_pictures_are_not_kept(pictures, monkeypatch):
    for room, fit in ((0, True), (-1, False)):
        monkeypatch.setattr(loader, "KEPT_BYTES", 24 * (52 * 44 * 3 + room))
        kept = Kept(24)
        list(batches(Samples(pictures, eval_transform(SPEC), kept=kept), range(24), 5, 0))
        assert [kept.get(i) is not None for i in range(24)] == [fit] * 24


class Spoilt:
    """Pictures of which one does something to the process that reads it."""

    def __init__(self, pictures, index, deed):
        self.pictures, self.index, self.deed = pictures, index, deed

    def __call__(self, i):
        if i == self.index:
            self.deed()
        return self.pictures.fetch(i)


def spoilt(pictures, index, deed):
    samples = dataclasses.replace(pictures, fetch=Spoilt(pictures, index, deed))
    return Samples(samples, eval_transform(SPEC))


def hang():
    time.sleep(1000)


def hang_deaf():
    """As a read from a dead disk does: no signal but SIGKILL ends it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    hang()


@pytest.mark.parametrize("deed", [hang, hang_deaf])
@pytest.mark.parametrize("index", [0, 7, 23])
def test_a_worker_that_hangs_is_an_error_with_the_picture(pictures, monkeypatch, index, deed):
    monkeypatch.setattr(loader, "SECONDS_A_SAMPLE", 0.5)
    began = time.monotonic()
    with pytest.raises(UserError, match=f"reading {pictures.names[index]} took more than 0.5 s"):
        list(batches(spoilt(pictures, index, deed), range(24), 5, 2))
    assert time.monotonic() - began < 60
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("deed", "how"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "signal SIGKILL"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "signal SIGSEGV"),
        (lambda: os._exit(3), "exit code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGRTMIN + 1), "signal 35"),
    ],
    ids=["killed", "crashed", "gone", "by a signal without a name"],
)
@pytest.mark.parametrize("index", [0, 7, 23])
def test_a_worker_that_dies_is_an_error_with_the_picture(pictures, index, deed, how):
    with pytest.raises(UserError, match=rf"a data worker died \({how}\) at {pictures.names[index]}"):
        list(batches(spoilt(pictures, index, deed), range(24), 5, 2))
    assert not multiprocessing.active_children()


def test_a_picture_that_could_not_be_read_for_once_is_named(pictures):
    done = []

    def once():
        if not done:
            done.append(1)
            raise OSError("the disk was away")

    with pytest.raises(UserError, match="1 of 24 pictures cannot be read: .*before, but can be now") as error:
        samples = dataclasses.replace(pictures, fetch=Spoilt(pictures, 7, once))
        list(TrainBatches(Samples(samples, eval_transform(SPEC), seed=0), 24, 0))
    assert pictures.names[7] in str(error.value)


def test_a_slow_picture_is_waited_for(pictures, monkeypatch):
    monkeypatch.setattr(loader, "SECONDS_A_SAMPLE", 1.0)
    samples = spoilt(pictures, 3, lambda: time.sleep(0.6))
    assert sum(len(batch.indices) for batch in batches(samples, range(24), 24, 1)) == 24


def test_workers_end_when_nobody_wants_more(pictures):
    made = batches(Samples(pictures, eval_transform(SPEC)), list(range(24)) * 50, 2, 3)
    next(made)
    assert len(multiprocessing.active_children()) == 3
    made.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(class_folders, number):
    """Also while they wait, and while they work; an orphan would hold memory and the run's lock."""
    code = f"""
        import time, multiprocessing
        from ppconvmixer import datasets, loader, sources, zoo
        from ppconvmixer.transforms import eval_transform
        spec = zoo.InputSpec(16, 1.0, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
        pictures = datasets.from_folders(sources.Folder({str(class_folders)!r}), "train")
        made = loader.batches(loader.Samples(pictures, eval_transform(spec)), list(range(24)) * 500, 2, 3)
        next(made)
        print(*(p.pid for p in multiprocessing.active_children()), flush=True)
        time.sleep(1000)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 3
    parent.send_signal(number)
    parent.wait(30)
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ctrl_c_is_left_to_the_parent(pictures):
    """A terminal sends SIGINT to the workers too; they must go on, so that the parent can stop in good order."""
    made = batches(Samples(pictures, eval_transform(SPEC)), list(range(24)) * 4, 5, 2)
    next(made)
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGTERM)
    assert sum(len(batch.indices) for batch in made) == 91


def test_workers_that_cannot_start_are_one_line(pictures, monkeypatch):
    def full(*arguments):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(loader.mmap, "mmap", full)
    with pytest.raises(
        UserError, match="cannot start 2 data workers: .*Cannot allocate memory; use fewer, or a smaller"
    ):
        drawn(pictures, 2)


def test_a_program_may_end_in_the_middle_of_a_pass():
    """Also one whose first finalizer is older than multiprocessing's: that then waits for the workers first."""
    code = """
import tempfile
folder = tempfile.TemporaryDirectory()
from ppconvmixer import datasets, loader, transforms, zoo
made = loader.batches(loader.Samples(datasets.digits(), transforms.eval_transform(zoo.CIFAR10)), range(600), 16, 2)
next(made)
raise RuntimeError("boom")
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 1 and done.stderr.strip().endswith("RuntimeError: boom")
