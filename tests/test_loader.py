import numpy as np
import pytest

from ppconvmixer import UserError, datasets, loader, zoo
from ppconvmixer.loader import Samples, TrainBatches, batches
from ppconvmixer.transforms import Augment, eval_transform, train_transform

SPEC = zoo.InputSpec(16, 1.0, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


@pytest.fixture
def pictures(class_folders):
    return datasets.from_folders(datasets.Folder(class_folders), "train")


@pytest.fixture
def with_broken(class_folders, tmp_path):
    """Three good pictures, one cut off, one that is text and one that is missing."""
    good = (class_folders / "train/cat/cat 0.png").read_bytes()
    for i, content in enumerate((good, good[:100], good, b"text", good)):
        (tmp_path / f"{i}.png").write_bytes(content)
    (tmp_path / "list.txt").write_text("".join(f"{i}.png 0\n" for i in range(6)))
    return datasets.from_list(datasets.Folder(tmp_path), tmp_path / "list.txt")


def drawn(pictures, workers, epoch=0, seed=3):
    samples = Samples(pictures, train_transform(SPEC, Augment((0.3, 1.0), hflip=0.5)), 16, seed=seed)
    loaded = TrainBatches(samples, 5, workers, epoch)
    return [(images.numpy(), labels.numpy()) for images, labels in loaded]


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
    samples = Samples(pictures, train_transform(SPEC, Augment((0.3, 1.0))), 16, seed=3)
    loaded = TrainBatches(samples, 5, 0)
    passes = [[(i.numpy(), lab.numpy()) for i, lab in loaded] for _ in range(2)]
    samples = Samples(pictures, train_transform(SPEC, Augment((0.3, 1.0))), 16, seed=3)
    assert_equal(passes[1], [(i.numpy(), lab.numpy()) for i, lab in TrainBatches(samples, 5, 0, epoch=1)])


def test_global_random_state_is_left_alone(pictures):
    np.random.seed(0)
    expected = np.random.RandomState(0).rand()
    drawn(pictures, 0)
    assert np.random.rand() == expected


def test_a_tail_is_left_out_unless_it_is_all(pictures):
    samples = Samples(pictures, train_transform(SPEC, Augment()), 16, seed=0)
    assert [len(labels) for _, labels in TrainBatches(samples, 7, 0)] == [7, 7, 7]
    assert [len(labels) for _, labels in TrainBatches(samples, 100, 0)] == [24]


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_pictures_arrive_marked_and_do_not_hang(with_broken, workers):
    samples = Samples(with_broken, eval_transform(SPEC), 16)
    found = list(batches(samples, range(6), 4, workers))
    assert np.concatenate([b.readable for b in found]).tolist() == [True, False, True, False, True, False]
    assert np.concatenate([b.indices for b in found]).tolist() == list(range(6))
    assert not found[0].images.numpy()[1].any()


@pytest.mark.parametrize("workers", [0, 2])
def test_all_broken_pictures_are_named_with_their_reason(with_broken, workers):
    samples = Samples(with_broken, eval_transform(SPEC), 16)
    lines = str(loader.broken(samples, workers)).splitlines()
    assert lines[0] == "3 of 6 pictures cannot be read:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["1.png", "3.png", "5.png"]
    assert "truncated" in lines[1] and "no picture of a known kind" in lines[2] and "no such file" in lines[3]
    with pytest.raises(UserError, match="1 of 3 pictures"):
        raise loader.broken(samples, workers, limit=3)


def test_training_stops_at_broken_pictures_and_names_all(with_broken):
    samples = Samples(with_broken, train_transform(SPEC, Augment()), 16, seed=0)
    with pytest.raises(UserError, match="(?s)3 of 6 pictures cannot be read.*1.png.*3.png.*5.png"):
        list(TrainBatches(samples, 2, 0))


@pytest.mark.parametrize("kind", [".tar", ".tar.gz"])
def test_workers_read_one_tar_together(class_folders, tmp_path, kind):
    import tarfile

    with tarfile.open(tmp_path / f"p{kind}", "w:gz" if kind.endswith("gz") else "w") as archive:
        archive.add(class_folders, ".")
    plain = datasets.from_folders(datasets.Folder(class_folders), "train")
    packed = datasets.from_folders(datasets.open_source(tmp_path / f"p{kind}"), "train")
    order = list(range(24)) * 4
    a, b = (
        np.concatenate(
            [batch.images.numpy() for batch in batches(Samples(p, eval_transform(SPEC), 16), order, 3, workers)]
        )
        for p, workers in ((plain, 0), (packed, 3))
    )
    np.testing.assert_array_equal(a, b)
