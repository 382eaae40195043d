"""What the documents say of the code is there."""

import ast
import re

import pytest
from conftest import ROOT


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
    "name", ["README.md", "README_zh.md", "docs/architecture.md", "docs/reliability.md", "docs/finetuning.md"]
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


def test_the_recipes_that_the_guide_names_are_there():
    named = set(re.findall(r"`(?:configs/)?([\w*]+\.yaml)`", (ROOT / "docs/finetuning.md").read_text()))
    assert len(named) > 8
    for name in named:
        assert list((ROOT / "configs").glob(name)), name
