"""What the demo's servers have in common: the socket is given to them, and they end with whoever started them."""

import os
import socket
import sys
import threading
from socketserver import BaseServer


def inherited_socket() -> socket.socket:
    """The listening socket whose number is the first argument. Several processes may share one."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    listener.settimeout(1)  # another process may be faster to take the connection
    return listener


def serve(server: BaseServer) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    print("ready", flush=True)
    server.serve_forever()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()  # until its end, which comes even if the parent is killed
    os._exit(0)
