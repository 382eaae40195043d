"""Make the torch files beside this script; needs torch. Run: python tests/golden/make_torch_files.py

The tests read these files without torch. Every ``.pth`` holds tensors named for how they lie in
their storage; ``expected.npz`` holds the same numbers. ``official_names.json`` lists names, shapes
and dtypes of the state of the official network (dim 6, depth 2, kernel 3, patch 2, 5 classes).
"""

import argparse
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
torch.manual_seed(0)


class Residual(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x) + x


def mix(inputs, outputs, kernel, **kwargs):
    return nn.Conv2d(inputs, outputs, kernel, **kwargs), nn.GELU(), nn.BatchNorm2d(outputs)


def official(dim, depth, kernel, patch, classes):
    """The network under the official names: one flat sequence."""
    blocks = [
        nn.Sequential(Residual(nn.Sequential(*mix(dim, dim, kernel, groups=dim, padding="same"))), *mix(dim, dim, 1))
        for _ in range(depth)
    ]
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(dim, classes)
    return nn.Sequential(*mix(3, dim, patch, stride=patch), *blocks, *ends)


def main():
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7
    tensors = {
        "float16": base.half(),
        "bfloat16": base.bfloat16(),
        "float64": base.double() / 3,
        "transposed": base.t(),
        "slice": base[1:3, 2:5],
        "stepped": base[::2, ::3],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(base + 1),
        "norm.num_batches_tracked": torch.tensor(3),
    }
    expected = {n: t.detach().float().numpy() if n == "bfloat16" else t.detach().numpy() for n, t in tensors.items()}
    del expected["norm.num_batches_tracked"]
    np.savez(HERE / "expected.npz", **expected)
    torch.save(tensors, HERE / "tensors.pth")
    torch.save(tensors, HERE / "tensors_legacy.pth", _use_new_zipfile_serialization=False)
    records = {
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, names=["a"]),
        "state_dict": OrderedDict((f"module.{n}", t) for n, t in tensors.items()),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0), "exp_avg": base}}, "param_groups": [{"lr": 0.1}]},
    }
    torch.save(records, HERE / "training.pth.tar")
    state = official(6, 2, 3, 2, 5).state_dict()
    names = {n: [list(t.shape), str(t.dtype).replace("torch.", "")] for n, t in state.items()}
    (HERE / "official_names.json").write_text(json.dumps(names, indent=1) + "\n")


if __name__ == "__main__":
    main()
