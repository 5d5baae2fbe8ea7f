"""Many buyers at once, over HTTP."""

import json
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Self
from urllib.parse import urlencode

BUYERS = 60
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
SOLD, SOLD_OUT, BUSY, UNAVAILABLE, CUT_OFF = 201, 410, 409, 503, 0


@dataclass(frozen=True)
class Order:
    event: int
    buyer: str


@dataclass(frozen=True)
class Answer:
    """What a buyer was told, and when; `CUT_OFF` if the connection broke before."""

    event: int
    status: int
    asked: float
    answered: float

    @property
    def served(self) -> bool:
        """Whether it was the buyer's turn."""
        return self.status in {SOLD, SOLD_OUT}


@dataclass(frozen=True)
class Kill:
    """A process that was killed during a flood.

    Args:
        victim: the id of a web process, or the port of a primary.
        events: those whose locks it had.
        at: when, on the monotonic clock.
        settled_after: how many seconds after that answers were sure not to have been on their way before.
    """

    victim: int
    events: Sequence[int]
    at: float
    settled_after: float


def orders_for(events: Sequence[int], number: int, seed: int) -> list[Order]:
    choice = random.Random(seed)
    return [Order(choice.choice(events), f"buyer {index}") for index in range(1, number + 1)]


class Flood:
    """Sends the orders to a shop, from as many threads as there are buyers."""

    def __init__(self, port: int, path: str, orders: Sequence[Order]) -> None:
        self.port, self.path = port, path
        self.orders = deque(orders)
        self.total = len(orders)
        self.answers: list[Answer] = []
        self.stopped = threading.Event()
        self.began = self.ended = time.monotonic()
        self._buyers = [threading.Thread(target=self._buy, daemon=True) for _ in range(BUYERS)]

    def __enter__(self) -> Self:
        self.began = time.monotonic()
        for buyer in self._buyers:
            buyer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()

    def finish(self) -> None:
        """No new orders; waits for the answers to those under way."""
        self.stopped.set()
        for buyer in self._buyers:
            buyer.join()
        self.ended = time.monotonic()

    def note(self, log: Path) -> None:
        """Appends the answers to a file of JSON lines."""
        with log.open("a") as lines:
            lines.writelines(json.dumps(asdict(answer)) + "\n" for answer in self.answers)

    @property
    def under_way(self) -> bool:
        return any(buyer.is_alive() for buyer in self._buyers)

    @property
    def by_status(self) -> Counter[int]:
        return Counter(answer.status for answer in self.answers)

    def reached(self, share: float) -> bool:
        """Waits until that share of the orders is answered; False if the flood ends before."""
        while len(self.answers) < share * self.total:
            if not self.under_way or self.stopped.wait(0.01):
                return False
        return True

    def pause_after(self, kill: Kill | None) -> float | None:
        """How long after a kill a buyer of the events concerned was served again."""
        if kill is None:
            return None
        waits = [answer.answered - kill.at for answer in self.answers if answer.event in kill.events and answer.served]
        return min((wait for wait in waits if wait > kill.settled_after), default=None)

    def _buy(self) -> None:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not self.stopped.is_set():
            try:
                order = self.orders.popleft()
            except IndexError:
                break
            asked = time.monotonic()
            try:
                connection.request("POST", self.path.format(order.event), urlencode({"buyer": order.buyer}), FORM)
                answer = connection.getresponse()
                answer.read()
                status = answer.status
            except (OSError, HTTPException):
                connection.close()
                status = CUT_OFF
            self.answers.append(Answer(order.event, status, asked, time.monotonic()))
        connection.close()
