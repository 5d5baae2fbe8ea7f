"""The payment service, a process and a file of its own: ``python -m demo.payment_service SOCKET LOG SECONDS``.

``POST /payments`` takes a payment, logs it and answers after a while. ``POST /refunds`` takes one back.
``POST /hold`` answers with the next payment, which it keeps from being answered for a second: time to kill its payer.
"""

import json
import secrets
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, SimpleQueue
from urllib.parse import parse_qsl

from demo.serving import inherited_socket, serve

HOLD = 1.0


class Payments:
    def __init__(self, log: Path, latency: float) -> None:
        self.log = log.open("a", buffering=1)
        self.latency = latency
        self.under_way = Counter[str]()  # by event
        self.lock = threading.Lock()
        self.holds: SimpleQueue[SimpleQueue[dict[str, object]]] = SimpleQueue()

    def payments(self, order: dict[str, str]) -> dict[str, object]:
        with self.lock:
            payment = {"id": secrets.token_hex(8), **order, "beside": self.under_way[order["event"]]}
            self.under_way[order["event"]] += 1
            self.log.write(json.dumps(payment) + "\n")
        try:
            self.holds.get_nowait().put(payment)
        except Empty:
            time.sleep(self.latency)
        else:
            time.sleep(HOLD)
        with self.lock:
            self.under_way[order["event"]] -= 1
        return payment

    def refunds(self, order: dict[str, str]) -> dict[str, object]:
        with self.lock:
            self.log.write(json.dumps({"refund": order["payment"]}) + "\n")
        return {}

    def hold(self, _: dict[str, str]) -> dict[str, object]:
        caught: SimpleQueue[dict[str, object]] = SimpleQueue()
        self.holds.put(caught)
        return caught.get()


class Handler(BaseHTTPRequestHandler):
    payments: Payments

    def do_POST(self) -> None:
        order = dict(parse_qsl(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()))
        answer = json.dumps(getattr(self.payments, self.path.strip("/"))(order)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name it has in the base class
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A payer that was killed does not take its answer."""


if __name__ == "__main__":
    Handler.payments = Payments(Path(sys.argv[2]), float(sys.argv[3]))
    server = Server(("", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = inherited_socket()
    serve(server)
