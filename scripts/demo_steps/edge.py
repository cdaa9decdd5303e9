"""The edge road: a version becomes a .tflite file, and a device pulls it, checks it and runs it.

The device is two programs that depend on nothing of this repository, each a process of its own:
`edge_pull.py` and `edge_predict.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from demo_steps import FILES, Failed, say
from demo_steps.online import EXAMPLE, NAME, Trained, agreement
from service.client import Client, Record, ServerRefused, path

SCRIPTS = Path(__file__).parent.parent
DEVICE = FILES / "device"


class Ran(NamedTuple):
    file: Path
    predictions: list[dict[str, Any]]
    median_us: float  # one row


def road(client: Client, trained: Trained, version: Record) -> None:
    """Exports the forest, pulls it and runs it on the hold-out. Raises `Failed`."""
    tell(export(client, version, "none"))
    for note in export(client, version, "int8")["report"]["notes"]:
        say("Quantized", textwrap.fill(f"to int8: {note}", 100))
    ran = on_device(client, NAME, "none", EXAMPLE)
    words, agrees = agreement(trained, ran.predictions)
    size = ran.file.stat().st_size
    say("On LiteRT", f"{words};\n{size:,} bytes, {ran.median_us:.0f} us for one row (median)")
    if not agrees:
        raise Failed("the device's answers are not scikit-learn's")


def export(client: Client, version: Record, quantize: str) -> Record:
    """A new export, or the one that was made before. Raises `Failed` when it does not pass the gate."""
    name, number = version["model"], version["version"]
    for made in client.pages(path("models", name, "versions", number, "exports"))["items"]:
        if made["quantize"] == quantize and made["state"] == "ready":
            say("Exported", f"already, {name} version {number} ({quantize})")
            return dict(made)
    started = time.perf_counter()
    asked = client.export(name, number, {"format": "tflite", "quantize": quantize})
    record = client.wait_export(asked)
    if record["state"] != "ready":
        raise Failed(f"the export should be ready; its report: {record['report']}")
    took = time.perf_counter() - started
    say("Exported", f"{name} version {number} as .tflite ({quantize}): ready after {took:.1f} s")
    return record


def tell(record: Record) -> None:
    """What the gate measured."""
    report = record["report"]
    rows = ", ".join(f"{of['rows']:,} {kind}" for kind, of in report["kinds"].items() if of["judged"])
    lines = [
        f"on {rows} rows: {report['label_agreement']:.3%} of the labels agree,",
        f"largest difference of a probability {report['largest_difference']:.1g}",
        f"{record['bytes']:,} bytes ({report['bytes']['zstd']:,} with zstd), "
        f"runs on LiteRT {record['min_runtime']} and later",
    ]
    if accuracy := report["accuracy"]:
        lines.append(f"{accuracy['measure']} {accuracy['before']:.4f} before, {accuracy['after']:.4f} after")
    say("Gate", "\n".join([*lines, *report["notes"]]))


def on_device(client: Client, name: str, quantize: str, rows: Path) -> Ran:
    """Pulls the champion as a device does, and runs it on the features of a CSV file. Raises `Failed`."""
    directory = DEVICE / name
    key = edge_key(client, name)
    pull = [SCRIPTS / "edge_pull.py", "--once", "--url", client.url, "--model", name, "--dir", directory]
    order = [*pull, "--quantize", quantize, "--key-file", key, "--root", trusted_root(), "--device", "demo"]
    told = run(order).stderr.splitlines()
    file = directory / f"{name}.tflite"
    say("Pulled", f"{file}: {told[-1].split(' INFO ')[-1]}")
    answer = msgspec.json.decode(run([SCRIPTS / "edge_predict.py", file, rows]).stdout)
    return Ran(file, answer["predictions"], answer["median_us"])


def run(order: list[Any]) -> subprocess.CompletedProcess[str]:
    """A device's program to its end. It sees nothing of the server's environment."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TRIVIUM_")}
    done = subprocess.run(
        [sys.executable, *map(str, order)], env=kept, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise Failed(f"{Path(order[0]).name} ends with {done.returncode}:\n{done.stderr}")
    return done


def edge_key(client: Client, name: str) -> Path:
    """A file with a key that may only pull this model; the one of the run before, when it still works."""
    file = DEVICE / f"{name}.key"
    if file.exists():
        try:
            with Client(client.url, file.read_text().strip()) as device:
                device.call("GET", path("edge", name))
        except ServerRefused as error:
            if error.status != 401:
                raise
        else:
            return file
    DEVICE.mkdir(exist_ok=True)
    asked = {"name": f"the demo's device of {name}", "scopes": ["edge"], "models": [name]}
    secret = client.create(path("keys"), asked)["key"]
    file.touch(mode=0o600)
    file.write_text(f"{secret}\n")
    return file


def trusted_root() -> Path:
    """What a device is given when it is set up: the keys that it shall trust."""
    file = DEVICE / "root.json"
    trivium = Path(sys.executable).with_name("trivium")
    file.write_bytes(subprocess.run([str(trivium), "tuf", "root"], check=True, capture_output=True).stdout)
    return file
