"""Whether the Paddle that is installed can compute on the GPU that is there."""

from __future__ import annotations

import paddle

from .errors import UserError, said


def check_gpu() -> None:
    """Add two numbers on the GPU, where Paddle has taken one, and look at the sum.

    A Paddle for GPUs holds machine code for the generations of its time: ``paddlepaddle-gpu`` 2.6.2 that of compute
    capability 6.1 to 8.6, which 8.9 runs as well. On a later GPU it warns and goes on; its kernels do not run, and what
    lay in memory before is taken for their result.

    Raises:
        UserError: the sum is wrong, or a library is missing that Paddle computes with.
    """
    if not paddle.get_device().startswith("gpu"):
        return
    try:
        if (paddle.to_tensor([1.0, 2.0]) + 1.0).tolist() == [2.0, 3.0]:
            return
        reason = "it holds no code for compute capability {}.{}".format(*paddle.device.cuda.get_device_capability())
    except (OSError, RuntimeError) as error:  # what Paddle raises, by its version
        reason = said(error)
    raise UserError(
        f"Paddle {paddle.__version__} cannot compute on this GPU ({paddle.device.cuda.get_device_name()}): {reason}; "
        "install the paddlepaddle-gpu that Paddle's installation page names for it, or set CUDA_VISIBLE_DEVICES to "
        "nothing to compute on the CPU"
    )
