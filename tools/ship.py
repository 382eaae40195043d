"""Put the weights of finished runs into ``weights/``, with a card that says where they come from.

    python tools/ship.py convmixer_128_8_cifar10 "CIFAR-10, as JPEGs of quality 75" runs/first runs/second

The weights are those after the last epoch (of a run with a moving average, that average, whether it is the best of the
run or not), so that no epoch was chosen by the pictures they are judged by; of several runs, the mean of these. The
manifest gets their entry, and ``tests/golden`` the logits that the tests expect, by Paddle's own layers in float64.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # in place of this folder, whose inspect.py hides Python's own; a clone is not installed

import argparse  # noqa: E402
import dataclasses  # noqa: E402
import json  # noqa: E402
import shlex  # noqa: E402
import tempfile  # noqa: E402

import numpy as np  # noqa: E402
import paddle  # noqa: E402

from ppconvmixer import average, card, checkpoint, recipe, run_state, zoo  # noqa: E402
from ppconvmixer.evaluate import evaluate  # noqa: E402
from ppconvmixer.files import sha256  # noqa: E402
from ppconvmixer.finetune import open_data  # noqa: E402
from ppconvmixer.loader import Samples  # noqa: E402
from ppconvmixer.records import Records  # noqa: E402
from ppconvmixer.trained import Trained  # noqa: E402
from ppconvmixer.transforms import eval_transform  # noqa: E402

CURVES = "eval/top1", "eval/loss", "eval_ema/top1", "eval_ema/loss"


def main() -> None:
    """Ship runs."""
    parser = argparse.ArgumentParser(description="Put the weights of finished runs into weights/.")
    parser.add_argument("name", help="of the files, such as convmixer_128_8_cifar10")
    parser.add_argument("data", help="what they were trained on and judged by, in words")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="its pictures are where its recipe says")
    options = parser.parse_args()
    target = ROOT / "weights" / f"{options.name}.pdparams"
    networks, facts = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, run in enumerate(options.runs):
            path = Path(folder, f"{number}.pdparams")
            if not _last(run, path):
                parser.error(f"{run} has not come to its end; go on with --resume")
            networks.append(Trained(path))
            facts.append(_facts(run, path, options.data))
        checkpoint.write(target, average.average(networks))
        about, told = card.read(networks[0].path), facts[0]
    if len(facts) > 1:
        commands = [one["command"] for one in facts]
        told = {**told, **_metrics(target, about, options.runs[0]), "command": "the mean of " + ", ".join(commands)}
        told |= {"epoch": [one["epoch"] for one in facts], "ema": None, "average_of": facts}
    card.write(target, dataclasses.replace(about, facts=told))
    _golden(about, target)
    _enter(about, told, target)
    print(f"{target}: top-1 {100 * told['top1']:.2f} %, {target.stat().st_size:,} bytes")


def _last(run: Path, path: Path) -> bool:
    """Write the network that a run ended with, and its card; return False where the run is under way.

    A moving average is in the state of the run alone, unless the last epoch was the best.
    """
    saved, about = run_state.read(run), card.read(run / "last.pdparams")
    result = run / "result.json"  # it may have been written by an end that the run went on from
    if not result.is_file() or saved.run["step"] or json.loads(result.read_text())["epochs"] != saved.run["epochs"]:
        return False
    ema = about.facts["recipe"]["train"]["ema"]
    part, metrics = ("ema/", "ema_metrics") if ema else ("model/", "metrics")
    checkpoint.write(path, {name[len(part) :]: value for name, value in saved.arrays.items() if name.startswith(part)})
    facts = {**about.facts, **saved.run[metrics], "epoch": saved.run["epochs"], "ema": ema}
    card.write(path, dataclasses.replace(about, facts=facts))
    return True


def _facts(run: Path, weights: Path, data: str) -> dict:
    """Return what the card says of a run, without the folders of whoever trained it."""
    environment, found = json.loads((run / "environment.json").read_text()), card.read(weights).facts
    command = [
        f"data.path={Path(word).name}" if word.startswith("data.path=") else word for word in environment["command"]
    ]
    curves = Records(next((run / "visualdl").glob("vdlrecords.*.log"))).read().curves
    settings = {**found["recipe"], "data": {**found["recipe"]["data"]}}
    settings["data"]["path"] = Path(settings["data"]["path"]).name
    for one in found.get("changed", []):
        one["changes"] = [_without_folders(change) for change in one["changes"]]
    before = settings["model"]["weights"]
    if before:  # what is told of shipped weights names no folders
        shipped = Path(before).resolve().parent == ROOT / "weights"
        before = {**(card.read(before).facts if shipped else {}), "sha256": sha256(before)}
    return {
        "command": shlex.join(["python", *command]),
        "sha256": sha256(weights),
        "started_from": before,
        "data": data,
        "environment": {key: environment[key] for key in ("git_revision", "versions", "device", "processes", "cpus")},
        "curve": {tag: [round(v, 6) for v in curves[tag][1]] for tag in CURVES if tag in curves},
        **{key: found[key] for key in ("samples", "top1", "top5", "loss", "epoch", "ema")},
        **({"changed": found["changed"]} if "changed" in found else {}),
        "recipe": settings,
    }


def _without_folders(change: str) -> str:
    """Leave folders out of a change under way, such as "data.path: /home/me/a -> /home/me/b"."""
    name, _, values = change.partition(": ")
    if name != "data.path":
        return change
    return f"{name}: {' -> '.join(Path(value).name for value in values.split(' -> '))}"


def _metrics(path: Path, about: card.Card, run: Path) -> dict:
    """Return the accuracy of weights on the pictures that a run was judged by."""
    network = Trained(path, about.model)
    samples = Samples(open_data(recipe.load(run / "recipe.yaml"))[1], eval_transform(network.input))
    found = evaluate(network.engine("dygraph"), samples, 500, 1).metrics()
    return {key: found[key] for key in ("samples", "top1", "top5", "loss")}


def _enter(about: card.Card, facts: dict, target: Path) -> None:
    """Put the weights into the manifest."""
    manifest = ROOT / "ppconvmixer/manifest.json"
    entries = json.loads(manifest.read_text("utf-8"))
    entries[about.model] = {
        **{key: facts[key] for key in ("top1", "top5")},
        "data": "CIFAR-10",
        "source": f"trained here, {facts['samples']:,} test pictures; see weights/{target.stem}.json",
        "input": about.input,
        "shipped": target.name,
    }
    manifest.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _golden(about: card.Card, path: Path) -> None:
    """Write the logits of four pictures out of a formula; tests/conftest.py has it too."""
    paddle.set_default_dtype("float64")
    model = zoo.create_model(about.model, num_classes=len(about.classes))
    state = zoo.translate(path).state
    model.set_state_dict({key: np.asarray(value, np.float64) for key, value in state.items()})
    model.eval()
    y, x, channel, number = np.ogrid[:32, :32, :3, :4]
    images = np.sin(0.3 * (number + 1) * x + 0.2 * y * (channel + 1)).transpose(3, 2, 0, 1).astype(np.float32)
    with paddle.no_grad():
        logits = model(paddle.to_tensor(images.astype(np.float64))).numpy()
    np.save(ROOT / "tests/golden" / f"{about.model}.npy", logits)


if __name__ == "__main__":
    main()
