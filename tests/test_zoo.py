import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import random_state, write_layout
from test_weights import SHIPPED

import ppconvmixer
from ppconvmixer import UserError, checkpoint, labels, zoo

TINY = {"dim": 64, "depth": 4, "kernel_size": 5, "patch_size": 4}

# Parameters and GMACs (with every depthwise convolution) of the published networks, from the paper and timm.
PUBLISHED = {
    "convmixer_1536_20": (51_625_960, 51.10),
    "convmixer_1024_20_ks9_p14": (24_383_464, 5.95),
    "convmixer_768_32": (21_110_248, 20.68),
}


def test_counts_of_the_published_networks():
    for name, (parameters, gmacs) in PUBLISHED.items():
        assert zoo.VARIANTS[name].parameters() == parameters
        assert round(zoo.VARIANTS[name].macs() / 1e9, 2) == gmacs


@pytest.mark.parametrize("name", zoo.list_models())
def test_every_variant_is_built_as_the_table_says(name):
    model = ppconvmixer.create_model(name)
    assert sum(p.size for p in model.parameters() if not p.stop_gradient) == zoo.VARIANTS[name].parameters()
    assert model.num_classes == zoo.VARIANTS[name].num_classes


def test_the_paper_gives_5_4_million_to_the_512_16():
    assert round(zoo.VARIANTS["convmixer_512_16"].parameters() / 1e6, 1) == 5.4


def test_listing():
    assert set(ppconvmixer.list_models(pretrained=True)) == {*PUBLISHED, *SHIPPED}
    assert ppconvmixer.list_models("*_ks5_p2") == ["convmixer_256_8_ks5_p2", "convmixer_128_8_ks5_p2"]
    assert ppconvmixer.list_models("convmixer_1024_20") == ["convmixer_1024_20_ks9_p14"]  # by its alias
    assert ppconvmixer.list_models("resnet*") == []


def test_an_alias_names_the_same_model():
    assert zoo.canonical("convmixer_1024_20") == zoo.canonical("convmixer_1024_20_ks9_p14")
    assert ppconvmixer.convmixer_1024_20(num_classes=2).patch_size == 14


def test_a_constructor_of_every_name():
    model = ppconvmixer.convmixer_tiny(num_classes=5, in_chans=1)
    assert model(paddle.randn([1, 1, 32, 32])).shape == [1, 5]
    for name in [*zoo.VARIANTS, *zoo.ALIASES]:
        assert getattr(ppconvmixer, name).__name__ == name


def test_a_name_may_spell_out_a_shape():
    model = ppconvmixer.create_model("convmixer_24_2_ks3_p2_relu")
    assert (model.dim, len(model.blocks), model.patch_size, model.num_classes) == (24, 2, 2, 10)
    assert type(model.stem[1]) is paddle.nn.ReLU and model.blocks[0][0].fn[0].weight.shape == [24, 1, 3, 3]
    assert zoo.input_spec("convmixer_24_2_ks3_p4") == zoo.CIFAR10
    assert zoo.variant("convmixer_24_2_ks3_p5") == zoo.Variant(24, 2, 3, 5)
    assert zoo.canonical("convmixer_64_4_ks5_p4") == "convmixer_tiny"
    assert zoo.canonical("convmixer_24_2_ks3_p4") == "convmixer_24_2_ks3_p4"


@pytest.mark.parametrize(
    "name", ["convmixer_0_2_ks3_p4", "convmixer_8_02_ks3_p4", "convmixer_99999_2_ks3_p4", "convmixer_8_2_ks3_p4_gelu"]
)
def test_a_name_that_spells_out_no_shape_is_unknown(name):
    with pytest.raises(UserError, match="unknown model"):
        zoo.variant(name)


def test_unknown_names_get_the_nearest():
    with pytest.raises(UserError, match="convmixer_768_32"):
        ppconvmixer.create_model("convmixer_786_32")
    with pytest.raises(TypeError, match="drop_rat"):
        ppconvmixer.create_model("convmixer_tiny", drop_rat=0.1)


def test_input_spec_of_a_variant_and_changes_to_it():
    spec = zoo.input_spec("convmixer_768_32")
    assert (spec.size, spec.crop_pct, spec.interpolation) == (224, 0.96, "bicubic")
    assert zoo.input_spec("convmixer_tiny", size=48).size == 48
    for change in (
        {"sise": 3},
        {"size": 0},
        {"size": "32"},
        {"mean": [1, 2]},
        {"std": "abc"},
        {"interpolation": "area"},
    ):
        with pytest.raises(UserError):
            zoo.input_spec("convmixer_tiny", **change)


def test_published_weights_tell_where_to_get_them():
    for weights in (True, "pretrained", "paddle-toolbox"):
        with pytest.raises(
            UserError, match="OFFLINE.*https://github.com/cattidea/paddle-toolbox.* put the file here: "
        ):
            ppconvmixer.convmixer_768_32(pretrained=weights)
    with pytest.raises(UserError, match="no weights of convmixer_tiny are published; published: convmixer_1536_20"):
        ppconvmixer.convmixer_tiny(pretrained=True)


def test_the_manifest_holds_what_is_published():
    """The addresses and digests are those of the four publishers."""
    names = {
        "convmixer_1536_20": (
            "convmixer_1536_20_ks9_p7",
            "convmixer-1536-20",
            "0442b7e98b873a707de5a8d5419db26d",
            "ea5786f3",
        ),
        "convmixer_1024_20_ks9_p14": (
            "convmixer_1024_20_ks9_p14",
            "convmixer-1024-20",
            "53462088cb1e55f7a43bc0b9adb9e683",
            "48f8aeba",
        ),
        "convmixer_768_32": (
            "convmixer_768_32_ks7_p7_relu",
            "convmixer-768-32",
            "e0812272ad8b994aa169cfd27d93f626",
            "bca1f7b8",
        ),
    }
    assert {name for name, entry in zoo.manifest().items() if "files" in entry} == set(names)
    for name, (official, mmpretrain, md5, sha256) in names.items():
        entry = zoo.manifest()[name]
        keys = {"top1", "top5", "data", "source", "top1_by_labels", "input", "files"}
        assert set(entry) == keys and "timm" in entry["source"]
        assert zoo.InputSpec(**entry["input"]) == zoo.input_spec(name)
        files = zoo.published(name)
        assert [f.layout for f in files] == ["paddle-toolbox", "official", "timm", "mmpretrain"]
        assert [f.md5 for f in files] == [md5, None, None, None]
        assert [f.sha256_prefix for f in files] == [None, None, None, sha256]
        assert [f.url for f in files] == [
            f"https://github.com/cattidea/paddle-toolbox/releases/download/convmixer-pretrained-v1/{official}.pdparams",
            f"https://github.com/tmp-iclr/convmixer/releases/download/v1.0/{official}.pth.tar",
            f"https://huggingface.co/timm/{name}.in1k/resolve/main/model.safetensors",
            f"https://download.openmmlab.com/mmclassification/v0/convmixer/{mmpretrain}_3rdparty_10xb64_in1k_20220323-{sha256}.pth",
        ]
        assert len({f.name for f in files}) == 4  # they share a folder
    assert [zoo.manifest()[n]["top1"] for n in names] == [0.81382, 0.76944, 0.80158]
    assert [zoo.manifest()[n]["top5"] for n in names] == [0.95618, 0.93364, 0.95070]
    by_labels = [zoo.manifest()[n]["top1_by_labels"] for n in names]
    assert [[told[key] for told in by_labels] for key in labels.NAMES] == [
        *([0.86895, 0.83684, 0.86220], [0.71160, 0.65440, 0.69480], [0.20973, 0.07, 0.15387]),
        *([0.45683, 0.42260, 0.43260], [0.33449, 0.30069, 0.31235]),
    ]


def model_state(model):
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def test_loading_reports_and_fills(tmp_path):
    state = random_state(**TINY, num_classes=10)
    path = write_layout(tmp_path / "w.safetensors", state, "official")
    model = ppconvmixer.convmixer_tiny()
    report = ppconvmixer.load_weights(model, path)
    for name, value in model_state(model).items():
        np.testing.assert_array_equal(value, state[name])
    assert report.layout == "official"
    assert sorted(report.loaded) == sorted(state)
    assert report.renamed["0.weight"] == "stem.0.weight"
    assert report.renamed["9.bias"] == "head.bias"
    assert report.missing == report.left_out == report.reinitialized == []


def test_strict_loading_refuses_and_leaves_the_model_alone(tmp_path):
    state = random_state(**TINY, num_classes=10)
    del state["blocks.3.1.bias"]
    model = ppconvmixer.convmixer_tiny()
    before = model_state(model)
    path = write_layout(tmp_path / "w.pdparams", state)
    with pytest.raises(UserError, match="missing: blocks.3.1.bias"):
        ppconvmixer.load_weights(model, path)
    for name, value in model_state(model).items():
        np.testing.assert_array_equal(value, before[name])
    report = ppconvmixer.load_weights(model, path, strict=False)
    assert report.missing == ["blocks.3.1.bias"]
    np.testing.assert_array_equal(model_state(model)["blocks.3.1.weight"], state["blocks.3.1.weight"])


def test_strict_loading_names_what_is_too_much(tmp_path):
    state = {**random_state(**TINY, num_classes=10), "stem.1.extra": np.ones(3, np.float32)}
    checkpoint.write(tmp_path / "w.pdparams", state)
    with pytest.raises(UserError, match="not used: stem.1.extra"):
        ppconvmixer.load_weights(ppconvmixer.convmixer_tiny(), tmp_path / "w.pdparams")
    report = ppconvmixer.load_weights(ppconvmixer.convmixer_tiny(), tmp_path / "w.pdparams", strict=False)
    assert report.left_out == ["stem.1.extra"]


def test_another_network_is_described(tmp_path):
    path = write_layout(
        tmp_path / "w.pdparams", random_state(dim=8, depth=2, kernel_size=3, patch_size=2, num_classes=10)
    )
    with pytest.raises(
        UserError, match="holds ConvMixer-8/2, kernel 3, patch 2.*the model is ConvMixer-64/4, kernel 5"
    ):
        ppconvmixer.convmixer_tiny(pretrained=path)


@pytest.mark.parametrize("classes", [7, 10])  # 10 are the variant's own
def test_the_head_gives_way_only_where_the_caller_asks_for_classes(classes, tmp_path, caplog):
    path = write_layout(tmp_path / "w.pdparams", random_state(**TINY, num_classes=4))
    with pytest.raises(UserError, match="num_classes=4"):
        ppconvmixer.convmixer_tiny(pretrained=path)
    with caplog.at_level("WARNING", logger="ppconvmixer"):
        model = ppconvmixer.convmixer_tiny(pretrained=path, num_classes=classes)
    assert model.num_classes == classes
    assert [r.message for r in caplog.records if "for 4 classes" in r.message and f"for {classes}" in r.message]
    assert len(caplog.records) == 1
    assert ppconvmixer.convmixer_tiny(pretrained=path, num_classes=4).num_classes == 4


def test_a_checkpoint_without_a_head_gets_one_only_where_the_caller_asks_for_classes(tmp_path, caplog):
    state = random_state(**TINY, num_classes=4)
    path = write_layout(tmp_path / "w.pdparams", {n: v for n, v in state.items() if not n.startswith("head.")})
    with pytest.raises(UserError, match="missing: head.weight, head.bias.*num_classes=0"):
        ppconvmixer.convmixer_tiny(pretrained=path)
    with caplog.at_level("WARNING", logger="ppconvmixer"):
        model = ppconvmixer.convmixer_tiny(pretrained=path, num_classes=7)
    assert [r.message for r in caplog.records] == [
        f"{path} has no head; this model's head for 7 is freshly initialised"
    ]
    assert model.head.weight.shape == [64, 7]
    np.testing.assert_array_equal(model.stem[0].weight.numpy(), state["stem.0.weight"])
    assert zoo.load_weights(model, path, reset_head=True).reinitialized == ["head.bias", "head.weight"]


def test_features_only_from_a_checkpoint_with_a_head(tmp_path):
    path = write_layout(tmp_path / "w.pdparams", random_state(**TINY, num_classes=4))
    model = ppconvmixer.convmixer_tiny(pretrained=path, num_classes=0)
    assert model(paddle.randn([1, 3, 32, 32])).shape == [1, 64]


def test_a_file_that_is_no_convmixer_says_so(tmp_path):
    checkpoint.write(tmp_path / "w.pdparams", {"fc.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(UserError, match="no ConvMixer checkpoint: its names begin with fc.weight"):
        ppconvmixer.convmixer_tiny(pretrained=tmp_path / "w.pdparams")


def test_importing_the_package_leaves_paddle_alone():
    code = "import ppconvmixer, sys; ppconvmixer.list_models(); assert 'paddle' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
