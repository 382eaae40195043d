import collections
import json
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import paddle
import pytest
from conftest import GOLDEN

from ppconvmixer import UserError, checkpoint

STATE = {
    "stem.0.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2) / 7,
    "stem.0.bias": np.array([1.5, -2.0], np.float32),
    "scalar": np.array(3.0, np.float32),
    "half": np.array([0.1, 0.2], np.float16),
    "double": np.array([[0.1], [0.2]], np.float64),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">f4"),
}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert found[name].dtype == value.dtype.newbyteorder("=") or found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("names", [False, True], ids=["plain", "with Paddle's names"])
def test_pickled_arrays_of_every_protocol(tmp_path, protocol, names):
    tree = {**STATE, **({"StructuredToParameterName@@": {"stem.0.weight": "conv2d_0.w_0"}} if names else {})}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(tree, protocol=protocol))
    assert_same(checkpoint.read(tmp_path / "w.pdparams"), STATE)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_paddle_itself_saves(tmp_path, protocol):
    layer = paddle.nn.Conv2D(3, 4, 3)
    paddle.save(layer.state_dict(), str(tmp_path / "w.pdparams"), protocol=protocol)
    assert_same(checkpoint.read(tmp_path / "w.pdparams"), {n: v.numpy() for n, v in layer.state_dict().items()})


def test_tensors_in_a_nested_structure(tmp_path):
    layer = paddle.nn.Linear(3, 4)
    paddle.save({"epoch": 1, "state_dict": dict(layer.state_dict())}, str(tmp_path / "w.pdparams"))
    assert_same(checkpoint.read(tmp_path / "w.pdparams"), {n: v.numpy() for n, v in layer.state_dict().items()})


def test_paddles_bfloat16(tmp_path):
    values = np.array([1.0, -2.5, 0.15625], np.float32)
    paddle.save({"w": paddle.to_tensor(values).astype("bfloat16")}, str(tmp_path / "w.pdparams"))
    np.testing.assert_array_equal(checkpoint.read(tmp_path / "w.pdparams")["w"], values)


@pytest.mark.parametrize("file", ["tensors.pth", "tensors_legacy.pth", "training.pth.tar"])
def test_torch_files_of_every_kind_of_tensor(file):
    expected = np.load(GOLDEN / "expected.npz")
    assert_same(checkpoint.read(GOLDEN / file), {name: expected[name] for name in expected.files})


@pytest.mark.parametrize("suffix", [".pdparams", ".safetensors"])
def test_what_is_written_is_read_back(tmp_path, suffix):
    state = {name: value for name, value in STATE.items() if name != "big_endian"}
    checkpoint.write(tmp_path / f"w{suffix}", state)
    assert_same(checkpoint.read(tmp_path / f"w{suffix}"), state)


def test_paddle_loads_what_is_written(tmp_path):
    layer, other = paddle.nn.Conv2D(3, 4, 3), paddle.nn.Conv2D(3, 4, 3)
    checkpoint.write(tmp_path / "w.pdparams", {n: v.numpy() for n, v in layer.state_dict().items()})
    missing, unexpected = other.set_state_dict(paddle.load(str(tmp_path / "w.pdparams")))  # our own file
    assert not missing and not unexpected
    np.testing.assert_array_equal(other.weight.numpy(), layer.weight.numpy())


def test_safetensors_in_bfloat16(tmp_path):
    raw = (np.array([1.0, -2.5], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + raw.tobytes())
    np.testing.assert_array_equal(checkpoint.read(tmp_path / "w.safetensors")["w"], [1.0, -2.5])


def test_metadata(tmp_path):
    checkpoint.write(tmp_path / "w.safetensors", {"w": np.ones(2, np.float32)}, {"a": "b"})
    assert checkpoint.read_metadata(tmp_path / "w.safetensors") == {"a": "b"}


class Canary:
    """Its pickle opens a file when a real unpickler reads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("where", ["value", "nested"])
def test_a_strangers_code_is_named_and_not_run(tmp_path, protocol, where):
    canary = tmp_path / "canary"
    trap = Canary(canary) if where == "value" else {"a": [(Canary(canary),)]}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps({**STATE, "trap": trap}, protocol=protocol))
    with pytest.raises(UserError, match=r"w.pdparams.*names (_io|io|builtins|__builtin__)\.open.*refuses"):
        checkpoint.read(tmp_path / "w.pdparams")
    assert not canary.exists()
    pickle.loads((tmp_path / "w.pdparams").read_bytes())  # the trap is real
    assert canary.exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02cos\nsystem\nU\x04trueR.", "names os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", "names os.system"),
        (b"\x80\x02(U\x04trueios\nsystem\n.", "INST"),
        (b"\x80\x02(cos\nsystem\nU\x04trueo.", "names os.system"),
        (b"\x80\x02cnumpy\nndarray\n}U\x01aU\x01bsb.", "damaged"),
        (b"\x80\x02cnumpy\ndtype\nU\x02O8\x85R.", "type 'O8'"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02}U\x01aP1\ns.", "PERSID"),
        (b"\x80\x02" + b"]" * 10, "damaged"),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02h\x07.", "damaged"),
        (b"\x80\x02\x8a\xff.", "damaged"),
    ],
)
def test_hostile_programs(tmp_path, program, message):
    (tmp_path / "w.pdparams").write_bytes(program)
    with pytest.raises(UserError, match=message):
        checkpoint.read(tmp_path / "w.pdparams")


@pytest.mark.parametrize("file", ["tensors.pth", "tensors_legacy.pth", "training.pth.tar"])
def test_a_cut_off_or_changed_file_never_passes_for_another(tmp_path, file):
    content = (GOLDEN / file).read_bytes()
    expected = checkpoint.read(GOLDEN / file)
    rng = np.random.default_rng(0)
    for length in rng.integers(0, len(content), 40):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(UserError):
            checkpoint.read(tmp_path / "cut")
    for place in rng.integers(0, len(content), 300):
        changed = bytearray(content)
        changed[place] ^= 1 << rng.integers(8)
        (tmp_path / "changed").write_bytes(changed)
        try:
            found = checkpoint.read(tmp_path / "changed")
        except UserError:
            continue
        if "legacy" not in file:  # the zip form has checksums; the legacy form has none, and numbers may differ
            assert_same(found, expected)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04rest", b"\x80\x04", b'\x08\0\0\0\0\0\0\0{"a":1}!'])
def test_other_files_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "w.bin"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        checkpoint.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        checkpoint.read(tmp_path / "nothing.pdparams")
    with pytest.raises(UserError, match="directory"):
        checkpoint.read(tmp_path)


def test_entries_that_are_no_weights_are_named(tmp_path):
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps({**STATE, "epoch": 3}))
    with pytest.raises(UserError, match="'epoch' is no array"):
        checkpoint.read(tmp_path / "a.pdparams")
    checkpoint.write(tmp_path / "b.safetensors", {"steps": np.ones(2, np.int64)})
    with pytest.raises(UserError, match="'steps' is int64"):
        checkpoint.read(tmp_path / "b.safetensors")


def test_only_known_suffixes_are_written(tmp_path):
    with pytest.raises(UserError, match=r"ending in \.pdparams or \.safetensors"):
        checkpoint.write(tmp_path / "w.pth", STATE)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.pdparams"
    checkpoint.write(path, {"w": np.ones(2, np.float32)})
    old = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError), match="pickle"):
        checkpoint.write(path, {"w": np.array([lambda: 0], object)})
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["w.pdparams"]


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path):
    """A limit on the size of files stands in for the full disk: writing fails in the middle."""
    path = tmp_path / "w.pdparams"
    checkpoint.write(path, {"w": np.ones(2, np.float32)})
    old = path.read_bytes()
    code = f"""
        import resource, signal, numpy as np
        from ppconvmixer import checkpoint, UserError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            checkpoint.write({str(path)!r}, {{"w": np.ones(100_000, np.float32)}})
        except UserError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot write {path}: File too large")
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["w.pdparams"]


def test_records_of_numpy_and_of_a_schedule_beside_the_weights(tmp_path):
    records = {"best": np.float64(0.5), "milestones": collections.Counter([30, 60])}
    for protocol in range(2, 5):
        path = tmp_path / f"{protocol}.pdparams"
        path.write_bytes(pickle.dumps({"state_dict": {"w": np.ones(2, np.float32)}, **records}, protocol))
        np.testing.assert_array_equal(checkpoint.read(path)["w"], np.ones(2, np.float32))


def test_paddles_table_of_names_does_not_hide_the_prefix_of_parallel_training(tmp_path):
    tree = {"module.w": np.ones(2, np.float32), "StructuredToParameterName@@": {"module.w": "linear_0.w_0"}}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(tree, 4))
    assert list(checkpoint.read(tmp_path / "w.pdparams")) == ["w"]


def test_arrays_with_their_axes_in_another_order(tmp_path):
    """NumPy 2.3 and later pickle them as they lie, by protocol 5."""
    value = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5).transpose(1, 0, 2, 3)
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps({"w": value}, 5))
    np.testing.assert_array_equal(checkpoint.read(tmp_path / "w.pdparams")["w"], value)


def test_a_state_of_an_array_that_is_a_list_is_refused(tmp_path):
    """A list is not charged for, and every array that it makes would take as much memory anew."""
    whole = pickle.dumps(np.zeros(4, np.float32), 2)
    start, end = b"(K\x01K\x04\x85", b"tq\x14b."
    assert whole.count(start) == 1 and whole.endswith(end)
    (tmp_path / "w.pdparams").write_bytes(whole.replace(start, b"]" + start).replace(end, b"eb."))
    with pytest.raises(UserError, match="a state that is no tuple"):
        checkpoint.read(tmp_path / "w.pdparams")
