"""The shop's processes, as the demo starts and ends them."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

WEB_PROCESSES = 3
PAYMENT_LATENCY = 0.02


@dataclass(frozen=True)
class Shop:
    """A running shop: the port of its web processes, which share one socket, and the payment service's."""

    port: int
    payment_port: int
    web: tuple["subprocess.Popen[str]", ...]

    def kill(self, pid: int) -> None:
        """SIGKILLs a web process, and waits for its end."""
        process = next(process for process in self.web if process.pid == pid)
        process.kill()
        process.wait()


@contextmanager
def running_shop(database: Path, payment_log: Path, log: Path, lock_servers: Sequence[str]) -> Iterator[Shop]:
    """A payment service and several web processes until the end of the block."""
    processes = []
    with _listener() as web_socket, _listener() as payment_socket, log.open("a") as errors:
        port, payment_port = web_socket.getsockname()[1], payment_socket.getsockname()[1]
        environment = {
            "DATABASE_URL": str(database),
            "LOCK_SERVERS": ",".join(lock_servers),
            "PAYMENT_URL": f"http://127.0.0.1:{payment_port}",
        }
        try:
            arguments = "demo.payment_service", payment_socket, str(payment_log), str(PAYMENT_LATENCY)
            processes.append(_start(environment, errors.fileno(), *arguments))
            processes += [_start(environment, errors.fileno(), "demo.web", web_socket) for _ in range(WEB_PROCESSES)]
            for process in processes:
                if not process.stdout or process.stdout.readline() != "ready\n":
                    raise RuntimeError(f"A process of the shop did not start:\n{log.read_text()}")
            yield Shop(port, payment_port, tuple(processes[1:]))
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe:
                        pipe.close()


def _listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=512)


def _start(
    environment: Mapping[str, str], errors: int, module: str, listener: socket.socket, *arguments: str
) -> "subprocess.Popen[str]":
    """Starts a module that serves a socket. A Ctrl-C in the terminal is ours to handle; if we die, it ends too."""
    return subprocess.Popen(
        [sys.executable, "-m", module, str(listener.fileno()), *arguments],
        cwd=settings.BASE_DIR,
        env={**os.environ, **environment},
        pass_fds=[listener.fileno()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
    )


@contextmanager
def stoppable() -> Iterator[None]:
    """Ends the block with KeyboardInterrupt whichever way we are told to stop."""

    def stop(*_: object) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)  # once is enough: do not interrupt the clearing up
        raise KeyboardInterrupt

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {each: signal.signal(each, stop) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
