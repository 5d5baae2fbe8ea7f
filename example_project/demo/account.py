"""What came of a flood, by the database, by the payment service's log, and by what the buyers were told."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from demo.faults import Faults
from demo.flood import BUSY, CUT_OFF, SOLD, SOLD_OUT, UNAVAILABLE, Flood
from shop.models import Event, Ticket


@dataclass
class Account:
    answers: Counter[int]  # by status
    seconds: float
    longest_wait: float
    web_pause: float | None  # after the kill of a web process, until a buyer of the event was served
    primary_pause: float | None
    faults: Faults
    guarded: bool
    seats: int = 0
    tickets: int = 0
    with_fence: int = 0  # tickets sold under a lock
    counted: int = 0  # tickets by the events' counters
    oversold: int = 0
    left_free: int = 0  # seats that nobody got although buyers asked
    out_of_order: int = 0  # tickets whose fence is not above that of the event's ticket before
    payments: int = 0
    side_by_side: int = 0  # payments taken while another one of the same event was under way
    refunded: int = 0
    undelivered: int = 0  # paid, no ticket, because the process was killed
    unexplained: int = 0  # paid, no ticket, no excuse
    unpaid: int = 0  # tickets without a payment

    @property
    def requests(self) -> int:
        return self.answers.total()

    @property
    def failed(self) -> int:
        return sum(self.answers[status] for status in self.answers.keys() - EXPECTED)

    @property
    def lost_updates(self) -> int:
        return self.tickets - self.counted

    @property
    def breaches(self) -> Mapping[str, int]:
        """What a lock must never let happen, and how often it did."""
        counts = {
            "tickets oversold": self.oversold,
            "tickets missing from the counters": abs(self.lost_updates),
            "payments beside another one of the same event": self.side_by_side,
            "payments without a ticket for no reason": self.unexplained,
            "tickets without a payment": self.unpaid,
            "tickets out of the order of their fences": self.out_of_order,
            "seats left free though buyers asked": self.left_free,
            "tickets sold without a lock": self.tickets - self.with_fence if self.guarded else 0,
            "requests that failed": self.failed,
        }
        return {what: count for what, count in counts.items() if count}


EXPECTED = {SOLD, SOLD_OUT, BUSY, UNAVAILABLE, CUT_OFF}


def account_of(flood: Flood, faults: Faults, events: Sequence[int], payment_log: Path, *, guarded: bool) -> Account:
    account = Account(
        answers=flood.by_status,
        seconds=flood.ended - flood.began,
        longest_wait=max((answer.answered - answer.asked for answer in flood.answers), default=0.0),
        web_pause=flood.pause_after(faults.web),
        primary_pause=flood.pause_after(faults.primary),
        faults=faults,
        guarded=guarded,
    )
    asked = Counter(answer.event for answer in flood.answers if answer.status != CUT_OFF)
    for event in Event.objects.filter(pk__in=events):
        tickets = Ticket.objects.filter(event=event).order_by("pk")
        fences = [ticket.fence for ticket in tickets if ticket.fence]
        account.seats += event.capacity
        account.counted += event.sold
        account.tickets += len(tickets)
        account.oversold += max(len(tickets) - event.capacity, 0)
        account.left_free += max(min(event.capacity, asked[event.pk]) - len(tickets), 0)
        account.with_fence += len(fences)
        account.out_of_order += sum(later <= earlier for earlier, later in pairwise(fences))
    add_payments(account, [json.loads(line) for line in payment_log.read_text().splitlines()], events)
    return account


def add_payments(account: Account, log: Sequence[Mapping[str, Any]], events: Sequence[int]) -> None:
    payments = {entry["id"]: entry for entry in log if "beside" in entry and int(entry["event"]) in events}
    refunded = {entry["refund"] for entry in log if "refund" in entry} & payments.keys()
    delivered = set(Ticket.objects.filter(event__in=events).values_list("payment", flat=True))
    killed = account.faults.web.victim if account.faults.web else None
    missing = Counter(int(payments[number]["till"]) == killed for number in payments.keys() - delivered - refunded)
    account.payments = len(payments)
    account.side_by_side = sum(payment["beside"] > 0 for payment in payments.values())
    account.refunded = len(refunded)
    account.undelivered, account.unexplained = missing[True], missing[False]
    account.unpaid = len(delivered - payments.keys())
