"""Start and watch the server's processes: `trivium serve`."""

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

from prometheus_client import multiprocess

from service import startup, telemetry
from service.builds.process_signals import end_with_parent, stop_signal
from service.builds.supervised_process import SupervisedProcess
from service.config import Settings
from service.prepare import prepare

BACKLOG = 2048
KEEP_ALIVE_S = 75
"""How long an idle connection stays open. Longer than load balancers and clients keep theirs (60 s): if the
server closes first, the request that was just being sent on it is lost."""
STOPS = (signal.SIGTERM, signal.SIGINT)

log = telemetry.logger(__name__)


def serve(settings: Settings, *, workers: int = 1, worker: bool = True) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. Blocks.

    One web process serves in this process; of several, each is a child that this one keeps alive, and
    they share the listening socket. With `worker` one batch worker is such a child, too.
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
    beside = [_worker_process()] if worker else []
    if workers == 1:
        try:
            run_web(settings, listening, when_up=lambda: _start(beside))
        finally:
            _stop(settings, beside)
        return 0
    startup.resume_collector()  # the command line paused it; this process only watches
    return _keep(settings, listening, workers, beside)


def run_web(settings: Settings, listening: socket.socket, when_up: Callable[[], None] = lambda: None) -> None:
    """Serve on `listening` in this process until SIGTERM or SIGINT. `when_up` is called once it does.

    Raises what the making of the management routes raised: without them nothing goes on serving.
    """
    startup.pause_collector()
    # While it serves, uvicorn has these; it shuts down in order and then raises the signal again, which
    # would end us with its number.
    for number in STOPS:
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
            await super().shutdown(sockets)

        async def _complete(self) -> None:
            try:
                await app.management.made()
            except Exception:
                self.should_exit = True
                raise
            startup.resume_collector()
            when_up()

    config = uvicorn.Config(
        app.asgi,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(settings.shutdown_grace_s),
    )
    server = Server(config)
    server.run([listening])
    server.completion.result()


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


def _worker_process() -> SupervisedProcess:
    reading = -1

    def start() -> subprocess.Popen[bytes]:
        nonlocal reading
        reading, writing = os.pipe()
        argv = [sys.executable, "-m", "service.worker.process", str(os.getpid()), str(writing)]
        try:
            return subprocess.Popen(argv, pass_fds=[writing])
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)

    def is_up() -> bool:
        """Whether it came so far as to work: one that is killed then is started again at once, each time."""
        with os.fdopen(reading, "rb") as said:
            return said.read(1) != b""

    return SupervisedProcess("the worker", start, is_up)


def _keep(settings: Settings, listening: socket.socket, count: int, beside: list[SupervisedProcess]) -> int:
    figures = _figures(settings.home / "metrics")
    keepers = [*(_web_process(n + 1, listening, figures.absolute()) for n in range(count)), *beside]
    stopped = stop_signal()
    _start(keepers)
    stopped()
    _stop(settings, keepers)
    listening.close()
    shutil.rmtree(figures, ignore_errors=True)
    return 0


def _figures(place: Path) -> Path:
    """Where this server's processes count, in a directory of its own; of this host's servers that are gone
    nothing is kept."""
    host = socket.gethostname()
    for left in place.glob(f"{host}-*"):
        of, _, pid = left.name.rpartition("-")
        if of == host and pid.isdecimal() and not _runs(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    own = place / f"{host}-{os.getpid()}"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    return own


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _start(keepers: list[SupervisedProcess]) -> None:
    for keeper in keepers:
        keeper.start()


def _stop(settings: Settings, keepers: list[SupervisedProcess]) -> None:
    """All at once, so that their graces run together."""
    for keeper in keepers:
        keeper.terminate()
    for keeper in keepers:
        keeper.stop(settings.shutdown_grace_s + 5)


def _web_process(number: int, listening: socket.socket, figures: Path) -> SupervisedProcess:
    argv = [sys.executable, "-m", "service.serve", str(listening.fileno()), str(os.getpid())]
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(figures)}
    last: subprocess.Popen[bytes] | None = None

    def start() -> subprocess.Popen[bytes]:
        nonlocal last
        if last is not None:  # it counted what it held in memory, which is gone
            multiprocess.mark_process_dead(last.pid, str(figures))  # type: ignore[no-untyped-call]
        last = subprocess.Popen(argv, pass_fds=[listening.fileno()], env=environment)
        return last

    return SupervisedProcess(f"web process {number}", start)


def web_process(descriptor: int, parent: int) -> None:
    """One of several web processes. When the one that watches them dies, it finishes what is in flight."""
    end_with_parent(parent, signal.SIGTERM)
    telemetry.configure_logging()
    run_web(Settings(), socket.socket(fileno=descriptor))


if __name__ == "__main__":
    web_process(int(sys.argv[1]), int(sys.argv[2]))
