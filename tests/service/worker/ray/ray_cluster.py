"""A Ray cluster of two nodes on 127.0.0.1, in a process that a test starts and ends."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def two_nodes() -> Iterator[dict[str, str]]:
    """Start a cluster and yield the environment variables for its users. Ends all its processes."""
    home = tempfile.mkdtemp(prefix="trivium-ray-", dir="/tmp")  # the paths of sockets must be short
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # a one-machine cluster: bind 127.0.0.1 only
    }
    process = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import main; main()"],
        env=os.environ | environment | {"RAY_TMPDIR": home},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ray's processes stay in this session
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().decode().strip()
        assert address.startswith("127.0.0.1:"), address
        yield environment | {"RAY_ADDRESS": address}
    finally:
        process.stdin.close()
        process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        shutil.rmtree(home, ignore_errors=True)


def main() -> None:
    """Run two nodes with one CPU each until stdin ends."""
    from ray.cluster_utils import Cluster

    home = Path(os.environ["RAY_TMPDIR"])
    (home / "ray").mkdir()
    cluster = Cluster()
    for _ in range(2):
        cluster.add_node(
            node_ip_address="127.0.0.1",
            num_cpus=1,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            temp_dir=str(home),
            no_monitor=True,  # no autoscaler
            include_log_monitor=False,
        )
    sys.stdout.write(f"{cluster.address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()
