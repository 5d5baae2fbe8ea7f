"""The account of a storm: what stands in the log, and nothing else, tells what went wrong."""

import statistics
from collections import Counter, defaultdict

from celery.result import AsyncResult

from django_cluster_lock import LockError
from django_cluster_lock.flights.results import SKIPPED
from tests.celery.storm.tasks import app, bare

LOST_BY_BROKER = "its message was taken by a worker that died before it noted that"
LOST_EARLY = "its message was acknowledged early by a worker that died"
NOT_COUNTED = "a member of its chord died after its result was stored, before that was counted"


def account(calls, events, killed, fates, seconds):
    """What happened, and what was wrong.

    Args:
        fates: of each task's last message, if the broker tells; see `Messages`.
    """
    unanswered, excused = [], Counter()
    judge = Loss(events, fates)
    for call in calls:
        if not call.answered():
            reason = judge.reason(call)
            if reason:
                excused[reason] += 1
            else:
                unanswered.append(told(call, judge.trace(call)))
    # Each takes one at a time; a bare storm also ends its workers while there is more to take.
    assert bare or len(judge.taken) <= killed["worker"], judge.taken
    misled, refused = ([], Counter()) if bare else wrongly_answered(calls, events)
    times = recoveries(events)
    return {
        "calls": len(calls),
        "numbers": sum(len(call.numbers) for call in calls),
        "keys": len({call.key for call in calls}),
        "killed": dict(killed),
        "runs": sum(event["what"] == "start" for event in events),
        "parked": sum(event["what"] == "parked" for event in events),
        "settled": sum(event["what"] == "settled" for event in events),
        "seconds": round(seconds, 1),
        "free after a kill": {"of": len(times), "median": middle(times), "worst": round(max(times, default=0), 3)},
        "overlaps": overlapping(events),
        "unanswered": unanswered,
        "lost by Celery or its broker": dict(excused),
        "misled": misled,
        "refused": dict(refused),
    }


def overlapping(events):
    """The runs that began while another one of their key was under way."""
    holder, found = {}, []
    for event in events:
        key = event["key"]
        if event["what"] == "start":
            if key in holder:
                found.append((holder[key]["id"], event["id"]))
            holder[key] = event
        elif event["what"] == "end" and holder.get(key, {}).get("pid") == event["pid"]:
            del holder[key]
        elif event["what"] == "killed":
            holder = {key: run for key, run in holder.items() if run["pid"] not in event["pids"]}
    return found


class Loss:
    """Why a call stays without an answer, where that is Celery's doing or its broker's."""

    def __init__(self, events, fates):
        self._fates, self.taken = fates or {}, set()
        self._acknowledged = ("acknowledged",) if fates is not None else (None,)  # or not known to be
        self._dead = {pid for event in events if event["what"] == "killed" for pid in event["pids"]}
        self._by_worker = {pid for event in events if event.get("victim") == "worker" for pid in event["pids"]}
        # A child whose worker died too, before it may have told of the child.
        self._by_worker |= {
            pid
            for event in events
            if event.get("victim") == "child" and event["parent"] in self._by_worker
            for pid in event["pids"]
        }
        self._seen = defaultdict(list)
        for event in events:
            if "id" in event:
                self._seen[event["id"]].append(event)

    def reason(self, call):
        """One of the reasons for the first of the call's tasks that did not end; empty if it is none of these."""
        missing = next(task_id for task_id in call.awaited if not ready(task_id))
        fate = self._fates.get(missing)
        if fate == "taken":
            self.taken.add(missing)
            return LOST_BY_BROKER
        if fate in self._acknowledged and call.policy == "early" and self._last_at(missing) in (None, *self._by_worker):
            return LOST_EARLY
        *members, body = call.awaited
        uncounted = call.form == "chord" and missing == body and fate is None
        if uncounted and any(self._last_at(member) in self._dead for member in members):
            return NOT_COUNTED
        return ""

    def trace(self, call):
        """All that was seen of it."""
        return [
            (task_id, self._fates.get(task_id), [f"{event['what']}@{event['pid']}" for event in self._seen[task_id]])
            for task_id in call.awaited
            if not ready(task_id)
        ]

    def _last_at(self, task_id):
        """The process that its message came to last: None if it came to none, 0 if it was parked there."""
        events = [event for event in self._seen[task_id] if event["what"] in ("arrived", "parked")]
        if not events:
            return None
        return events[-1]["pid"] if events[-1]["what"] == "arrived" else 0


def ready(task_id):
    return AsyncResult(task_id, app=app).ready()


def wrongly_answered(calls, events):
    """Calls whose answer is not from a run that they may have it from; and the lock's own errors, by name."""
    ends = {event["run"]: (place, event) for place, event in enumerate(events) if event.get("answers")}
    starts, called = defaultdict(list), {}
    for place, event in enumerate(events):
        if event["what"] == "start":
            starts[event["key"]].append(place)
        elif event["what"] == "call":
            called[tuple(event["numbers"])] = place
    dead = {pid for event in events if event["what"] == "killed" for pid in event["pids"]}
    troubled = {event["key"] for event in events if event["what"] == "start" and event["pid"] in dead}
    over = last_under_way(events)
    wrong, refused = [], Counter()
    for call in calls:
        if not call.answered() or getattr(call.result, "state", "") == SKIPPED or call.policy == "early":
            continue
        place = called[tuple(call.numbers)]
        for number, answer in zip(call.numbers, call.answers(), strict=False):
            if answer is None and call.policy == "skip":
                continue
            if isinstance(answer, LockError):
                refused[type(answer).__name__] += 1
                continue
            if not isinstance(answer, list | tuple) or answer[1] not in ends:
                wrong.append(told(call, f"not from a run: {answer!r}"))
                continue
            ended, run = ends[answer[1]]
            ended = max(ended, over.get(answer[1].partition(":")[0], 0))
            stale = any(ended < start < place for start in starts[call.key])
            rerun = call.policy == "rerun" and call.key not in troubled and answer[0] < number
            if run["key"] != call.key or stale or rerun or (call.policy == "wait" and answer[0] != number):
                since = [brief(event) for event in events[ended:place] if event["key"] in (call.key, "")]
                wrong.append(told(call, f"another's: {answer!r}, and until the call {since}"))
    return wrong, refused


def last_under_way(events):
    """By task, where its last run was over: its first success stays its outcome, if its message has it run again."""
    running, over = {}, {}
    for place, event in enumerate(events):
        if event["what"] == "start":
            running[event["pid"]] = event["id"]
        for pid in {"end": [event.get("pid")], "killed": event.get("pids")}.get(event["what"], ()):
            if pid in running:
                over[running.pop(pid)] = place
    return over


def brief(event):
    return f"{event['what']} {event.get('id', '')}@{event.get('pid') or event.get('pids')}"


def told(call, what):
    return {"key": call.key, "at": call.at, "what": f"{call}: {what}"}


def recoveries(events):
    """Seconds from the kill of a child that ran a task until its key was free."""
    running, killed, times = {}, {}, []
    for event in events:
        if event["what"] == "start":
            running[event["pid"]] = event["id"]
        elif event["what"] == "end":
            running.pop(event["pid"], None)
        elif event["what"] == "killed" and event["victim"] == "child":
            for pid in event["pids"]:
                if pid in running:
                    killed[running.pop(pid)] = event["at"]
        elif event["what"] == "recovered" and event.get("id") in killed:
            times.append(event["at"] - killed.pop(event["id"]))
    return times


def middle(times):
    return round(statistics.median(times), 3) if times else None
