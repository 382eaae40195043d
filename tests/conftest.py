"""What several tests need: small files the tests make themselves, and the shared material where it is present."""

import os
import sys
import zlib  # noqa: F401  (before Paddle; see ppconvmixer/__init__.py)
from pathlib import Path

import numpy as np
import paddle  # noqa: F401
import pytest
from PIL import Image

import ppconvmixer
from ppconvmixer import card, checkpoint, layouts, threads, zoo

if not threads._SAID:  # Paddle has set it; the programs that tests start must not inherit that
    os.environ.pop("OMP_NUM_THREADS", None)

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real pictures and reference results; it does not come with a clone."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the reference material in {SHARED}, which is not part of the project")
    return SHARED


@pytest.fixture(autouse=True)
def away_from_the_network(monkeypatch, tmp_path_factory):
    """No test downloads from, or looks into the cache of, the outside world."""
    monkeypatch.setenv("PPCONVMIXER_OFFLINE", "1")
    monkeypatch.setenv("PPCONVMIXER_HOME", str(tmp_path_factory.getbasetemp() / "empty cache"))


def picture(seed: int, width: int = 40, height: int = 32) -> Image.Image:
    """A smooth colourful picture that differs with the seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory) -> Path:
    """Class folders train/{cat,dog,owl} with eight pictures each and val/ with four."""
    root = tmp_path_factory.mktemp("pictures")
    for part, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(("cat", "dog", "owl")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture(100 * label + i + (50 if part == "val" else 0), 52, 44).save(folder / f"{name} {i}.png")
    return root


def random_state(seed: int = 0, **shape) -> dict:
    """A plausible state of ConvMixer(**shape) under our names, drawn by the seed."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, value in ppconvmixer.ConvMixer(**shape).state_dict().items():
        noise = rng.standard_normal(tuple(value.shape)).astype(np.float32)
        if len(value.shape) > 1:
            noise /= np.sqrt(noise.size / value.shape[0])
        state[name] = np.exp(0.2 * noise) if name.endswith("_variance") else noise
    return state


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """A convmixer_tiny of three classes with a card."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pdparams"
    checkpoint.write(path, random_state(dim=64, depth=4, kernel_size=5, patch_size=4, num_classes=3))
    card.write(path, card.Card(model="convmixer_tiny", classes=("cat", "dog", "owl")))
    return path


def write_layout(path: Path, state: dict, layout: str = layouts.OURS) -> Path:
    """Write a state under our names in a layout; the suffix says which framework's form."""
    framework = "paddle" if path.suffix == ".pdparams" else "torch"
    checkpoint.write(path, layouts.from_ours(state, layout, framework))
    return path


def reference_network(shared: Path, monkeypatch, name: str):
    """A published network with the weights that ``timm_reference.npz`` was computed with."""
    monkeypatch.setattr(sys, "path", [str(shared / "reference"), *sys.path])
    from deterministic_weights import fill

    model = zoo.create_model(name)
    ours = {n: np.broadcast_to(np.float32(0), tuple(v.shape)) for n, v in model.state_dict().items()}
    shapes = {n: v.shape for n, v in layouts.from_ours(ours, "timm", "torch").items()}
    zoo.fill(model, layouts.to_ours(fill(shapes, seed=1)), "the deterministic weights")
    return model
