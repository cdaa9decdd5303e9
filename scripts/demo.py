"""Trains a random forest, publishes it, asks it for predictions over HTTP, and leaves the server running.

Run by `scripts/demo`. With `--once` the server is stopped at the end. A second run finds the same model
and publishes nothing new.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import msgspec
import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score, classification_report
from sklearn.model_selection import train_test_split

from service.cli.report import parity_words
from service.client import Client, ModelRef, Record, ServerRefused, Unreachable, path

NAME = "breast-cancer"
TARGET = "diagnosis"
HOME = Path(os.environ.get("TRIVIUM_HOME") or ".trivium")
FILES = HOME / "demo"
START_S = 60.0
DEFAULT_URL = "http://127.0.0.1:8080"


class Trained(NamedTuple):
    model: RandomForestClassifier
    rows: pd.DataFrame  # the hold-out's features
    truth: pd.Series  # the hold-out's labels
    accuracy: float


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--once", action="store_true", help="stop the server at the end")
    parser.add_argument("--port", type=int, default=8080, help="a free one is taken when it is in use")
    once, wanted = (args := parser.parse_args()).once, args.port
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped on the way out
    try:
        trained = train()
        file, example, rows = save(trained)
        with serving(free_port(wanted)) as (client, server):
            version = publish(client, file, example, trained.accuracy)
            if version["state"] != "ready" or version["runtime"] != "onnx":
                say("Failed", f"this forest should be ready on onnx; its report: {version['report']}")
                return 1
            promote(client, version)
            agree = predict(client, trained)
            invite(client.url, rows)
            if not once:
                say("Running", "Ctrl-C stops the server")
                server.wait()
    except KeyboardInterrupt:  # the way to end a demo that runs
        return 130 if once else 0
    if once:
        say("Stopped", "without --once the server stays")
    return 0 if agree else 1


def say(what: str, text: str) -> None:
    first, *rest = text.splitlines()
    print(f"{what:<11}{first}", *(f"{'':<11}{line}" for line in rest), sep="\n", flush=True)


def train() -> Trained:
    data = load_breast_cancer(as_frame=True)
    labels = data.target.map(dict(enumerate(data.target_names))).rename(TARGET)
    rows, held_rows, truth, held_truth = train_test_split(
        data.data, labels, test_size=0.25, stratify=labels, random_state=0
    )
    started = time.perf_counter()
    model = RandomForestClassifier(n_estimators=100, random_state=0).fit(rows, truth)
    took = time.perf_counter() - started
    say("Trained", f"{model}, 100 trees, on {len(rows)} rows x {rows.shape[1]} features in {took:.1f} s")
    guessed = model.predict(held_rows)
    accuracy = float(accuracy_score(held_truth, guessed))
    say("Hold-out", f"accuracy {accuracy:.3f} on {len(held_rows)} rows it has not seen")
    report = classification_report(held_truth, guessed, output_dict=True)
    lines = [f"{'class':<11}{'precision':>10}{'recall':>8}{'rows':>6}"]
    for name in data.target_names:
        of = report[name]
        lines.append(f"{name:<11}{of['precision']:>10.3f}{of['recall']:>8.3f}{of['support']:>6.0f}")
    say("", "\n".join(lines))
    return Trained(model, held_rows, held_truth, accuracy)


def save(trained: Trained) -> tuple[Path, Path, Path]:
    """The model, the hold-out with its labels as example, and two rows for curl."""
    FILES.mkdir(parents=True, exist_ok=True)
    HOME.chmod(0o700)
    model, example, rows = (FILES / name for name in (f"{NAME}.joblib", "example.csv", "rows.json"))
    joblib.dump(trained.model, model)
    trained.rows.join(trained.truth).to_csv(example, index=False)
    rows.write_bytes(body(trained.rows.head(2)))
    say("Saved", f"{model} with joblib, {model.stat().st_size / 1e3:.0f} kB")
    return model, example, rows


def body(rows: pd.DataFrame) -> bytes:
    return msgspec.json.encode({"instances": rows.to_dict("records")})


def free_port(wanted: int) -> int:
    """`wanted`, or another one when something else listens there."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            if port != wanted:
                say("Port", f"{wanted} is in use, so this demo takes {probe.getsockname()[1]}")
            return int(probe.getsockname()[1])
    raise SystemExit("no port is free on 127.0.0.1")


@contextmanager
def serving(port: int) -> Iterator[tuple[Client, subprocess.Popen[bytes]]]:
    """A `trivium serve` child that is ready, and a client of it; stopped at the end."""
    log = FILES / "server.log"
    trivium = Path(sys.executable).with_name("trivium")
    started = time.perf_counter()
    with log.open("wb") as out:
        order = [trivium, "serve", "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(order, stdout=out, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        await_ready(url, server, log)
        say("Serving", f"{url}, ready after {time.perf_counter() - started:.1f} s; its log is {log}")
        key_file = HOME / "admin.key"
        key = key_file.read_text().strip() if key_file.exists() else os.environ.get("TRIVIUM_API_KEY")
        with Client(url, key) as client:
            yield client, server
    finally:
        server.terminate()
        server.wait()


def await_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    given_up = time.monotonic() + START_S
    with Client(url, None, timeout_s=5.0) as client:
        while server.poll() is None and time.monotonic() < given_up:
            try:
                client.call("GET", "/readyz")
            except (Unreachable, ServerRefused):
                time.sleep(0.05)
            else:
                return
    tail = log.read_text(errors="replace").splitlines()[-20:]
    raise SystemExit("\n".join(["the server did not get ready; its log ends with", *tail]))


def publish(client: Client, file: Path, example: Path, accuracy: float) -> Record:
    """A new version, or the one that holds these very bytes already."""
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    for version in versions(client):
        if version["artifact"] == sha256 and version["state"] == "ready":
            say("Published", f"already, as version {version['version']}: the file has not changed")
            describe(version)
            return version
    started = time.perf_counter()
    request = {
        "artifact": client.upload(file),
        "format": "sklearn-joblib",
        "example": {"artifact": client.upload(example), "media_type": "text/csv"},
        "target": TARGET,
        "metrics": {"holdout_accuracy": accuracy},
        "tags": {"data": "breast-cancer"},
    }
    created = client.publish(NAME, request)
    version = client.wait(NAME, created["version"])
    took = time.perf_counter() - started
    say("Published", f"{NAME} version {version['version']} over HTTP: {version['state']} after {took:.1f} s")
    describe(version)
    return version


def versions(client: Client) -> list[Record]:
    try:
        return list(client.pages(path("models", NAME, "versions"))["items"])
    except ServerRefused as error:
        if error.status == 404:
            return []
        raise


def describe(version: Record) -> None:
    say("Runtime", f"{version['runtime']}: {version['runtime_reason']}")
    report = version["report"]
    if "parity" in report:
        say("Parity", parity_words(report["parity"]))
    for warning in report["warnings"]:
        say("Warning", warning)


def promote(client: Client, version: Record) -> None:
    number = version["version"]
    if "champion" not in version["aliases"]:
        client.call("PUT", path("models", NAME, "aliases", "champion"), {"version": number, "reason": "demo"})
    say("Promoted", f"{NAME}@champion is version {number}")


def predict(client: Client, trained: Trained) -> bool:
    """Every hold-out row through HTTP; are the answers scikit-learn's own?"""
    started = time.perf_counter()
    answer = client.predict(ModelRef(NAME), body(trained.rows))
    took = (time.perf_counter() - started) * 1000
    given: list[dict[str, Any]] = answer["predictions"]
    same = int(np.sum(trained.model.predict(trained.rows) == [p["label"] for p in given]))
    served = np.array([[p["probabilities"][name] for name in trained.model.classes_] for p in given])
    apart = float(np.abs(trained.model.predict_proba(trained.rows) - served).max())
    say(
        "Predicted",
        f"{len(given)} hold-out rows over HTTP in {took:.0f} ms: {same} of {len(given)} labels are "
        f"scikit-learn's,\nlargest difference of a probability {apart:.1g}; the first row's answer:\n"
        f"{msgspec.json.encode(given[0]).decode()}",
    )
    return same == len(given) and apart < 1e-5


def invite(url: str, rows: Path) -> None:
    """Lines to paste, from the directory that this was started in."""
    bearer = f'-H "Authorization: Bearer $(cat {HOME / "admin.key"})"'
    where = "" if url == DEFAULT_URL else f"TRIVIUM_URL={url} "
    print(
        f"""
Try it:
  curl -s {url}/v1/models/{NAME}/predict {bearer} -H "Content-Type: application/json" -d @{rows}
  curl -s {url}/v1/models/{NAME} {bearer}
  {where}.venv/bin/trivium predict {NAME} {rows}

Docs, with the model's own fields (they ask for the key, which is in {HOME / "admin.key"}):
  {url}/docs
""",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
