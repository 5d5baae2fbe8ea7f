"""The payment service, a process and a file of its own: ``python -m demo.payment_service SOCKET LOG SECONDS``.

``POST /payments`` takes a payment, logs it and answers after a while. ``POST /refunds`` takes one back.
``POST /invoices`` and ``/statements`` make one and log it, which takes longer. ``POST /hold`` answers with the next
payment or invoice, which it keeps from being answered for a second: time to kill the process that waits for it.
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
PAPERWORK = 0.1  # seconds


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
        self.take_time(payment, self.latency)
        with self.lock:
            self.under_way[order["event"]] -= 1
        return payment

    def invoices(self, order: dict[str, str]) -> dict[str, object]:
        invoice = self.noted("invoice", order)
        self.take_time(invoice, PAPERWORK)
        return invoice

    def statements(self, order: dict[str, str]) -> dict[str, object]:
        time.sleep(PAPERWORK)
        return self.noted("statement", order)

    def noted(self, kind: str, order: dict[str, str]) -> dict[str, object]:
        paper = {"id": secrets.token_hex(8), "kind": kind, **order}
        with self.lock:
            self.log.write(json.dumps(paper) + "\n")
        return paper

    def take_time(self, paper: dict[str, object], seconds: float) -> None:
        try:
            self.holds.get_nowait().put(paper)
        except Empty:
            time.sleep(seconds)
        else:
            time.sleep(HOLD)

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
