"""The page that classifies pictures in the browser.

What runs in a browser wants Chromium, as a program of that name or as PPCONVMIXER_CHROMIUM names it, and the two files
of ``web.RUNTIME``, in the folder that PPCONVMIXER_ONNXRUNTIME_WEB names.
"""

import base64
import contextlib
import functools
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from chromium import Chromium
from conftest import ROOT, picture, random_state, refused, run
from PIL import Image

from ppconvmixer import card, checkpoint, web, zoo
from ppconvmixer.exported import Exported
from ppconvmixer.trained import Trained
from ppconvmixer.transforms import decode, eval_crop

SOURCES = ROOT / "ppconvmixer/web"
CLASSES = ("ant", "bee", "cat", "dog", "<b>eel</b>", "fox", "gnu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A convmixer_tiny of seven classes that cuts off a margin; its probabilities are no 0 and 1."""
    path = tmp_path_factory.mktemp("weights") / "seven.pdparams"
    state = random_state(dim=64, depth=4, kernel_size=5, patch_size=4, num_classes=len(CLASSES))
    checkpoint.write(path, state | {"head.weight": state["head.weight"] / 4})
    card.write(path, card.Card(model="convmixer_tiny", classes=CLASSES, input={"size": 36, "crop_pct": 0.875}))
    return path


@pytest.fixture(scope="module")
def page(weights, tmp_path_factory):
    """The folder of an export, without the runtime."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("page") / "made"
    assert run("export", "--weights", weights, "--format", "web", folder) == 0
    return folder


def encoded(image, kind, **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


# --- the export -------------------------------------------------------------------------------------


def test_a_folder_with_all_but_the_runtime(page):
    assert {path.name for path in page.iterdir()} == {path.name for path in web.files(page)}
    about = json.loads((page / "model.json").read_text("utf-8"))
    assert about == {
        "model": "convmixer_tiny",
        **{"size": 36, "crop_pct": 0.875, "interpolation": "bicubic"},
        "classes": list(CLASSES),
    }
    assert Exported(page / "model.onnx").pixels


def test_classes_without_names_have_numbers(tmp_path):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, random_state(dim=24, depth=2, kernel_size=3, patch_size=2, num_classes=2))
    card.write(path, card.Card(model="convmixer_24_2_ks3_p2"))
    assert run("export", "--weights", path, "--format", "web", "--half", tmp_path / "page") == 0
    assert json.loads((tmp_path / "page/model.json").read_text())["classes"] == ["class 0", "class 1"]


def test_what_is_there_is_replaced_when_asked_and_the_rest_stays(page, weights, tmp_path, capsys):
    folder = tmp_path / "page"
    folder.mkdir()
    for name in web.RUNTIME:
        (folder / name).write_text("the runtime")
    command = ("export", "--weights", weights, "--format", "web", folder)
    assert run(*command) == 0  # nothing of it is there yet
    assert "onnxruntime-web" not in capsys.readouterr().out
    (folder / "index.html").write_text("mine")
    assert f"{folder}/model.onnx exists" in refused(capsys, *command)
    assert (folder / "index.html").read_text() == "mine"
    assert run(*command, "--overwrite") == 0
    assert (folder / "index.html").read_bytes() == (page / "index.html").read_bytes()
    assert all((folder / name).read_text() == "the runtime" for name in web.RUNTIME)


def test_mistakes(weights, tmp_path, capsys):
    command = ("export", "--weights", weights, "--format", "web")
    assert "--any-size has no effect" in refused(capsys, *command, "--any-size", tmp_path / "page")
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(capsys, *command, tmp_path / "file")
    assert not (tmp_path / "page").exists()


def test_the_page_knows_no_other_place():
    html = (SOURCES / "index.html").read_text()
    policy = dict(part.split(" ", 1) for part in re.search(r'content="(default-src.*?)"', html)[1].split("; "))
    assert policy["default-src"] == "'none'"
    assert {source for sources in policy.values() for source in sources.split()} == {
        *("'none'", "'self'", "'wasm-unsafe-eval'", "blob:", "data:")
    }
    for name in web.PAGE:
        assert "//" not in re.sub(r"(^|[ ;])// .*", "", (SOURCES / name).read_text(), flags=re.M), name
    assert all(f'"{name}"' in (SOURCES / "page.mjs").read_text() for name in web.RUNTIME)


# --- pixels, by Node.js -----------------------------------------------------------------------------


def node(script, *arguments):
    """Run a module that imports from the page's sources; return what it prints, as JSON."""
    program = shutil.which("node")
    if not program:
        pytest.skip("needs Node.js, the program node")
    script = re.sub(r'"\./(\w+\.mjs)"', lambda found: json.dumps((SOURCES / found[1]).as_uri()), script)
    command = [program, "--input-type=module", "--eval", script, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)


CROP = """
import { evalCrop } from "./crop.mjs";
import { readFileSync, writeFileSync } from "node:fs";
const folder = process.argv.at(-1);
for (const [i, { width, height, input }] of JSON.parse(readFileSync(`${folder}/cases.json`)).entries()) {
  const rgba = readFileSync(`${folder}/${i}.rgba`);
  const rows = (top, count) => rgba.subarray(4 * top * width, 4 * (top + count) * width);
  writeFileSync(`${folder}/${i}.rgb`, evalCrop(width, height, rows, input));
}
console.log(true);
"""


def horizontally_first(image, spec):
    """What ``eval_crop`` makes where Pillow resizes the width before the height, which it leaves no choice here."""
    short = int(spec.size / spec.crop_pct)
    scale = [short if side == min(image.size) else int(short * side / min(image.size)) for side in image.size]
    method = Image.Resampling[spec.interpolation.upper()]
    resized = np.asarray(image.resize((scale[0], image.height), method).resize(scale, method))
    top, left = (int(round((side - spec.size) / 2)) for side in resized.shape[:2])
    return resized[top : top + spec.size, left : left + spec.size]


def test_the_crop_is_pillows_to_the_bit(tmp_path):
    rng, cases, expected = np.random.default_rng(0), [], []
    sizes = (40, 32), (32, 32), (20, 37), (31, 33), (7, 5), (1, 2), (300, 1), (413, 291), (130, 250), (90, 290)
    for width, height in sizes:
        for size, crop_pct in ((32, 1.0), (33, 0.875), (224, 0.96)):
            for interpolation in zoo.INTERPOLATIONS:
                rgba = rng.integers(0, 256, (height, width, 4), np.uint8)
                (tmp_path / f"{len(cases)}.rgba").write_bytes(rgba.tobytes())
                spec = zoo.InputSpec(size, crop_pct, interpolation, (0.5,) * 3, (0.5,) * 3)
                image = Image.fromarray(rgba[..., :3].copy())
                tall = height > 2 * width and interpolation != "nearest"  # Pillow 13 resizes the height of those first
                expected.append((horizontally_first if tall else lambda i, s: eval_crop(s)(i))(image, spec))
                asked = {"size": size, "crop_pct": crop_pct, "interpolation": interpolation}
                cases.append({"width": width, "height": height, "input": asked})
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    assert node(CROP, tmp_path)
    for i, wanted in enumerate(expected):
        found = np.fromfile(tmp_path / f"{i}.rgb", np.uint8).reshape(wanted.shape)
        np.testing.assert_array_equal(found, wanted, err_msg=str(cases[i]))


UNTURN = """
import { withoutExif } from "./picture.mjs";
const told = process.argv.slice(-1)[0].split(",").map((text) =>
  Buffer.concat(withoutExif(new Uint8Array(Buffer.from(text, "base64")))).toString("base64"));
console.log(JSON.stringify(told));
"""


def test_no_decoder_can_turn_the_picture():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image = picture(0)
    turned = [encoded(image, kind, exif=exif) for kind in ("JPEG", "PNG")]
    others = [encoded(image, kind) for kind in ("JPEG", "PNG", "BMP", "GIF")]
    broken = [content[:length] for content in turned for length in (0, 1, 3, 5, 9, 13, 30, 45, 60)]
    texts = [base64.b64encode(content).decode() for content in (*turned, *others, *broken)]
    found = [base64.b64decode(text) for text in node(UNTURN, ",".join(texts))]
    for before, after in zip(turned, found):
        before, after = (Image.open(io.BytesIO(content)) for content in (before, after))
        assert before.getexif() and not after.getexif()
        np.testing.assert_array_equal(np.asarray(after), np.asarray(before))
    assert found[len(turned) :][: len(others)] == others
    assert all(len(after) <= len(before) for before, after in zip(broken, found[-len(broken) :]))


# --- the page, in Chromium --------------------------------------------------------------------------


@contextlib.contextmanager
def served(folder):
    """Serve a folder as any web server does; give its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def browser():
    known = os.environ.get("PPCONVMIXER_CHROMIUM"), "chromium", "chromium-browser", "google-chrome"
    program = next(filter(None, map(shutil.which, filter(None, known))), None)
    if not program:
        pytest.skip("needs Chromium; PPCONVMIXER_CHROMIUM names the program")
    with Chromium(program) as browser:
        for domain in ("Network", "Page", "Runtime", "Log", "DOM"):
            browser(f"{domain}.enable")
        yield browser


@pytest.fixture(scope="module")
def runtime():
    folder = Path(os.environ.get("PPCONVMIXER_ONNXRUNTIME_WEB", "no folder"))
    if not all((folder / name).is_file() for name in web.RUNTIME):
        pytest.skip(f"needs {' and '.join(web.RUNTIME)} in the folder that PPCONVMIXER_ONNXRUNTIME_WEB names")
    return folder


@pytest.fixture(scope="module")
def opened(browser, page, runtime, tmp_path_factory):
    """The browser with the page in it, ready, and the page's address."""
    folder = tmp_path_factory.mktemp("served") / "page"
    shutil.copytree(page, folder)
    for name in web.RUNTIME:
        (folder / name).symlink_to(runtime / name)
    with served(folder) as address:
        browser("Page.navigate", url=address)
        browser.wait(f"{STATUS} === 'Ready.'")
        yield browser, address


STATUS = "document.getElementById('status')?.textContent"
ROWS = "Array.from(document.querySelectorAll('#classes li'), (row) => Array.from(row.children, (c) => c.textContent))"


def drop(browser, path):
    x = y = 100
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        browser("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)


def choose(browser, path):
    root = browser("DOM.getDocument")["root"]["nodeId"]
    node = browser("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    browser("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


def paste(browser, path):
    content = base64.b64encode(path.read_bytes()).decode()
    browser.value(f"""{{
        const data = new DataTransfer();
        const bytes = Uint8Array.from(atob("{content}"), (c) => c.charCodeAt(0));
        data.items.add(new File([bytes], {json.dumps(path.name)}));
        document.dispatchEvent(new ClipboardEvent("paste", {{ clipboardData: data }}));
    }}""")


def classes(browser, way, path):
    """Give the page a picture; return the names it shows with their probabilities in percent."""
    way(browser, path)
    browser.wait(f"{STATUS}.startsWith({json.dumps(path.name + ', ')}) && {STATUS}.includes(' ms ')")
    return [(name, float(probability.rstrip(" %"))) for name, probability, _ in browser.value(ROWS)]


def shown(browser):
    """Return what the page shows as the network's input."""
    size, *rgba = browser.value("""(() => {
        const canvas = document.getElementById("input");
        return [canvas.width, ...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
    })()""")
    return np.array(rgba).reshape(size, size, 4)[..., :3]


def predicted(capsys, weights, path):
    """What the command line says of it."""
    capsys.readouterr()
    assert run("predict", "--weights", weights, "--engine", "dygraph", path) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    return [(name, float(probability)) for probability, name in (line.strip().split(" %  ") for line in lines)]


def turned(image):
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, "JPEG", exif=exif)


def translucent(image):
    """Less and less opaque from the left to the right, where nothing is left to see; the colours stay below."""
    alpha = Image.fromarray(np.tile(np.linspace(255, -255, image.width).clip(0).astype(np.uint8), (image.height, 1)))
    image.putalpha(alpha)
    return encoded(image, "PNG")


@pytest.mark.parametrize("way", [drop, choose, paste])
@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("a.png", lambda image: encoded(image, "PNG")),
        ("grey.png", lambda image: encoded(image.convert("L"), "PNG")),
        ("palette.gif", lambda image: encoded(image, "GIF")),
        ("turned.jpg", turned),
        ("translucent.png", translucent),
    ],
)
def test_the_page_says_what_predict_says(opened, weights, tmp_path, capsys, name, encode, way):
    browser, _ = opened
    path = tmp_path / f"{way.__name__} {name}"
    path.write_bytes(encode(picture(len(path.name), 83, 61)))
    expected, found = predicted(capsys, weights, path), classes(browser, way, path)
    assert len(found) == 5 and [name for name, _ in found] == [name for name, _ in expected]
    # Both are rounded to a hundredth; and a decoder of JPEG of another build may differ by a level.
    percent, levels = (0.1, 2) if path.suffix == ".jpg" else (0.011, 0)
    np.testing.assert_allclose([p for _, p in found], [p for _, p in expected], rtol=0, atol=percent)
    wanted = eval_crop(Trained(weights).input)(decode(path.read_bytes())).astype(int)
    np.testing.assert_allclose(shown(browser), wanted, rtol=0, atol=levels)


def test_what_is_no_picture_is_said_and_the_next_one_is_classified(opened, tmp_path):
    browser, _ = opened
    for name, content in (
        ("notes.txt", b"no picture"),
        ("half.png", encoded(picture(0), "PNG")[:-200]),
        ("no.jpg", b""),
    ):
        (tmp_path / name).write_bytes(content)
        drop(browser, tmp_path / name)
        assert browser.wait(f"{STATUS}.startsWith('{name} is') && {STATUS}") == (
            f"{name} is not a picture that this browser can read."
        )
        assert browser.value("document.getElementById('result').hidden")
    picture(1).save(tmp_path / "next.png")
    assert len(classes(browser, drop, tmp_path / "next.png")) == 5


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("CanvasRenderingContext2D.prototype.getImageData = () => new ImageData(1, 1)", "hides pixels from pages"),
        ("WebGLRenderingContext.prototype.getError = () => 1285", "does not tell its colours"),
    ],
    ids=["canvas", "WebGL"],
)
def test_pixels_that_cannot_be_had_become_no_other_picture(opened, tmp_path, broken, said):
    browser, _ = opened
    (tmp_path / "a.png").write_bytes(translucent(picture(4)))
    name = broken.split(" = ")[0]
    browser.value(f"window.kept = {name}; {broken}; 0")
    try:
        drop(browser, tmp_path / "a.png")
        assert said in browser.wait(f"document.querySelector('.wrong') && {STATUS}")
        assert browser.value("document.getElementById('result').hidden")
    finally:
        browser.value(f"{name} = window.kept; 0")
    assert len(classes(browser, drop, tmp_path / "a.png")) == 5


def test_the_keyboard_reaches_the_file(opened):
    browser, _ = opened
    for kind in ("keyDown", "keyUp"):
        browser("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert browser.value("document.activeElement.id") == "file"


def test_nothing_is_asked_of_anybody_else(opened, tmp_path):
    browser, address = opened
    picture(2).save(tmp_path / "a.png")
    classes(browser, choose, tmp_path / "a.png")
    requests = browser.told("Network.requestWillBeSent")
    assert {each["request"]["method"] for each in requests} == {"GET"}
    for each in requests:
        assert each["request"]["url"].startswith((address, f"blob:{address}", "data:,")), each["request"]["url"]
    complaints = [each["entry"] for each in browser.told("Log.entryAdded") if each["entry"]["level"] == "error"]
    assert not complaints and not browser.told("Runtime.exceptionThrown")  # of the policy, say


def test_a_page_without_its_runtime_says_what_is_missing(browser, page):
    with served(page) as address:
        browser("Page.navigate", url=address)
        said = browser.wait(f"document.querySelector('.wrong') && {STATUS}")
    assert said.startswith("ONNX Runtime Web is missing: put") and all(name in said for name in web.RUNTIME)
