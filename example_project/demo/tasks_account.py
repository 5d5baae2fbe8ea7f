"""What came of a flood of calls, by the log of the runs, by what the callers got, and by the payment service's log."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from demo.tasks_faults import PrimaryKilled, RunKilled
from demo.tasks_flood import Entry, TaskFlood
from shop.models import Ticket


class Run(NamedTuple):
    """One run by its log: when it began and ended, and what it gave; None if it has not ended."""

    key: str
    id: str
    pid: int
    began: float
    fence: int | None
    ended: float | None = None
    result: str | None = None


@dataclass
class TaskAccount:
    calls: int
    seconds: float
    killed: RunKilled | None
    primary: PrimaryKilled | None
    kill_wanted: bool
    guarded: bool
    joined: int = 0  # calls that got the id of a flight under way
    refused: int = 0  # calls that were told that the lock is unavailable
    refused_in_vain: int = 0  # those of them whose key's primary lived
    unanswered: int = 0  # calls that got no result, or an error
    misled: int = 0  # calls whose result is not that of a run with their id
    runs: int = 0
    reports: int = 0
    with_fence: int = 0  # runs under a lock
    out_of_order: int = 0  # runs whose fence is not above that of their key's run before
    overlapping: int = 0  # runs that began before another one of their key had ended
    cut_off: int = 0  # runs that ended by the kill
    endless: int = 0  # runs that never ended, without an excuse
    tickets: int = 0  # that somebody wanted an invoice of
    unbilled: int = 0
    invoices: int = 0
    doubles: int = 0  # second and further invoices for a ticket
    excused: int = 0  # those of them that are due to the kill
    resumed: float | None = None  # seconds from the kill until the killed run's key was run again
    same_task: bool = False  # whether that was the same task, come again
    waiting: int = 0  # calls that waited for the killed run's task
    served: int = 0  # and how many of them got a result
    flew_on: float | None = None  # seconds from a primary's kill until one of its keys was run again

    @property
    def breaches(self) -> Mapping[str, int]:
        """What single flight must never let happen, and how often it did."""
        counts = {
            "runs beside another one of the same key": self.overlapping,
            "runs out of the order of their fences": self.out_of_order,
            "runs without a lock": self.runs - self.with_fence if self.guarded else 0,
            "runs that never ended": self.endless,
            "calls refused for no reason": self.refused_in_vain,
            "calls without a result": self.unanswered,
            "calls with a result that is not their run's": self.misled,
            "tickets without an invoice": self.unbilled,
            "second invoices": self.doubles - self.excused,
        }
        return {what: count for what, count in counts.items() if count}


def task_account_of(flood: TaskFlood, payment_log: Path, *, kill_wanted: bool, guarded: bool) -> TaskAccount:
    runs = runs_of(entry for entry in flood.runs.entries if entry["key"] in flood.keys)
    made, answered = flood.made, [entry for entry in flood.closed if "answered" in entry]
    ids = {entry["id"] for entry in made if "id" in entry}
    accepted = sum("id" in entry for entry in made)
    refused = [entry["key"] for entry in made if "refused" in entry]
    account = TaskAccount(
        calls=flood.total,
        seconds=flood.ended - flood.began,
        killed=flood.killed,
        primary=flood.primary,
        kill_wanted=kill_wanted,
        guarded=guarded,
        joined=accepted - len(ids),
        refused=len(refused),
        refused_in_vain=sum(not flood.primary or key not in flood.primary.keys for key in refused),
        unanswered=flood.total - sum("result" in entry for entry in answered) - (len(made) - accepted),
        runs=len(runs),
        reports=sum(run.key.startswith("report ") for run in runs),
        with_fence=sum(run.fence is not None for run in runs),
        out_of_order=out_of_order(runs),
        overlapping=overlapping(runs, flood.killed),
    )
    given = defaultdict(set)
    for run in runs:
        given[run.id].add(run.result)
    account.misled = sum(
        "result" in entry and json.dumps(entry["result"], sort_keys=True) not in given[entry["id"]]
        for entry in answered
    )
    unfinished = Counter(flood.killed is not None and run.pid == flood.killed.victim for run in runs if not run.ended)
    account.cut_off, account.endless = unfinished[True], unfinished[False]
    keys = {entry["key"] for entry in made if "id" in entry}
    add_invoices(account, {int(key.removeprefix("bill ")) for key in keys if key.startswith("bill ")}, payment_log)
    if flood.killed:
        add_kill(account, flood.killed, runs, answered)
    if primary := flood.primary:
        begun = (run.began - primary.at for run in runs if run.key in primary.keys)
        account.flew_on = min((after for after in begun if after > primary.replaced), default=None)
    return account


def runs_of(log: Iterable[Entry]) -> list[Run]:
    """The runs, in the order of their beginnings."""
    runs: dict[tuple[str, int], list[Run]] = defaultdict(list)
    for entry in log:
        ours = runs[entry["id"], entry["pid"]]
        if entry["what"] == "start":
            ours.append(Run(entry["key"], entry["id"], entry["pid"], entry["at"], entry["fence"]))
        else:
            ours[-1] = ours[-1]._replace(ended=entry["at"], result=json.dumps(entry["result"], sort_keys=True))
    return sorted((run for ours in runs.values() for run in ours), key=lambda run: run.began)


def overlapping(runs: Sequence[Run], killed: RunKilled | None) -> int:
    """How many began before an earlier one of their key had ended; a killed one ended with its process."""
    busy_until: dict[str, float] = {}
    count = 0
    for run in runs:
        count += run.began < busy_until.get(run.key, -math.inf)
        cut_off = killed and run.pid == killed.victim
        ended = run.ended or (killed.at if killed and cut_off else math.inf)
        busy_until[run.key] = max(ended, busy_until.get(run.key, -math.inf))
    return count


def out_of_order(runs: Sequence[Run]) -> int:
    """How many have a fence that is not above the one of their key's run before."""
    fences: dict[str, list[int]] = defaultdict(list)
    for run in runs:
        if run.fence is not None:
            fences[run.key].append(run.fence)
    return sum(later <= earlier for each in fences.values() for earlier, later in pairwise(each))


def add_invoices(account: TaskAccount, wanted: set[int], payment_log: Path) -> None:
    log = [json.loads(line) for line in payment_log.read_text().splitlines()]
    invoices = [entry for entry in log if entry.get("kind") == "invoice" and int(entry["ticket"]) in wanted]
    by_ticket = Counter(int(invoice["ticket"]) for invoice in invoices)
    kept = dict(Ticket.objects.filter(pk__in=wanted).values_list("pk", "invoice"))
    account.tickets, account.invoices = len(wanted), len(invoices)
    account.unbilled = sum(not kept[ticket] for ticket in wanted)
    account.doubles = len(invoices) - len(by_ticket)
    if killed := account.killed:
        account.excused = sum(
            int(invoice["till"]) == killed.victim and kept[int(invoice["ticket"])] != invoice["id"]
            for invoice in invoices
            if f"bill {invoice['ticket']}" == killed.key
        )


def add_kill(account: TaskAccount, killed: RunKilled, runs: Sequence[Run], answered: Sequence[Entry]) -> None:
    lost = next((run for run in runs if run.pid == killed.victim and run.key == killed.key and not run.ended), None)
    again = next((run for run in runs if run.key == killed.key and run.began > killed.at), None)
    if lost and again:
        account.resumed, account.same_task = again.began - killed.at, again.id == lost.id
    if lost:
        waiting = [entry for entry in answered if entry["id"] == lost.id]
        account.waiting, account.served = len(waiting), sum("result" in entry for entry in waiting)
