"""Edge: a version becomes a .tflite file; a device downloads, verifies and runs it.

The device is two programs that import nothing from this repository, `edge_pull.py` and `edge_predict.py`,
each in a process of its own.
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

from demo_steps import FILES, Failed, print_step
from demo_steps.online import EXAMPLE, NAME, TrainedForest, compare_with_sklearn
from service.client import Client, Record, ServerRefused, path

SCRIPTS = Path(__file__).parent.parent
DEVICE = FILES / "device"


class DeviceRun(NamedTuple):
    file: Path
    predictions: list[dict[str, Any]]
    median_us: float  # microseconds per row


def run_edge(client: Client, trained: TrainedForest, version: Record) -> None:
    """Export the forest, pull it as a device and run it on the hold-out. Raises `Failed`."""
    print_gate(export(client, version, "none"))
    for note in export(client, version, "int8")["report"]["notes"]:
        print_step("Quantized", textwrap.fill(f"to int8: {note}", 100))
    device = run_on_device(client, NAME, "none", EXAMPLE)
    summary, agrees = compare_with_sklearn(trained, device.predictions)
    size = device.file.stat().st_size
    print_step("On LiteRT", f"{summary};\n{size:,} bytes, {device.median_us:.0f} us per row (median)")
    if not agrees:
        raise Failed("the device's answers differ from scikit-learn's")


def export(client: Client, version: Record, quantize: str) -> Record:
    """Return an export of the version, a new one if none exists. Raises `Failed` when the gate rejects it."""
    name, number = version["model"], version["version"]
    for existing in client.pages(path("models", name, "versions", number, "exports"))["items"]:
        if existing["quantize"] == quantize and existing["state"] == "ready":
            print_step("Exported", f"already, {name} version {number} ({quantize})")
            return dict(existing)
    start = time.perf_counter()
    created = client.export(name, number, {"format": "tflite", "quantize": quantize})
    record = client.wait_export(created)
    if record["state"] != "ready":
        raise Failed(f"the export is {record['state']}, expected ready; its report: {record['report']}")
    seconds = time.perf_counter() - start
    print_step("Exported", f"{name} version {number} as .tflite ({quantize}): ready after {seconds:.1f} s")
    return record


def print_gate(record: Record) -> None:
    """Print what the gate measured before it accepted the export."""
    report = record["report"]
    rows = ", ".join(f"{k['rows']:,} {kind}" for kind, k in report["kinds"].items() if k["judged"])
    lines = [
        f"on {rows} rows: {report['label_agreement']:.3%} of the labels agree,",
        f"largest difference of a probability {report['largest_difference']:.1g}",
        f"{record['bytes']:,} bytes ({report['bytes']['zstd']:,} with zstd), "
        f"runs on LiteRT {record['min_runtime']} and later",
    ]
    if accuracy := report["accuracy"]:
        lines.append(f"{accuracy['measure']} {accuracy['before']:.4f} before, {accuracy['after']:.4f} after")
    print_step("Gate", "\n".join([*lines, *report["notes"]]))


def run_on_device(client: Client, name: str, quantize: str, rows: Path) -> DeviceRun:
    """Pull the champion as a device and run it on the features of a CSV file. Raises `Failed`."""
    directory = DEVICE / name
    key = _edge_key(client, name)
    pull = [SCRIPTS / "edge_pull.py", "--once", "--url", client.url, "--model", name, "--dir", directory]
    pull += ["--quantize", quantize, "--key-file", key, "--root", _write_root(), "--device", "demo"]
    log_lines = _run_program(pull).stderr.splitlines()
    file = directory / f"{name}.tflite"
    print_step("Pulled", f"{file}: {log_lines[-1].split(' INFO ')[-1]}")
    answer = msgspec.json.decode(_run_program([SCRIPTS / "edge_predict.py", file, rows]).stdout)
    return DeviceRun(file, answer["predictions"], answer["median_us"])


def _run_program(command: list[Any]) -> subprocess.CompletedProcess[str]:
    """Run a device's program to its end, without the server's environment variables."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRIVIUM_")}
    process = subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if process.returncode != 0:
        raise Failed(f"{Path(command[0]).name} failed with exit code {process.returncode}:\n{process.stderr}")
    return process


def _edge_key(client: Client, name: str) -> Path:
    """Return a file with a key that may only pull this model; an existing one if it still works."""
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
    request = {"name": f"the demo's device of {name}", "scopes": ["edge"], "models": [name]}
    secret = client.create(path("keys"), request)["key"]
    file.touch(mode=0o600)
    file.write_text(f"{secret}\n")
    return file


def _write_root() -> Path:
    """Write the TUF root document, which a device trusts from its installation on."""
    file = DEVICE / "root.json"
    trivium = Path(sys.executable).with_name("trivium")
    file.write_bytes(subprocess.run([str(trivium), "tuf", "root"], check=True, capture_output=True).stdout)
    return file
