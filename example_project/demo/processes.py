"""The shop's processes, as the demo starts and ends them."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from django.conf import settings
from django.core.management import CommandError

from demo.database import database_url
from django_cluster_lock import embedded

WEB_PROCESSES = 3
CONCURRENCY = 4  # of each worker
PAYMENT_LATENCY = 0.02
# In the demo's folder.
ANSWERS, CALLS, PAYMENTS, RUNS = "answers.jsonl", "calls.jsonl", "payments.jsonl", "runs.jsonl"


Process = subprocess.Popen[str]


@dataclass(frozen=True)
class Servers:
    """What the shops of all floods share: a cluster, the URL of a broker, and the address of their pages."""

    cluster: embedded.Cluster
    broker: str
    web: socket.socket


@dataclass(frozen=True)
class Shop:
    """A running shop: the log of its processes' errors, its ports, which all web processes share, and who runs it."""

    log: Path
    port: int
    payment_port: int
    web: tuple[Process, ...]
    callers: tuple[Process, ...]

    def kill(self, pid: int) -> None:
        """SIGKILLs a web process, and waits for its end."""
        process = next(process for process in self.web if process.pid == pid)
        process.kill()
        process.wait()


@contextmanager
def running_shop(
    folder: Path,
    servers: Servers,
    *,
    web: int = WEB_PROCESSES,
    workers: int = 0,
    callers: int = 0,
) -> Iterator[Shop]:
    """A payment service, web processes, Celery workers, and processes that call tasks, until the end of the block."""
    started: list[Process] = []
    log = folder / "log"
    with (
        listener() as payment_socket,
        log.open("a") as errors,
        TemporaryDirectory(prefix="ticket-shop-") as scratch,
    ):
        port, payment_port = servers.web.getsockname()[1], payment_socket.getsockname()[1]
        environment = {
            "DATABASE_URL": database_url(),
            "LOCK_SERVERS": ",".join(servers.cluster.urls),
            "CELERY_BROKER": servers.broker,
            "PAYMENT_URL": f"http://127.0.0.1:{payment_port}",
            "RUN_LOG": str(folder / RUNS),
            "TMPDIR": scratch,  # for what killed workers leave behind
        }

        def start(number: int, *command: str | socket.socket) -> tuple[Process, ...]:
            processes = [_start(environment, errors.fileno(), *command) for _ in range(number)]
            started.extend(processes)
            return tuple(processes)

        try:
            start(1, "demo.payment_service", payment_socket, str(folder / PAYMENTS), str(PAYMENT_LATENCY))
            shop = Shop(log, port, payment_port, start(web, "demo.web", servers.web), start(callers, "demo.caller"))
            start(workers, "demo.worker", str(CONCURRENCY))
            for process in started:
                if not process.stdout or process.stdout.readline() != "ready\n":
                    raise CommandError(f"A process of the shop did not start:\n{log.read_text()}", returncode=2)
            yield shop
        finally:
            for process in started:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # a worker's children too
            for process in started:
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe:
                        with suppress(BrokenPipeError):
                            pipe.close()


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=512)


def _start(environment: Mapping[str, str], errors: int, module: str, *arguments: str | socket.socket) -> Process:
    """Starts a module, which may serve a socket. A Ctrl-C in the terminal is ours to handle; if we die, it ends too."""
    sockets = [argument.fileno() for argument in arguments if isinstance(argument, socket.socket)]
    texts = [argument if isinstance(argument, str) else str(argument.fileno()) for argument in arguments]
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # absolute: they have another working directory
    return subprocess.Popen(
        [sys.executable, "-m", module, *texts],
        cwd=settings.BASE_DIR,
        env={**os.environ, **path, **environment},
        pass_fds=sockets,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
    )


@contextmanager
def stoppable() -> Iterator[None]:
    """End the block with KeyboardInterrupt whichever way we are told to stop.

    A signal that was ignored at the start stays so: SIGINT in a script's background, SIGHUP under ``nohup``.
    """

    def stop(*_: object) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)  # once is enough: do not interrupt the clearing up
        raise KeyboardInterrupt

    def stop_again(unraisable: "sys.UnraisableHookArgs") -> None:
        """What is raised while a finaliser runs ends the finaliser alone."""
        if unraisable.exc_type is KeyboardInterrupt:
            signal.signal(signal.SIGALRM, stop)
            signal.setitimer(signal.ITIMER_REAL, 0.05)  # not at once: that would end this hook alone
        else:
            hook(unraisable)

    asking = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    signals = [signal.SIGALRM, *(each for each in asking if signal.getsignal(each) is not signal.SIG_IGN)]
    hook, sys.unraisablehook = sys.unraisablehook, stop_again
    before = {each: signal.signal(each, stop) for each in signals}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for each, handler in before.items():
            signal.signal(each, handler)
        sys.unraisablehook = hook
