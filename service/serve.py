"""`trivium serve`: starts and supervises the server's processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import multiprocess

from service import startup, telemetry
from service.builds.process_signals import end_with_parent, stop_signal
from service.builds.supervised_process import SupervisedProcess
from service.config import Settings
from service.prepare import prepare

if TYPE_CHECKING:
    import uvicorn

BACKLOG = 2048
KEEP_ALIVE_S = 75
"""How long an idle connection stays open. Load balancers and clients close theirs earlier (60 s): if the
server closed first, a request sent at that moment would be lost."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = telemetry.logger(__name__)


def serve(settings: Settings, *, workers: int = 1, worker: bool = True) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code.

    With one of `workers`, requests are served in this process. With more, each web process is a supervised
    child, and all share the listening socket. With `worker`, a batch worker is a supervised child, too.
    """
    telemetry.configure_logging()
    listening = _bind(settings.host, settings.port)
    host, port = listening.getsockname()[:2]
    prepare(settings)
    log.info(
        "serving",
        url=f"http://{host}:{port}",
        docs=f"http://{host}:{port}/docs",
        admin_key=str(settings.admin_key_file),
        workers=workers,
    )
    children = [_supervised_worker()] if worker else []
    if workers == 1:
        try:
            run_web(
                settings,
                listening,
                when_up=lambda: _start(children),
                when_stopping=lambda: _terminate(children),
            )
        finally:
            _stop(settings, children)
        return 0
    startup.resume_collector()  # the command line paused it; this process only supervises
    return _run_web_processes(settings, listening, workers, children)


def run_web(
    settings: Settings,
    listening: socket.socket,
    when_up: Callable[[], None] = lambda: None,
    when_stopping: Callable[[], None] = lambda: None,
) -> None:
    """Serve on `listening` in this process until SIGTERM or SIGINT.

    `when_up` is called when all routes are available, `when_stopping` at the signal. Raises the error that
    prevented the management routes from loading: the server ends without them.
    """
    startup.pause_collector()
    # While uvicorn serves, it handles these signals: it shuts down and then raises the signal again, which by
    # default would end the process with the signal's number.
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: sys.exit(0))
    import uvicorn

    from service.app import create_app

    app = create_app(settings)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            self.completion = asyncio.create_task(self._complete())

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.services.shutting_down.set()
            when_stopping()
            await super().shutdown(sockets)

        async def _complete(self) -> None:
            try:
                await app.management.get()
            except Exception:
                self.should_exit = True
                raise
            startup.resume_collector()
            when_up()

    server = Server(web_config(app.asgi, settings))
    server.run([listening])
    server.completion.result()


def web_config(app: Callable[..., Any], settings: Settings) -> uvicorn.Config:
    """Return how uvicorn serves the ASGI application `app`."""
    import uvicorn

    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE_S,
        proxy_headers=bool(settings.proxies),  # without a trusted proxy, any client could forge them
        forwarded_allow_ips=settings.proxies,
        timeout_graceful_shutdown=int(settings.shutdown_grace_s),
    )


def _bind(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise SystemExit(f"cannot listen on {host}:{port}: {error.strerror}") from error
    listening.listen(BACKLOG)
    return listening


def _supervised_worker() -> SupervisedProcess:
    """Build the batch worker's process. It writes a byte to a pipe when it starts to claim tasks."""
    read_end = -1

    def start() -> subprocess.Popen[bytes]:
        nonlocal read_end
        read_end, write_end = os.pipe()
        argv = [sys.executable, "-m", "service.worker.process", str(os.getpid()), str(write_end)]
        try:
            return subprocess.Popen(argv, pass_fds=[write_end])
        except OSError:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)

    def await_up() -> bool:
        """Return whether the worker came up. If it did, it is restarted at once when it ends."""
        with os.fdopen(read_end, "rb") as pipe:
            return pipe.read(1) != b""

    return SupervisedProcess("the worker", start, await_up)


def _run_web_processes(
    settings: Settings, listening: socket.socket, count: int, children: list[SupervisedProcess]
) -> int:
    metrics = create_metrics_directory(settings.home / "metrics").absolute()
    processes = [*(_supervised_web_process(n + 1, listening, metrics) for n in range(count)), *children]
    wait_for_stop = stop_signal()
    _start(processes)
    wait_for_stop()
    _stop(settings, processes)
    listening.close()
    shutil.rmtree(metrics, ignore_errors=True)
    return 0


def create_metrics_directory(parent: Path) -> Path:
    """Create this server's directory for the metrics of its web processes, named by host and process id.

    Directories of servers on this host that no longer run are deleted.
    """
    host = socket.gethostname()
    for directory in parent.glob(f"{host}-*"):
        owner, _, pid = directory.name.rpartition("-")
        if owner == host and pid.isdecimal() and not _is_running(int(pid)):
            shutil.rmtree(directory, ignore_errors=True)
    directory = parent / f"{host}-{os.getpid()}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs as another user
        pass
    return True


def _start(processes: list[SupervisedProcess]) -> None:
    for process in processes:
        process.start()


def _stop(settings: Settings, processes: list[SupervisedProcess]) -> None:
    """Stop all processes at once, so that their grace periods overlap."""
    _terminate(processes)
    for process in processes:
        process.stop(settings.shutdown_grace_s + 5)


def _terminate(processes: list[SupervisedProcess]) -> None:
    for process in processes:
        process.terminate()


def _supervised_web_process(number: int, listening: socket.socket, metrics: Path) -> SupervisedProcess:
    argv = [sys.executable, "-m", "service.serve", str(listening.fileno()), str(os.getpid())]
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics)}
    previous: subprocess.Popen[bytes] | None = None

    def start() -> subprocess.Popen[bytes]:
        nonlocal previous
        if previous is not None:  # its gauges of loaded models no longer count
            multiprocess.mark_process_dead(previous.pid, str(metrics))  # type: ignore[no-untyped-call]
        previous = subprocess.Popen(argv, pass_fds=[listening.fileno()], env=environment)
        return previous

    return SupervisedProcess(f"web process {number}", start)


def run_web_process(descriptor: int, parent: int) -> None:
    """Run one of several web processes. When its parent dies, it finishes the running requests and ends."""
    end_with_parent(parent, signal.SIGTERM)
    telemetry.configure_logging()
    run_web(Settings(), socket.socket(fileno=descriptor))


if __name__ == "__main__":
    run_web_process(int(sys.argv[1]), int(sys.argv[2]))
