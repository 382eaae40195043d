"""What the documents say of the code is there."""

import ast
import dataclasses
import importlib.util
import itertools
import json
import re
import shlex
import sys
from collections import Counter

import numpy as np
import pytest
import yaml
from conftest import ROOT
from PIL import Image

from ppconvmixer import cli, recipe, zoo
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
        "docs/deployment.md",
        "docs/deployment_zh.md",
        "docs/finetuning.md",
        "docs/finetuning_zh.md",
        "docs/insight.md",
        "docs/insight_zh.md",
        "docs/performance.md",
        "docs/recipes.md",
        "docs/recipes_zh.md",
        "docs/reliability.md",
    ],
)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_the_page_on_insight_shows_every_aspect_by_commands_that_are_understood():
    parser = cli._parser()
    text = (ROOT / "docs/insight.md").read_text()
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    shown = [parser.parse_args(shlex.split(line)[1:]) for line in lines if line.startswith("ppconvmixer ")]
    inspected = [options for options in shown if options.command == "inspect"]
    pictures = [options.output for options in inspected if getattr(options, "output", None)]
    assert sorted(pictures) == sorted(f"docs/{name}" for name in re.findall(r"!\[.+?\]\((.+?)\)", text))
    commands = next(action.choices for action in parser._actions if action.dest == "command")
    aspects = next(action.choices for action in commands["inspect"]._actions if action.dest == "aspect")
    assert {options.aspect for options in inspected} == set(aspects)


@pytest.mark.parametrize("name", ["insight.md", "insight_zh.md"])
def test_the_contents_of_the_page_on_insight_name_its_sections(name):
    text = (ROOT / "docs" / name).read_text()
    sections = re.findall(r"^## (.+)$", text, re.M)
    listed = re.findall(r"^\| \[(.+?)\]\(#(.+?)\) \|", text, re.M)
    assert listed == [(name, name.lower().replace(" ", "-")) for name in sections]


@pytest.mark.parametrize("name", ["README", "docs/deployment", "docs/finetuning", "docs/insight", "docs/recipes"])
def test_both_languages_show_the_same(name):
    """The same commands, headings of the same levels, tables of the same rows, and the same code in the text."""
    english, chinese = ((ROOT / f"{name}{suffix}.md").read_text() for suffix in ("", "_zh"))
    blocks, texts = [], []
    for text in (english, chinese):
        found = re.findall(r"```(?:\w*)\n(.*?)```", text, re.S)
        blocks.append([re.sub(r"\s+#.*", "", block) for block in found])
        texts.append(re.sub(r"```.*?```", "", text, flags=re.S))
    assert blocks[0] == blocks[1]
    for pattern in (r"^#+ ", r"^\|(?=.)", r"^- ", r"^!\["):
        assert len(re.findall(pattern, texts[0], re.M)) == len(re.findall(pattern, texts[1], re.M)), pattern
    if name != "README":
        codes = [Counter(re.findall(r"`(.+?)`", re.sub(r"\s+", " ", text))) for text in texts]
        assert codes[0] == codes[1]


def macs(name, size):
    variant = zoo.variant(name)
    return dataclasses.replace(variant, input=dataclasses.replace(variant.input, size=size)).macs()


def cost(ours):
    """Multiply-accumulates of a run for a training picture: forward once, back twice through what is trained, and the teacher."""
    depth, total, epochs = zoo.variant(ours.model.name).depth, 0, itertools.count()
    for phase in ours.phases():
        for _ in range(phase.epochs):
            trained = min(max(depth + 1 - ours.frozen_layers(next(epochs)), 0), depth) / depth
            total += macs(ours.model.name, phase.size) * (1 + 2 * trained)
            total += macs(ours.distill.teacher, phase.size) if ours.distill else 0
    return total


@pytest.mark.parametrize("name", ["recipes.md", "recipes_zh.md"])
def test_every_recipe_is_advised_for_some_data_at_its_cost(name):
    text = (ROOT / "docs" / name).read_text()
    rows = re.findall(r"^\|[^|]+\| `(\w+)\.yaml`[^|]*\|[^|]+\| ([\d.]+) \|$", text, re.M)
    assert {stem for stem, _ in rows} == {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    for stem, told in rows:
        assert float(told) == pytest.approx(cost(recipe.load(stem)) / 1e12, rel=0.01), stem


@pytest.mark.parametrize("name", ["README.md", "README_zh.md", "weights/README.md"])
def test_the_accuracy_of_shipped_weights_is_that_of_their_cards(name):
    text, shipped = (ROOT / name).read_text(), [e for e in zoo.manifest().values() if "shipped" in e]
    assert shipped
    for entry in shipped:
        top1 = json.loads((ROOT / "weights" / entry["shipped"]).with_suffix(".json").read_text())["facts"]["top1"]
        assert f"{100 * top1:.2f} %" in text, entry["shipped"]


def test_the_recipe_that_a_config_names_as_its_source_is_there():
    for path in (ROOT / "configs").glob("*.yaml"):
        for document in re.findall(r"docs/\w+\.md", path.read_text()):
            assert (ROOT / document).exists(), path


def test_the_commands_of_the_guides_are_understood():
    """Their recipes load with the overrides they show."""
    seen = 0
    for name in ("docs/recipes.md", "docs/finetuning.md", "README.md"):
        text = (ROOT / name).read_text()
        for config, rest in re.findall(r"-c (configs/\w+\.yaml)((?: -o(?: [\w.]+=\S+)+)?)", text):
            recipe.load(config, rest.split()[1:])
            seen += 1
    assert seen > 8


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


def test_the_picture_of_the_augmentations_is_up_to_date(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))  # of which a tool changes the first
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
