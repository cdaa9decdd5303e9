"""The load generator: `wrk` with one thread, which sends the bodies of a request in turn."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.machine import on_core
from benchmarks.serving.protocols import Request

REPORT = "wrk-report "
TIMEOUT_S = 60
"""An answer that takes longer counts as a failure."""
DONE = f"""
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '{REPORT}{{"requests": %d, "duration_us": %d, "failures": %d, "p50_us": %.1f, "p99_us": %.1f}}\\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


class WrkFailed(Exception):
    """wrk did not run, or its output has no report."""


@dataclass(frozen=True)
class Load:
    """What wrk measured. `failures` are answers above 399, broken connections and timeouts."""

    requests: int
    seconds: float
    failures: int
    p50_ms: float
    p99_ms: float

    @property
    def per_s(self) -> float:
        return self.requests / self.seconds


def require() -> str:
    """Return the path of wrk; exit with the way to install it."""
    path = shutil.which("wrk")
    if path is None:
        raise SystemExit("online: wrk is missing; install it: apt-get install wrk (or brew install wrk)")
    return path


def version() -> str:
    """Return wrk's version; its `-v` prints the help with exit code 1."""
    done = subprocess.run([require(), "-v"], capture_output=True, text=True)
    words = (done.stdout + done.stderr).split()
    return words[1] if len(words) > 1 else "unknown"


def script(request: Request) -> str:
    """Return the Lua script that prepares all requests and then sends them in turn."""
    headers = {"Content-Type": "application/json"} | request.headers
    table = ", ".join(f"[{_quote(name)}] = {_quote(value)}" for name, value in headers.items())
    bodies = ",\n".join(_quote(body) for body in request.bodies)
    return f"""local bodies = {{
{bodies}
}}
local prepared, sent = {{}}, 0

function init(args)
  local headers = {{{table}}}
  headers["Host"] = wrk.headers["Host"]
  for i, body in ipairs(bodies) do
    prepared[i] = wrk.format("POST", {_quote(request.path)}, headers, body)
  end
end

function request()
  sent = sent % #prepared + 1
  return prepared[sent]
end
{DONE}"""


def _quote(text: str) -> str:
    """Return a Lua string: JSON's escapes but for quotes and backslashes are decimal in Lua."""
    return '"' + "".join(c if c not in '"\\' and " " <= c <= "~" else _decimal(c) for c in text) + '"'


def _decimal(character: str) -> str:
    return "".join(f"\\{byte:03d}" for byte in character.encode())


def run(port: int, lua: Path, connections: int, seconds: int, core: int | None) -> Load:
    """Load the server. Raises `WrkFailed`."""
    command = [require(), "--threads", "1", "--connections", str(connections), "--script", str(lua)]
    command += ["--duration", f"{seconds}s", "--timeout", f"{TIMEOUT_S}s", f"http://127.0.0.1:{port}"]
    try:
        with on_core(core):
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 90)
    except subprocess.TimeoutExpired as error:
        raise WrkFailed(f"wrk did not end within {seconds + 90} s") from error
    if done.returncode:
        raise WrkFailed(f"wrk ended with {done.returncode}: {(done.stderr or done.stdout)[-300:]}")
    return parse(done.stdout)


def parse(output: str) -> Load:
    """Return the report in wrk's output. Raises `WrkFailed` when there is none."""
    for line in output.splitlines():
        if line.startswith(REPORT):
            r = json.loads(line[len(REPORT) :])
            return Load(
                r["requests"], r["duration_us"] / 1e6, r["failures"], r["p50_us"] / 1e3, r["p99_us"] / 1e3
            )
    raise WrkFailed(f"wrk printed no report: {output[-300:]!r}")
