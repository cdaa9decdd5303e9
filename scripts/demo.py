"""Demo: train a model, publish it, predict over HTTP, run it on a device, score a million rows.

`scripts/demo` runs it. The server runs until Ctrl-C; with `--once` it is stopped at the end. With `--keras` a
CNN is published, exported and run on a device, too. A second run reuses the models of the first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from contextlib import suppress

from demo_steps import FILES, HOME, Failed, batch, digits, edge, online, print_step, signals
from demo_steps.server import free_port, serving

DEFAULT_URL = "http://127.0.0.1:8080"
POLL_S = 0.1


def wait_for_signal(server: subprocess.Popen[bytes]) -> None:
    """Return at SIGINT or SIGTERM. Raises `Failed` when the server exits first.

    Polls, because Python would run the handler of a signal that arrives just before `server.wait()` blocks
    only when the server exits.
    """
    with suppress(SystemExit):
        print_step("Running", "Ctrl-C stops the server")
        while (exit_code := server.poll()) is None:
            signals.check_stopped()
            time.sleep(POLL_S)
        raise Failed(f"the server exited with code {exit_code}; log: {FILES / 'server.log'}")


def _parse_port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--once", action="store_true", help="stop the server at the end")
    parser.add_argument("--keras", action="store_true", help="run the Keras part too; needs TensorFlow")
    parser.add_argument(
        "--port", type=_parse_port, default=8080, help="the server's port; if it is in use, a free one"
    )
    args = parser.parse_args()
    signals.install_handlers()
    if args.keras:
        digits.require_tensorflow()
    try:
        forest = online.train()
        cnn = digits.train() if args.keras else None
        with serving(free_port(args.port)) as (client, server):
            edge.run_edge(client, forest, online.run_online(client, forest))
            signals.check_stopped()
            batch.run_batch(client)
            signals.check_stopped()
            if cnn is not None:
                digits.run_digits(client, cnn)
                signals.check_stopped()
            if not args.once:
                print_commands(client.url)
                wait_for_signal(server)
    except Failed as failed:
        print_step("Failed", str(failed))
        return 1
    if args.once:
        print_step("Stopped", "the server; without --once it keeps running")
    return 0


def print_commands(url: str) -> None:
    """Print commands to try, for the directory in which the demo was started."""
    name, rows = online.NAME, online.ROWS
    bearer = f'-H "Authorization: Bearer $(cat {HOME / "admin.key"})"'
    device = f'-H "Authorization: Bearer $(cat {edge.DEVICE / f"{name}.key"})"'
    trivium = ("" if url == DEFAULT_URL else f"TRIVIUM_URL={url} ") + ".venv/bin/trivium"
    print(
        f"""
Commands to try, from this directory.

Predict, over HTTP and with the command:
  curl -s {url}/v1/models/{name}/predict {bearer} -H "Content-Type: application/json" -d @{rows}
  curl -s {url}/v1/models/{name} {bearer}
  {trivium} predict {name} {rows}

As a device, with a key that may only download this model:
  curl -s {url}/v1/edge/{name} {device}
  curl -s {url}/v1/edge/{name}/latest.tflite {device} -o {name}.tflite

Score a file as a job on the server:
  {trivium} batch score {batch.PATIENTS} --model {name} --out scores.parquet
  {trivium} jobs
  {trivium} schedules

API documentation with the fields of this model (it asks for the key in {HOME / "admin.key"}):
  {url}/docs
""",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
