"""A GPU that the installed Paddle cannot compute on, played on a CPU: what a real one did is in the comments."""

import numpy
import paddle
import pytest

from ppconvmixer import create_model
from ppconvmixer.errors import UserError


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    monkeypatch.setattr(paddle.device.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3", raising=False)
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda: (9, 0), raising=False)
    return monkeypatch


def model():
    return create_model("convmixer_128_8_ks5_p2", num_classes=10)


def test_a_gpu_that_adds_right_is_taken(gpu):
    assert model()(paddle.zeros([1, 3, 32, 32])).shape == [1, 10]


def test_kernels_that_do_not_run_are_noticed(gpu):
    # paddlepaddle-gpu 2.6.2 on an H100: `paddle.ones([2]) + 1` is [0, 0], after no more than a warning.
    gpu.setattr(paddle, "to_tensor", lambda numbers: numpy.array([-1.0, -1.0]))
    with pytest.raises(
        UserError, match=r"on this GPU \(NVIDIA H100 .*no code for compute capability 9\.0; install .*CPU"
    ):
        model()


@pytest.mark.parametrize("error", [OSError, RuntimeError])
def test_a_missing_library_is_said(gpu, error):
    def fail(numbers):
        raise error("(PreconditionNotMet) Cannot load\n cudnn shared library.")

    gpu.setattr(paddle, "to_tensor", fail)
    with pytest.raises(UserError, match=r"on this GPU .*: \(PreconditionNotMet\) Cannot load cudnn shared library\.; "):
        model()
