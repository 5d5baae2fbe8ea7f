"""What the demo prints."""

import sys
import time
from collections.abc import Iterator, Mapping

from demo.account import Account
from demo.faults import Faults
from demo.flood import BUSY, CUT_OFF, SOLD, SOLD_OUT, UNAVAILABLE, Flood


class Progress:
    """A line that changes on a terminal, else a new one every other second."""

    def __init__(self, title: str, flood: Flood) -> None:
        self.title, self.flood = title, flood
        self.every = 0.1 if sys.stdout.isatty() else 2.0
        self.shown = time.monotonic()

    def show(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if now < self.shown + self.every and not last:
            return
        self.shown = now
        answers = self.flood.by_status
        line = (
            f"{self.title:>13}: {now - self.flood.began:4.1f} s  {answers.total():5} answers, "
            f"{answers[SOLD]} sold, {answers[SOLD_OUT]} sold out, {answers[BUSY] + answers[UNAVAILABLE]} turned away"
        )
        if sys.stdout.isatty():
            print(f"\r{line}\x1b[K", end="\n" if last else "", flush=True)
        else:
            print(line, flush=True)


def table(guarded: Account, control: Account) -> Iterator[str]:
    yield f"{'':48}{'with the lock':>14}{'without it':>12}"
    for label, value, other in (
        ("requests made", guarded.requests, control.requests),
        ("  sold", guarded.answers[SOLD], control.answers[SOLD]),
        ("  sold out", guarded.answers[SOLD_OUT], control.answers[SOLD_OUT]),
        ("  busy (409): waited 10 s in vain", guarded.answers[BUSY], control.answers[BUSY]),
        ("  lock not available (503)", guarded.answers[UNAVAILABLE], control.answers[UNAVAILABLE]),
        ("  cut off as their process was killed", guarded.answers[CUT_OFF], control.answers[CUT_OFF]),
        ("  failed", guarded.failed, control.failed),
        ("seats", guarded.seats, control.seats),
        ("tickets in the database", guarded.tickets, control.tickets),
        ("  oversold", guarded.oversold, control.oversold),
        ("  not in the events' counters (lost updates)", guarded.lost_updates, control.lost_updates),
        ("  out of the order of their leases' fences", guarded.out_of_order, "-"),
        ("payments in the payment service's log", guarded.payments, control.payments),
        ("  taken while another of the event was under way", guarded.side_by_side, control.side_by_side),
        ("  paid, not delivered: process killed", guarded.undelivered, control.undelivered),
        ("  paid, not delivered, for no reason", guarded.unexplained, control.unexplained),
        ("  refunded", guarded.refunded, control.refunded),
        ("locks taken", guarded.served if not guarded.without_fence else 0, "-"),
        ("median wait for an answer", f"{guarded.median_wait:.2f} s", f"{control.median_wait:.2f} s"),
        ("longest wait", f"{guarded.longest_wait:.2f} s", f"{control.longest_wait:.2f} s"),
        ("answers in a second", round(guarded.requests / guarded.seconds), round(control.requests / control.seconds)),
    ):
        yield f"{label:<48}{value:>14}{other:>12}"


def incidents(faults: Faults) -> Iterator[str]:
    if faults.till:
        yield (
            f"Web process {faults.till} was killed between taking a payment and writing its ticket. "
            f"Its lock came free after {faults.till_pause:.1f} s, and the event sold on."
        )
    if faults.primary:
        count = len(faults.primary_events)
        yield (
            f"The primary at port {faults.primary} was killed, which had the locks of {count} of the events. "
            f"A replica took its place after {faults.promoted_after:.1f} s; these events sold on after "
            f"{faults.primary_pause:.1f} s. "
            + ("The node is back, as a replica." if faults.whole_again else "The node did not come back in time.")
        )


def conclusion(broken: Mapping[str, int], control: Mapping[str, int]) -> Iterator[str]:
    if broken:
        yield "BROKEN with the lock: " + ", ".join(f"{what}: {count}" for what, count in broken.items()) + "."
    else:
        yield "With the lock: no seat sold twice, no update lost, no payment unaccounted for."
    if control:
        yield "Without it: " + ", ".join(f"{what}: {count}" for what, count in control.items()) + "."
    else:
        yield "Without it nothing went wrong this time: too few requests at once to show what the lock is for."
