"""What the demo prints of the calls of tasks."""

from collections.abc import Iterator

from demo.report import Rows, counted, table
from demo.tasks_account import TaskAccount

ROWS: Rows[TaskAccount] = {
    "What the callers were told (calls.jsonl)": None,
    "calls made": lambda a: a.calls,
    "  joined a flight under way": lambda a: a.joined,
    "  refused: the lock was unavailable": lambda a: a.refused,
    "  without a result": lambda a: a.unanswered,
    "  with a result that is not their run's": lambda a: a.misled,
    "all results were there after": lambda a: f"{a.seconds:.1f} s",
    "What the runs noted of themselves (runs.jsonl)": None,
    "runs made": lambda a: a.runs,
    "  beside another one of the same key": lambda a: a.overlapping,
    "  under a lock": lambda a: a.with_fence,
    "  out of the order of their fences": lambda a: a.out_of_order,
    "  cut off: the process was killed": lambda a: a.cut_off,
    "  never ended": lambda a: a.endless,
    "reports made": lambda a: a.reports,
    "The database": None,
    "tickets to be billed": lambda a: a.tickets,
    "  without an invoice": lambda a: a.unbilled,
    "The payment service's log (payments.jsonl)": None,
    "invoices made": lambda a: a.invoices,
    "  second ones: the process was killed": lambda a: a.excused,
    "  second ones: no reason": lambda a: a.doubles - a.excused,
}
ONLY_IF_ANY = {"  never ended", "  without an invoice"}


def report_tasks(guarded: TaskAccount, control: TaskAccount) -> Iterator[str]:
    """The whole account."""
    paragraphs = (incident(guarded), failover(guarded), *conclusion(guarded, control))
    return table(("single flight", "without it"), ROWS, ONLY_IF_ANY, guarded, control, paragraphs)


def incident(account: TaskAccount) -> str:
    """The kill with single flight at work, and what it cost."""
    killed = account.killed
    if killed is None:
        return "No worker's process was killed: there was no invoice to be made." if account.kill_wanted else ""
    if account.resumed is None:
        return f"A worker's process, {killed.victim}, was killed (SIGKILL). Its key, {killed.key!r}, was not run again."
    freed = "had no lock" if killed.freed is None else f"came free {killed.freed:.1f} s after the kill"
    return (
        f"A worker's process, {killed.victim}, was killed (SIGKILL) between an invoice and its note. Its key, "
        f"{killed.key!r}, {freed}. It was run again {account.resumed:.1f} s after the kill, by "
        f"{'the same task, whose message had gone back to its queue' if account.same_task else 'another task'}. "
        f"{account.served} of the {account.waiting} calls that waited for the killed task got its result."
    )


def failover(account: TaskAccount) -> str:
    """The kill of a primary with single flight at work, and what it cost."""
    primary = account.primary
    if primary is None:
        return "No primary was killed: the flood was over before, or had no locks." if account.kill_wanted else ""
    again = (
        "the flood was over before one of them was run again"
        if account.flew_on is None
        else f"the first of them was run again {account.flew_on:.1f} s after the kill"
    )
    return (
        f"The primary at port {primary.port} was killed, which had the locks of {len(primary.keys)} keys, "
        f"{primary.flights} of them in flight. A replica replaced it after {primary.replaced:.1f} s; {again}. "
        f"Calls refused meanwhile, since nobody could tell whether their key was free: {account.refused}."
    )


def conclusion(guarded: TaskAccount, control: TaskAccount) -> Iterator[str]:
    if guarded.breaches:
        yield f"BROKEN with single flight: {counted(guarded.breaches)}."
    else:
        yield (
            f"With single flight no two runs of a key overlapped, {guarded.calls} calls cost {guarded.runs} runs, and "
            f"{'every call' if not guarded.refused else 'every call that was not refused'} got the result of the run "
            "it had asked for or joined."
        )
    if control.breaches:
        yield f"Without it: {counted(control.breaches)}."
    else:
        yield "Without it nothing broke this time: too few calls at once to show what it is for."
