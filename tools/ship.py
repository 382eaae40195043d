"""Put the weights of a finished run into ``weights/``, with a card that says where they come from.

    python tools/ship.py runs/cifar10_128_8 convmixer_128_8_cifar10 "CIFAR-10, as JPEGs of quality 75"

They are those after the last epoch, so that no epoch was chosen by the pictures they are judged by. The manifest gets
their entry, and ``tests/golden`` the logits that the tests expect, by Paddle's own layers in float64.
"""

import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a clone works before it is installed

import numpy as np  # noqa: E402
import paddle  # noqa: E402

from ppconvmixer import card, checkpoint, zoo  # noqa: E402
from ppconvmixer.records import Records  # noqa: E402


def main() -> None:
    """Ship a run."""
    parser = argparse.ArgumentParser(description="Put the weights of a finished run into weights/.")
    parser.add_argument("run", type=Path)
    parser.add_argument("name", help="of the files, such as convmixer_128_8_cifar10")
    parser.add_argument("data", help="what they were trained on and judged by, in words")
    options = parser.parse_args()
    result = json.loads((options.run / "result.json").read_text())
    about = card.read(options.run / "last.pdparams")
    target = ROOT / "weights" / f"{options.name}.pdparams"
    checkpoint.write(target, checkpoint.read(options.run / "last.pdparams"))
    facts = _facts(options.run, options.data, about.facts)
    if facts["epoch"] != result["epochs"]:
        sys.exit(f"{options.run}: the last weights are of epoch {facts['epoch']}, the run has {result['epochs']}")
    card.write(target, dataclasses.replace(about, facts=facts))
    _golden(about.model, target)
    manifest = ROOT / "ppconvmixer/manifest.json"
    entries = json.loads(manifest.read_text("utf-8"))
    entries[about.model] = {
        **{key: facts[key] for key in ("top1", "top5")},
        "data": "CIFAR-10",
        "source": f"trained here, {facts['samples']:,} test pictures; see weights/{options.name}.json",
        "input": about.input,
        "shipped": target.name,
    }
    manifest.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print(f"{target}: top-1 {100 * facts['top1']:.2f} %, {target.stat().st_size:,} bytes")


def _facts(run: Path, data: str, found: dict) -> dict:
    """Return what the card says of the run, without the folders of whoever trained it."""
    environment = json.loads((run / "environment.json").read_text())
    command = [
        f"data.path={Path(word).name}" if word.startswith("data.path=") else word for word in environment["command"]
    ]
    curves = Records(next((run / "visualdl").glob("vdlrecords.*.log"))).read().curves
    recipe = {**found["recipe"], "data": {**found["recipe"]["data"]}}
    recipe["data"]["path"] = Path(recipe["data"]["path"]).name
    return {
        "command": shlex.join(["python", *command]),
        "data": data,
        "environment": {key: environment[key] for key in ("git_revision", "versions", "device", "processes", "cpus")},
        "curve": {tag: [round(v, 6) for v in curves[tag][1]] for tag in ("eval/top1", "eval/loss")},
        **{key: found[key] for key in ("samples", "top1", "top5", "loss", "epoch")},
        "recipe": recipe,
    }


def _golden(name: str, path: Path) -> None:
    """Write the logits of four pictures out of a formula; tests/test_weights.py has it too."""
    paddle.set_default_dtype("float64")
    model = zoo.create_model(name)
    state = zoo.translate(path).state
    model.set_state_dict({key: np.asarray(value, np.float64) for key, value in state.items()})
    model.eval()
    y, x, channel, number = np.ogrid[:32, :32, :3, :4]
    images = np.sin(0.3 * (number + 1) * x + 0.2 * y * (channel + 1)).transpose(3, 2, 0, 1).astype(np.float32)
    with paddle.no_grad():
        logits = model(paddle.to_tensor(images.astype(np.float64))).numpy()
    np.save(ROOT / "tests/golden" / f"{name}.npy", logits)


if __name__ == "__main__":
    main()
