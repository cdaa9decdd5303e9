"""`trivium serve`: starts and supervises the server's processes."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service import startup, telemetry
from service.builds.process_signals import end_with_parent, stop_signal
from service.builds.supervised_process import SupervisedProcess
from service.config import PREFIX, Settings
from service.online.grpc_port import reserve_port
from service.prepare import prepare
from service.process_group import ProcessGroup, create_shared_memory, mark_absent

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
    child, and all share the listening socket (`service/acceptor.py`) and a `ProcessGroup`. With `worker`, a
    batch worker is a supervised child, too.
    """
    telemetry.configure_logging()
    listening = _bind(settings.host, settings.port)
    host, port = listening.getsockname()[:2]
    grpc_socket = None if settings.grpc_port is None else reserve_port(settings)  # open until the end
    if grpc_socket is not None:
        settings.grpc_port = grpc_socket.getsockname()[1]
        # for the web processes: the command line may have set others
        os.environ |= {f"{PREFIX}GRPC_PORT": str(settings.grpc_port), f"{PREFIX}HOST": settings.host}
    prepare(settings)
    log.info(
        "serving",
        url=f"http://{host}:{port}",
        docs=f"http://{host}:{port}/docs",
        grpc=None if settings.grpc_port is None else f"{host}:{settings.grpc_port}",
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
    group: ProcessGroup | None = None,
) -> None:
    """Serve on `listening` in this process until SIGTERM or SIGINT.

    `when_up` is called when all routes are available, `when_stopping` at the signal. `group`: the processes
    that share `listening`. Raises the error that prevented the management routes from loading: the server
    ends without them.
    """
    startup.pause_collector()
    # While uvicorn serves, it handles these signals: it shuts down and then raises the signal again, which by
    # default would end the process with the signal's number.
    for number in STOP_SIGNALS:
        signal.signal(number, _exit)
    import uvicorn

    from service.acceptor import Acceptor, CountedConnections
    from service.app import create_app
    from service.online.protocol import with_lane

    app = create_app(settings, group=group)

    class Server(uvicorn.Server):
        acceptor: Acceptor | None = None

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets if group is None else [])
            if group is not None:
                self.server_state.connections = connections = CountedConnections(group)
                self.acceptor = Acceptor(listening, self._create_protocol, connections, group)
            self.completion = asyncio.create_task(self._complete())

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.services.shutting_down.set()
            if app.grpc is not None:
                app.grpc.begin_stop()
            when_stopping()
            if self.acceptor is not None:
                await self.acceptor.close()
            await super().shutdown(sockets)

        def _create_protocol(self) -> asyncio.Protocol:
            """Create uvicorn's protocol for a connection, as its own `startup` does."""
            return self.config.http_protocol_class(
                config=self.config,  # type: ignore[call-arg]
                server_state=self.server_state,
                app_state=self.lifespan.state,
            )

        async def _complete(self) -> None:
            try:
                await app.management.get()
            except Exception:
                self.should_exit = True
                raise
            startup.resume_collector()
            when_up()

    server = Server(web_config(app.asgi, settings, with_lane(app.lane)))
    server.run([listening])
    server.completion.result()


def _exit(*_: object) -> None:
    """Exit, and ignore SIGTERM from now on.

    The kernel sends the signal of `end_with_parent` for each thread of the parent that ends. One that
    interrupted the end of the event loop would log a traceback.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(0)


def web_config(
    app: Callable[..., Any], settings: Settings, protocol: type[asyncio.Protocol] | None = None
) -> uvicorn.Config:
    """Return how uvicorn serves the ASGI application `app`, by default with its own HTTP protocol."""
    import uvicorn

    return uvicorn.Config(
        app,
        http=protocol or "auto",
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
    memory = create_shared_memory(count)
    web_processes = [_supervised_web_process(n, count, listening, memory, metrics) for n in range(count)]
    processes = [*web_processes, *children]
    wait_for_stop = stop_signal()
    _start(processes)
    wait_for_stop()
    _stop(settings, processes)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the interpreter would restore the default while it exits
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
    deadline = time.monotonic() + settings.shutdown_grace_s + 5
    for process in processes:
        process.stop(max(deadline - time.monotonic(), 0))


def _terminate(processes: list[SupervisedProcess]) -> None:
    for process in processes:
        process.terminate()


def _supervised_web_process(
    number: int, count: int, listening: socket.socket, memory: int, metrics: Path
) -> SupervisedProcess:
    """Build the web process with this number (from 0) of `count`.

    Its replacements continue its counters, because the number names the files of its metrics.
    """
    descriptors = [listening.fileno(), memory]
    arguments = [*descriptors, number, count, os.getpid()]
    argv = [sys.executable, "-m", "service.serve", *map(str, arguments)]
    environment = {
        **os.environ,
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
        telemetry.PROCESS_VARIABLE: str(number),
    }
    starts = itertools.count()

    def start() -> subprocess.Popen[bytes]:
        is_replacement = next(starts) > 0
        return subprocess.Popen([*argv, str(int(is_replacement))], pass_fds=descriptors, env=environment)

    def forget() -> str:
        """Remove what the process reported of itself while it ran."""
        mark_absent(memory, number)
        telemetry.delete_gauges(metrics, number)
        return ""

    return SupervisedProcess(f"web process {number + 1}", start, describe_end=forget)


def run_web_process(
    descriptor: int, memory: int, number: int, count: int, parent: int, is_replacement: int
) -> None:
    """Run one of several web processes. When its parent dies, it finishes the running requests and ends."""
    end_with_parent(parent, signal.SIGTERM)
    telemetry.configure_logging()
    if is_replacement:
        telemetry.CHILD_RESTARTS.labels("web").inc()
    run_web(Settings(), socket.socket(fileno=descriptor), group=ProcessGroup(memory, number, count))


if __name__ == "__main__":
    run_web_process(*map(int, sys.argv[1:]))
