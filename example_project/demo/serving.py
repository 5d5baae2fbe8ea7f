"""What the demo's processes have in common: servers are given their socket, and all end with whoever started them."""

import os
import signal
import socket
import sys
import threading
from queue import SimpleQueue
from socketserver import BaseServer

STDIN, STDOUT = 0, 1


def inherited_socket() -> socket.socket:
    """The listening socket whose number is the first argument. Several processes may share one."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    listener.settimeout(1)  # another process may be faster to take the connection
    return listener


def serve(server: BaseServer) -> None:
    end_with_parent()
    say_ready()
    server.serve_forever()


def say_ready() -> None:
    os.write(STDOUT, b"ready\n")  # not by print(), which Celery turns into logging


def end_with_parent() -> "SimpleQueue[str]":
    """Ends this process and its children with the parent, even one that is killed. Gives the lines it sends."""
    lines = SimpleQueue[str]()

    def listen() -> None:
        rest = b""
        while read := os.read(STDIN, 65536):  # not from sys.stdin: a fork would copy its lock, held
            *whole, rest = (rest + read).split(b"\n")
            for line in whole:
                lines.put(line.decode())
        os.killpg(0, signal.SIGKILL)  # each was started with a group of its own

    threading.Thread(target=listen, daemon=True).start()
    return lines
