"""What the documents say of the code is there."""

import ast
import dataclasses
import importlib.util
import re

import numpy as np
import pytest
import yaml
from conftest import ROOT
from PIL import Image

from ppconvmixer import recipe
from ppconvmixer.augment import Augment


def functions(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_test_that_a_promise_names_exists():
    text = (ROOT / "docs/reliability.md").read_text()
    known = {path.name: functions(path) for path in (ROOT / "tests").glob("test_*.py")}
    named = 0
    for section in text.split("\n## ")[1:]:
        default = re.search(r"\| test \(`tests/(test_\w+\.py)`", section)
        for file, name in re.findall(r"`(?:tests/(test_\w+\.py)::)?(test_\w+)`", section):
            file = file or default[1]
            assert name in known[file], f"{file} has no {name}"
            named += 1
    assert named > 40


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "README_zh.md",
        "docs/architecture.md",
        "docs/finetuning.md",
        "docs/recipes.md",
        "docs/reliability.md",
    ],
)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_both_readmes_show_the_same_commands():
    blocks = [
        re.findall(r"```(?:\w*)\n(.*?)```", (ROOT / name).read_text(), re.S) for name in ("README.md", "README_zh.md")
    ]
    strip = [[re.sub(r"\s+#.*", "", block) for block in found] for found in blocks]
    assert strip[0] == strip[1]


def test_every_key_of_augmentation_is_explained_with_values_that_it_takes():
    section = (ROOT / "docs/recipes.md").read_text().split("## Augmentation")[1]
    table = section[section.index("\n| ") :].strip().split("\n\n")[0]
    first = re.findall(r"^\| (`.+?`) \|", table, re.M)
    examples = [yaml.safe_load(text) for cell in first for text in re.findall(r"`(.+?)`", cell)]
    assert {key for example in examples for key in example} == {field.name for field in dataclasses.fields(Augment)}
    for text in ("n2-m12", "rand-m9-mstd0.5-inc1"):
        together = {key: value for example in examples for key, value in example.items()}
        settings = recipe.from_dict({**recipe.load("digits").to_dict(), "augment": {**together, "randaugment": text}})
        assert settings.augment.randaugment == text and settings.augment.mixes


def test_the_picture_of_the_augmentations_is_up_to_date():
    spec = importlib.util.spec_from_file_location("draw_augmentations", ROOT / "tools/draw_augmentations.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    now, kept = tool.sheet(*tool.samples()), Image.open(ROOT / "docs/augmentations.png").convert("RGB")
    assert now.size == kept.size
    for top in range(tool.GAP + tool.CAPTION, now.height, tool.SIDE + tool.CAPTION + tool.GAP):
        row = 0, top, now.width, top + tool.SIDE
        a, b = (
            np.asarray(i.resize((now.width // 8, tool.SIDE // 8), Image.Resampling.BOX, row), float)
            for i in (now, kept)
        )
        # 256 dithered colours, and decoders of JPEG that differ by a level or two; another operation differs by more.
        assert np.abs(a - b).max() < 30 and np.abs(a - b).mean() < 1.5


def test_the_recipes_that_the_guide_names_are_there():
    named = set(re.findall(r"`(?:configs/)?([\w*]+\.yaml)`", (ROOT / "docs/finetuning.md").read_text()))
    assert len(named) > 8
    for name in named:
        assert list((ROOT / "configs").glob(name)), name
