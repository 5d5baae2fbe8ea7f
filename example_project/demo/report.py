"""What the demo prints."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from textwrap import fill
from typing import TypeAlias, TypeVar

from demo.account import Account
from demo.flood import BUSY, CUT_OFF, SOLD, SOLD_OUT, UNAVAILABLE

COLUMNS = "{:<48}{:>14}{:>14}"
T = TypeVar("T")
Rows: TypeAlias = Mapping[str, Callable[[T], object] | None]  # a label and its figure; without one it is a heading
ROWS: Rows[Account] = {
    "What the buyers were told (answers.jsonl)": None,
    "requests made": lambda a: a.requests,
    "  sold (201)": lambda a: a.answers[SOLD],
    "  sold out (410)": lambda a: a.answers[SOLD_OUT],
    "  lock busy for 10 s, or lost (409)": lambda a: a.answers[BUSY],
    "  lock unavailable (503)": lambda a: a.answers[UNAVAILABLE],
    "  cut off: the process was killed": lambda a: a.answers[CUT_OFF],
    "  failed": lambda a: a.failed,
    "requests answered in a second": lambda a: round(a.requests / a.seconds),
    "longest wait for an answer": lambda a: f"{a.longest_wait:.1f} s",
    "The database": None,
    "seats": lambda a: a.seats,
    "tickets sold": lambda a: a.tickets,
    "  oversold": lambda a: a.oversold,
    "  missing from the counters (lost updates)": lambda a: a.lost_updates,
    "  seats left free though buyers asked": lambda a: a.left_free,
    "  under a lock": lambda a: a.with_fence,
    "  out of the order of their fences": lambda a: a.out_of_order,
    "The payment service's log (payments.jsonl)": None,
    "payments": lambda a: a.payments,
    "  beside another one of the same event": lambda a: a.side_by_side,
    "  refunded": lambda a: a.refunded,
    "  paid, not delivered: the process was killed": lambda a: a.undelivered,
    "  paid, not delivered: no reason": lambda a: a.unexplained,
}
ONLY_IF_ANY = {
    "  lock busy for 10 s, or lost (409)",
    "  lock unavailable (503)",
    "  failed",
    "  seats left free though buyers asked",
    "  refunded",
}


class Progress:
    """A line that changes on a terminal, else a new one every other second."""

    def __init__(self, line: Callable[[], str]) -> None:
        self.line = line
        self.live = sys.stdout.isatty()
        self.shown = time.monotonic()

    def show(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now < self.shown + (0.1 if self.live else 2):
            return
        self.shown = now
        line = self.line()
        print(f"\r{line}\x1b[K" if self.live else line, end="" if self.live and not last else "\n", flush=True)


def report(guarded: Account, control: Account) -> Iterator[str]:
    """The whole account."""
    paragraphs = (*incidents(guarded), *conclusion(guarded, control))
    return table(("with the lock", "without it"), ROWS, ONLY_IF_ANY, guarded, control, paragraphs)


def table(  # noqa: PLR0917
    titles: tuple[str, str],
    rows: Rows[T],
    only_if_any: Set[str],
    guarded: T,
    control: T,
    paragraphs: Iterable[str],
) -> Iterator[str]:
    """Two columns of figures, and what is to say about them."""
    yield ""
    yield COLUMNS.format("", *titles)
    for label, value in rows.items():
        if value is None:
            yield f"\n{label}"
            continue
        columns = value(guarded), value(control)
        if any(columns) or label not in only_if_any:
            yield COLUMNS.format(f"  {label}", *columns)
    for sentences in filter(None, paragraphs):
        yield ""
        yield fill(sentences, 76)


def incidents(account: Account) -> Iterator[str]:
    """What was killed with the lock at work, and what it cost."""
    if web := account.faults.web:
        yield (
            f"Web process {web.victim} was killed (SIGKILL) between a payment and its ticket. "
            f"Paid, but not delivered by it: {account.undelivered}. The event it had locked {again(account.web_pause)}."
        )
    elif account.faults.wanted:
        yield "No web process was killed: the flood was over before."
    if primary := account.faults.primary:
        yield (
            f"The primary at port {primary.victim} was killed, which had the locks of {len(primary.events)} events. "
            f"A replica replaced it after {primary.settled_after:.1f} s; they {again(account.primary_pause)}."
        )
    elif account.faults.wanted:
        yield "No primary was replaced: the flood was over before."


def conclusion(guarded: Account, control: Account) -> Iterator[str]:
    if guarded.breaches:
        yield f"BROKEN with the lock: {counted(guarded.breaches)}."
    else:
        yield "With the lock no seat was sold twice, no sale went uncounted, and every payment is accounted for."
    if control.breaches:
        yield f"Without it: {counted(control.breaches)}."
    else:
        yield "Without it nothing broke this time: too few buyers at once to show what the lock is for."


def again(pause: float | None) -> str:
    return "sold nothing again before the flood was over" if pause is None else f"sold on {pause:.1f} s after the kill"


def counted(breaches: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in breaches.items())
