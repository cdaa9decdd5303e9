"""Trains a random forest, publishes it, asks it over HTTP, sends it to a device, has it score a million rows.

Run by `scripts/demo`. The server stays until Ctrl-C, with `--once` it is stopped at the end; with `--keras` a
CNN goes the first ways, too. A second run finds the same models and makes no new ones.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from contextlib import suppress

from demo_steps import FILES, HOME, Failed, batch, digits, edge, online, say, signals
from demo_steps.server import free_port, serving

DEFAULT_URL = "http://127.0.0.1:8080"
LOOK_S = 0.1


def stay(server: subprocess.Popen[bytes]) -> None:
    """Return at a signal, which is the way to end a demo that runs. Raises `Failed` if the server ends first.

    It looks every now and then: of a signal that comes just before `server.wait()` blocks, Python learns when
    that returns.
    """
    with suppress(SystemExit):
        say("Running", "Ctrl-C stops the server")
        while (code := server.poll()) is None:
            time.sleep(LOOK_S)
        raise Failed(f"the server ended, with exit code {code}; its log is {FILES / 'server.log'}")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--once", action="store_true", help="stop the server at the end")
    parser.add_argument("--keras", action="store_true", help="with TensorFlow: a CNN, and its int8")
    parser.add_argument("--port", type=_port, default=8080, help="a free one is taken when it is in use")
    args = parser.parse_args()
    signals.take()
    if args.keras:
        digits.check()
    try:
        forest = online.train()
        cnn = digits.train() if args.keras else None
        with serving(free_port(args.port)) as (client, server):
            edge.road(client, forest, online.road(client, forest))
            batch.road(client)
            if cnn is not None:
                digits.road(client, cnn)
            if not args.once:
                invite(client.url)
                stay(server)
    except Failed as failed:
        say("Failed", str(failed))
        return 1
    if args.once:
        say("Stopped", "without --once the server stays")
    return 0


def invite(url: str) -> None:
    """Lines to paste, from the directory that this was started in."""
    name, rows = online.NAME, online.ROWS
    bearer = f'-H "Authorization: Bearer $(cat {HOME / "admin.key"})"'
    device = f'-H "Authorization: Bearer $(cat {edge.DEVICE / f"{name}.key"})"'
    where = "" if url == DEFAULT_URL else f"TRIVIUM_URL={url} "
    print(
        f"""
Try it:
  curl -s {url}/v1/models/{name}/predict {bearer} -H "Content-Type: application/json" -d @{rows}
  curl -s {url}/v1/models/{name} {bearer}
  {where}.venv/bin/trivium predict {name} {rows}

As a device, with a key that may do nothing else:
  curl -s {url}/v1/edge/{name} {device}
  curl -s {url}/v1/edge/{name}/latest.tflite {device} -o {name}.tflite

In the background, however many rows there are:
  {where}.venv/bin/trivium batch score {batch.PATIENTS} --model {name} --out scores.parquet
  {where}.venv/bin/trivium jobs
  {where}.venv/bin/trivium schedules

Docs, with the model's own fields (they ask for the key, which is in {HOME / "admin.key"}):
  {url}/docs
""",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
