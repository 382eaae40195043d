"""The page about a run: what it shows, that it shows all of a run that went on, and that it is safe to open."""

import os
import re
import signal
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import picture

from ppconvmixer import callbacks, finetune, recipe, report, run_state, svg
from ppconvmixer.curves import FILE
from ppconvmixer.records import Records
from ppconvmixer.stopping import Stopped

BAD = ("<script>alert(1)</script>", "a&b'\"</td>", "100% \u732b")


class Page(HTMLParser):
    """Checks that every element is closed, and collects the texts of the sections."""

    VOID = {"meta", "img", "path", "circle"}

    def __init__(self, text):
        super().__init__()
        self.open, self.sections, self.tags = [], {}, set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append((tag, dict(attributes).get("id")))

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for tag, name in self.open:
            if tag == "section":
                self.sections[name] = self.sections.get(name, "") + data


@pytest.fixture(scope="module")
def bad_folders(tmp_path_factory):
    """Class folders with names that a page must not take for its own; a slash cannot be in one."""
    root = tmp_path_factory.mktemp("bad")
    for part, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(sorted(name.replace("/", "\u2215") for name in BAD)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture(100 * label + i + (50 if part == "val" else 0), 52, 44).save(folder / f"{i}.png")
    return root


def settings(folder, *more):
    own = [
        *("data.dataset=folder", f"data.path={folder}", "data.train=train", "data.val=val", "data.val_fraction=null"),
        *("train.epochs=3", "train.batch_size=8", "data.workers=0", "train.histograms=1", "train.ema=0.5", *more),
    ]
    return recipe.load("digits", own)


@pytest.fixture(scope="module")
def whole(bad_folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, finetune.finetune(settings(bad_folders), folder)


def sections(folder):
    """Return the source of every section but those that say where and how fast it was computed."""
    text = (folder / "report.html").read_text("utf-8")
    found = dict(re.findall(r"<section id='(\w+)'>(.*?)</section>", text, re.DOTALL))
    timed = ("pictures a second", "wait for pictures")
    charts = re.findall("<svg.*?</svg>", found["curves"])
    found["curves"] = "".join(chart for chart in charts if not any(title in chart for title in timed))
    return {name: content for name, content in found.items() if name != "environment"}


def test_the_page_shows_everything(whole, bad_folders):
    folder, result = whole
    page = Page((folder / "report.html").read_text("utf-8"))
    assert list(page.sections) == [
        *("summary", "curves", "pictures", "confusion", "classes", "precision", "histograms", "recipe", "environment")
    ]
    assert f"best epoch {result['best_epoch']}: top-1 {100 * result['top1']:.2f} %" in page.sections["summary"]
    assert "3 of 3 epochs on folder, 9 steps" in page.sections["summary"]
    titles = ("loss", "top-1, %", "top-5, %", "learning rate", "gradient norm", "gradient norm of every layer, ")
    for title in (*titles, "pictures a second", "time that steps wait for pictures, %"):
        assert title in page.sections["curves"]
    (layers,) = [
        chart
        for chart in re.findall("<svg.*?</svg>", (folder / "report.html").read_text("utf-8"))
        if "every layer" in chart
    ]
    assert layers.count("fill='none'") == 6 and "hsl(270" in layers and "hsl(55" in layers  # stem, four blocks and head
    assert "moving average" in page.sections["curves"]
    assert settings(bad_folders).to_yaml() in page.sections["recipe"]
    assert (folder / "environment.json").read_text() in page.sections["environment"]
    assert page.sections["histograms"].count("weights ") == 10 and "activations blocks.3" in page.sections["histograms"]
    assert not list(folder.glob(".*.tmp"))


def test_the_figures_are_those_of_the_best_epoch(whole):
    folder, result = whole
    page = Page((folder / "report.html").read_text("utf-8"))
    found = re.findall(r"(\d+) of 4(\d+\.\d\d) %", page.sections["classes"])
    assert len(found) == 3 and all(float(share) == 25 * int(right) for right, share in found)
    assert sum(int(right) for right, _ in found) == round(12 * result["top1"])
    records = Records(folder / "visualdl" / FILE).read()
    cells, names = report.read_cells(records.others["text"][report.CONFUSION][result["best_epoch"]].encoded_text_string)
    assert cells[:, 2].sum() == 12 and cells[cells[:, 0] == cells[:, 1], 2].sum() == round(12 * result["top1"])
    assert names[0] == min(BAD)


def test_names_cannot_become_part_of_the_page(whole):
    text = (whole[0] / "report.html").read_text("utf-8")
    page = Page(text)
    assert page.tags <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "section", "p", "a", "svg", "path", "text"),
        *("circle", "img", "table", "thead", "tr", "td", "th", "div", "pre", "span"),
    }
    for name in BAD:
        assert name.replace("/", "\u2215") in page.sections["classes"]
    assert "default-src 'none'" in text and not re.search(r"(src|href)=['\"](?!data:|#)", text)


@pytest.mark.parametrize("steps", [2, 4, 7])
def test_the_report_of_a_run_that_went_on_is_that_of_an_unbroken_one(whole, bad_folders, tmp_path, monkeypatch, steps):
    original = callbacks.Count.on_train_batch_end

    def stop(self, step, logs=None):
        original(self, step, logs)
        if self.state.steps == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    ours = settings(bad_folders)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(callbacks.Count, "on_train_batch_end", stop)
        finetune.finetune(ours, tmp_path / "run")
    stopped = Page((tmp_path / "run/report.html").read_text("utf-8")).sections
    assert f"{(steps - 1) // 3} of 3 epochs on folder, {steps} steps" in stopped["summary"]
    assert ("classes" in stopped) == (steps > 3)
    finetune.finetune(ours, tmp_path / "run", resume=True)
    assert sections(tmp_path / "run") == sections(whole[0])
    (tmp_path / "run/report.html").unlink()  # as if the run had been cut off just before its end
    finetune.finetune(ours, tmp_path / "run", resume=True)
    assert sections(tmp_path / "run") == sections(whole[0])


def test_a_file_without_the_newer_records_makes_a_page(whole, tmp_path):
    """A run that an older version began has curves, pictures and the recipe alone."""
    from visualdl import LogWriter

    with LogWriter(str(tmp_path / "visualdl"), file_name=FILE) as writer:
        writer.add_scalar("train/loss", 1.0, 1)
    records = Records(tmp_path / "visualdl" / FILE).read()
    page = Page(report.page(tmp_path, records, settings("x"), run_state.RunState()))
    assert list(page.sections) == ["summary", "curves", "recipe"]


@pytest.mark.parametrize("left", [0, 0.5])
def test_lost_curves_end_no_run(whole, bad_folders, tmp_path, left):
    ours = settings(bad_folders)
    finetune.finetune(settings(bad_folders, "train.epochs=1"), tmp_path / "run")
    file = tmp_path / "run/visualdl" / FILE
    file.write_bytes(file.read_bytes()[: int(left * file.stat().st_size)])
    finetune.finetune(ours, tmp_path / "run", resume=True, allow_changes=True)
    page = Page((tmp_path / "run/report.html").read_text("utf-8"))
    assert "3 of 3 epochs" in page.sections["summary"]


def test_records_are_read_on_and_a_cut_one_waits(whole, tmp_path):
    whole_file = whole[0] / "visualdl" / FILE
    content, expected = whole_file.read_bytes(), Records(whole_file).read()
    records = Records(tmp_path / "file")
    for end in np.linspace(0, len(content), 23).astype(int):
        (tmp_path / "file").write_bytes(content[:end])
        records.read()
    assert records.curves == expected.curves and records.others == expected.others
    at, values = records.curves["eval/loss"]
    assert at.tolist() == [3, 6, 9] and len(values) == 3


def test_classes_beyond_a_few_are_told_in_short(tmp_path):
    from visualdl import LogWriter

    from ppconvmixer import curves

    rng = np.random.default_rng(0)
    cells = np.array([(i, j, rng.integers(1, 9)) for i in range(300) for j in ({i, *rng.integers(0, 300, 3).tolist()})])
    with LogWriter(str(tmp_path / "visualdl"), file_name=FILE) as writer:
        writer.add_text(report.CONFUSION, curves._table(cells, [f"class {i}" for i in range(300)]), 1)
    records = Records(tmp_path / "visualdl" / FILE).read()
    state = run_state.RunState(epochs=1, best_epoch=1)
    page = Page(report.page(tmp_path, records, settings("x"), state)).sections
    assert "The 20 classes that most mistakes are about" in page["confusion"]
    assert "The 200 lowest of 300 classes" in page["classes"] and "precision" not in page


# --- drawings -----------------------------------------------------------------------------------------


def test_lines_leave_out_what_is_not_finite_and_keep_the_mean():
    y = np.sin(np.arange(10_001) / 50)
    text = svg.lines("a<b", {"one": (np.arange(10_001), y), "two": ([0, 1], [np.nan, np.inf])}, "step")
    (path,) = re.findall("<path d='M([^']*)' fill='none'", text)
    assert path.count("L") == svg.POINTS - 1 and "a&lt;b" in text and "nan" not in text and "two" not in text
    x, thinned = svg._thinned(np.arange(10_001.0), y)
    assert np.average(thinned, weights=np.diff([*np.linspace(0, 10_001, 400, endpoint=False).astype(int), 10_001])) == (
        pytest.approx(y.mean())
    )
    assert svg.lines("empty", {"one": ([1], [np.nan])}, "step") == ""


@pytest.mark.parametrize("values", [[3.0], [0.0], [-2.5, -2.5], [1e-30, 1e30], [0.1, 0.7]])
@pytest.mark.parametrize("log", [False, True])
def test_lines_of_any_range(values, log):
    text = svg.lines("", {"": (range(len(values)), values)}, "x", log)
    numbers = [float(n) for d in re.findall("<path d='M([^']*)' fill", text) for n in re.findall(r"[-\d.e]+", d)]
    assert all(0 <= n <= 560 for n in numbers)


def test_ticks_are_round_and_around_the_range():
    for low, high in [(0, 1), (0.013, 0.97), (-3, 250), (1e-5, 2e-5), (0, 149)]:
        ticks = svg._ticks(low, high)
        assert ticks[0] <= low and high <= ticks[-1] and 3 <= len(ticks) <= 8
    assert svg._decades(0.02, 30) == [-2, -1, 0, 1, 2] and svg._decades(1e-9, 1e8) == [-9, -6, -3, 0, 3, 6, 9]


def test_powers_of_ten_only_for_a_wide_range_above_zero():
    for values, wide in (([0.1, 200], True), ([0.1, 2], False), ([0, 200], False), ([-1, 200], False)):
        text = svg.lines("", {"": ([0, 1], values)}, "x", log=True)
        assert (">1000<" in text) == wide
