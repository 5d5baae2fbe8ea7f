"""What came of a flood, by the database, by the payment service's log, and by what the buyers were told."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from shop.models import Event, Ticket

from demo.faults import Faults
from demo.flood import BUSY, CUT_OFF, SERVED, UNAVAILABLE, Flood


@dataclass
class Account:
    seconds: float
    answers: Counter[int]
    median_wait: float
    longest_wait: float
    seats: int
    tickets: int = 0
    counted: int = 0
    oversold: int = 0
    payments: int = 0
    refunded: int = 0
    side_by_side: int = 0  # payments taken while another one of the same event was under way
    undelivered: int = 0  # paid, no ticket, and the process that sold it was killed
    unexplained: int = 0  # paid, no ticket, no excuse
    unpaid: int = 0  # a ticket without a payment
    out_of_order: int = 0  # tickets whose fence is not above that of the ticket before
    without_fence: int = 0

    @property
    def requests(self) -> int:
        return self.answers.total()

    @property
    def served(self) -> int:
        return sum(self.answers[status] for status in SERVED)

    @property
    def lost_updates(self) -> int:
        return self.tickets - self.counted

    @property
    def failed(self) -> int:
        return self.requests - self.served - sum(self.answers[status] for status in (BUSY, UNAVAILABLE, CUT_OFF))


def account_of(flood: Flood, faults: Faults, events: Sequence[int], log: Path) -> Account:
    waits = [answer.answered - answer.asked for answer in flood.answers] or [0.0]
    account = Account(
        seconds=flood.ended - flood.began,
        answers=flood.by_status,
        median_wait=median(waits),
        longest_wait=max(waits),
        seats=sum(event.capacity for event in Event.objects.filter(pk__in=events)),
    )
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    refunded = {entry["refund"] for entry in entries if "refund" in entry}
    payments = {entry["id"]: entry for entry in entries if "id" in entry and int(entry["event"]) in events}
    delivered = set()
    for event in Event.objects.filter(pk__in=events):
        tickets = list(Ticket.objects.filter(event=event).order_by("pk"))
        delivered |= {ticket.payment for ticket in tickets}
        fences = [ticket.fence for ticket in tickets if ticket.fence]
        account.tickets += len(tickets)
        account.counted += event.sold
        account.oversold += max(len(tickets) - event.capacity, 0)
        account.without_fence += len(tickets) - len(fences)
        account.out_of_order += sum(later <= earlier for earlier, later in pairwise(fences))
    account.payments = len(payments)
    account.refunded = len(refunded & payments.keys())
    account.side_by_side = sum(payment["beside"] > 0 for payment in payments.values())
    account.unpaid = len(delivered - payments.keys())
    for number in payments.keys() - delivered - refunded:
        if faults.till is not None and int(payments[number]["till"]) == faults.till:
            account.undelivered += 1
        else:
            account.unexplained += 1
    return account


def breaches(account: Account, *, guarded: bool = True) -> dict[str, int]:
    """What must never happen to a shop, and how often it did."""
    counts = {
        "tickets sold beyond the seats": account.oversold,
        "tickets the counter lost": abs(account.lost_updates),
        "payments side by side for one event": account.side_by_side,
        "paid, no ticket, nobody killed": account.unexplained,
        "tickets without a payment": account.unpaid,
        "tickets out of the order of their fences": account.out_of_order,
        "tickets sold without a lock": account.without_fence if guarded else 0,
        "requests answered with an error": account.failed,
    }
    return {what: count for what, count in counts.items() if count}
