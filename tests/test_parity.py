"""Against timm: the very logits of the published networks, from the JPEG files on."""

import numpy as np
import pytest
from conftest import reference_network

from ppconvmixer import ConvMixer, datasets, load_weights, sources, zoo
from ppconvmixer.engines import Dygraph
from ppconvmixer.evaluate import evaluate
from ppconvmixer.loader import Samples
from ppconvmixer.transforms import eval_transform

FILES = ("aistudio_paddle2.6.2.pdparams", "aistudio_paddle3.3.1.pdparams", "mmpretrain.pth", "official.pth.tar")
FILES += ("official_legacy.pth.tar", "timm.bin", "timm.safetensors", "timm_train.pth.tar")


@pytest.mark.parametrize("file", FILES)
def test_every_reference_checkpoint_gives_the_expected_logits(shared, file):
    expected = np.load(shared / "reference/checkpoints/expected.npz")
    dim, depth, patch, kernel, classes = 24, 2, 4, 5, 10
    model = ConvMixer(dim, depth, kernel, patch, num_classes=classes)
    load_weights(model, shared / "reference/checkpoints" / file)
    # Both sides round to float32 some dozen times; 1e-5 is about ten times what was measured (2e-7).
    np.testing.assert_allclose(Dygraph(model)(expected["input"]), expected["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["convmixer_1024_20_ks9_p14", "convmixer_768_32", "convmixer_1536_20"])
def test_the_published_networks_compute_what_timm_computes(shared, name, monkeypatch):
    reference = np.load(shared / "reference/timm_reference.npz")
    model = reference_network(shared, monkeypatch, name)
    sample = shared / "data/imagenet-sample"
    pictures = datasets.from_list(sources.Folder(sample), sample / "val_list.txt")
    pictures = pictures.subset([list(pictures.names).index(str(n)) for n in reference["images"]])
    spec = zoo.input_spec(name)
    found = evaluate(Dygraph(model), Samples(pictures, eval_transform(spec)), 8, 1, keep_logits=True)
    expected = reference[f"logits_{name}"]
    assert np.abs(found.logits - expected).max() <= 1e-4 * np.abs(expected).max()
