"""The account of a run, for the documentation."""

import os
import platform
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from importlib.metadata import version

from tests.faults.checker import ALLOWANCE, BACK, LATE, ON_ITS_WAY, PATIENCE
from tests.faults.contestants import CONTESTANTS, FLIGHTS
from tests.faults.flights import LOCKS
from tests.faults.layouts import LAYOUTS

# For how long after a fault its consequences may show: the longest lease of the clients, and CLOCK_SKEW.
AFTERMATH = 9.0
HEAD = """\
# Faults

Servers are harmed, several shards at once, while client processes use their locks; client processes that are killed are
replaced. Each client writes down, by the machine's monotonic clock, when it asked for a lock, when it got it, until
when its handle called the lease valid, and when it gave it back. A checker knows these files, the journal of a database
and the faults, and nothing else. There are several layouts of servers; every figure of one comes from one run, whose
command stands with it. `cluster-node-timeout` is 2 s.

Two promises are tested, see [guarantees](explanation/guarantees.md). The first, mutual exclusion, does not cover the
faults that are marked *outside*: what overlaps after them is counted apart. The second, that no stale write lands,
covers all.

The controls stand in the same run, under the same faults, and have to fail: if they do not, the faults were too mild.
redis-py's holder counts on its lock from before the request that got it; its lock has no fences and no queue.

"""
SECTION = """\
## {title}

{words} ({server}), harmed for {minutes:.0f} minutes under {clients} client
processes; database: {database}; Python {python}, redis {redis}, {cores} cores. Written by
`{command}`.

"""
TITLE = "Layout {}"
VERDICT = """\
| | {labels} |
|---|{rules}|
"""
MEANING = f"""\
## What is counted

*Overlaps*: two holders of one lock whose handles both called their leases valid at the same time; *outside of promise
1* where such a fault met the first of the two leases, while it was held or {ON_ITS_WAY:g} s before. *Fence out of
order*: a lease whose fence is not above that of every earlier one; *clocks too far apart* where the clock that the
earlier one is from was further ahead than a record outlives its last lease (2 s). *Stale*: a commit whose fence is
below one already committed, or that had not read the commit before it. *Lost without a fault*: leases that were lost
though no fault had touched their shard or their holder since they were last renewed, whatever happened to other
shards meanwhile; where the machine stood still for a quarter of the lease, that is taken for the cause. redis-py's lock
renews nothing. *Late*: an `acquire` that returned more than {LATE:g} s after the caller's time (of a call that is not
to wait: {PATIENCE:g} s), *hangs*: more than {ALLOWANCE:g} s, or never; what its process was paused, or the machine
stood still, is not counted. *Overtaken*: a waiter that somebody overtook who had come later, at a time without a fault
nearby. *Of no use*: a planned failover after which no lock was granted for {BACK:g} s. *Other errors*: exceptions that
are none of the lock's own.

By kind of fault: *leases* are those granted to whom promise 1 is made, on what the fault touches, from its beginning
until all was whole again. What is wrong is counted with the last fault that touched its lock or client, {AFTERMATH:g} s
after its end at most; what only a fault outside of promise 1 can explain, with that. Stale writes of the controls need
no fault: their holders write whether or not their lease is over. *Flights*: all that is wrong with those under
`single_flight`.
"""
FLIGHTS_VERDICT = """\

### Single flight

| | {labels} |
|---|{rules}|
"""
FLIGHTS_MEANING = f"""
In the same run, under the same faults, two programs call Celery tasks of every policy on {len(LOCKS)} keys: alone and
in chains, groups and chords. Real workers run them, on both sides of the partitions; their children and whole workers
are killed (SIGKILL). The broker is a server that no fault touches. A run counts on its key until it ends, or its lease
does: then it is told `LockLost`. *Hangs*: calls that did not return in the time that a call has. *Unanswered*: calls
without a result. Those that Celery itself or its broker lost are counted apart; the broker's record of its commands has
to show it: a message that was taken from its queue by a worker that died before it noted that; one that was
acknowledged early by a worker that died; a member of a chord that died after its result was stored, before it was
counted. *Misled*: an answer that is not from a run of the key, or from one that was over when another had begun before
the call. Outside of promise 1 a shard may forget what was parked.
"""
KINDS = """\

### By kind of fault

| fault | promise 1 | times | leases | overlaps | stale | hangs | controls: overlaps | controls: stale |{more}
|---|---|---:|---:|---:|---:|---:|---:|---:|{rule}
"""
LATENCY = """\

### A shard that is gone

All nodes of one shard are killed, or stalled, while somebody goes on asking for its locks. What an uncontended
`acquire` takes, replicas included, on the other shards, from that moment on:

| the other shard is | median ms | p99 ms | median, of healthy | p99, of healthy |
|---|---:|---:|---:|---:|
"""
PICTURE = """\

### Over time

![The faults of each shard, and the leases granted each second]({name})

"""


def page(layout, section, before):
    """The page with this section, and with those of the other layouts as they stand in the page so far."""
    sections = {TITLE.format(name): "" for name in LAYOUTS}
    for text in before.split("\n## ")[1:]:
        title = text.partition("\n")[0]
        if title in sections:
            sections[title] = f"## {text.strip()}\n\n"
    sections[TITLE.format(layout.name)] = section
    return HEAD + "".join(sections.values()) + MEANING


def section(run, verdicts, flown, kinds, *, command, picture):
    """What one run found, as text of many lines."""
    posts = {attempt.client for attempt in run.history.attempts} - run.history.deaths.keys()
    yield SECTION.format(
        title=TITLE.format(run.layout.name),
        words=run.layout.words,
        command=command,
        server=run.server,
        minutes=(run.history.end - run.began) / 60,
        clients=len(posts),
        database=run.database,
        python=platform.python_version(),
        redis=version("redis"),
        cores=os.cpu_count(),
    )
    yield from verdict_table(verdicts)
    if flown:
        yield from flight_table(flown)
        yield FLIGHTS_MEANING
    yield KINDS.format(more=" flights |" if flown else "", rule="---:|" if flown else "")
    yield from kind_rows(run, verdicts, flown, kinds)
    if run.failures:
        yield f"\n{len(run.failures)} more faults did not go as they were meant to, and count as outside.\n"
    if run.latency:
        yield LATENCY
        for name, median, worst, *ratios in run.latency.rows():
            yield f"| {name} | {median * 1e3:.2f} | {worst * 1e3:.2f} | {ratios[0]:.2f}x | {ratios[1]:.2f}x |\n"
    yield PICTURE.format(name=picture)


def verdict_table(verdicts):
    here = [each for each in CONTESTANTS.values() if each.name in verdicts]
    found = [verdicts[each.name] for each in here]
    rows = {
        "leases granted": [each.leases for each in found],
        "**overlaps**": [len(each.overlaps) for each in found],
        "overlaps, outside of promise 1": [len(each.overlaps_outside) for each in found],
        "**fences out of order**": [len(each.disorder) if each.fences else "none at all" for each in found],
        "fences out of order, clocks too far apart": [len(each.disorder_outside) for each in found],
        "transactions committed": [each.commits for each in found],
        "**stale**": [len(each.stale) for each in found],
        "transactions refused (StaleFence, LockLost)": [each.refused.total() for each in found],
        "leases lost": [each.leases_lost for each in found],
        "**lost without a fault**": [len(each.lost_without_fault) for each in found],
        "late": [len(each.late) for each in found],
        "**hangs**": [len(each.hangs) for each in found],
        "**of no use**": [len(each.useless) for each in found],
        "waiters in order": [each.in_order for each in found],
        "**overtaken**": [len(each.overtaken) for each in found],
        "other errors": [len(each.errors) for each in found],
    }
    yield from table(VERDICT, here, rows)


def flight_table(flown):
    here, found = [FLIGHTS[name] for name in flown], list(flown.values())
    runs = {
        "calls": [each.calls for each in found],
        "calls refused (LockUnavailable)": [each.outcomes["LockUnavailable"] for each in found],
        "runs": [each.leases for each in found],
        "messages parked": [each.parked for each in found],
        "children killed": [each.killed["child"] for each in found],
        "workers killed": [each.killed["worker"] for each in found],
        "**overlaps**": [len(each.overlaps) for each in found],
        "overlaps, outside of promise 1": [len(each.overlaps_outside) for each in found],
        "**fences out of order**": [len(each.disorder) if each.fences else "none at all" for each in found],
        "fences out of order, clocks too far apart": [len(each.disorder_outside) for each in found],
        "**hangs**": [len(each.hangs) for each in found],
        "other errors": [len(each.errors) for each in found],
    }
    answers = {
        "**unanswered**": [len(each.unanswered) for each in found],
        "**misled**": [len(each.misled) for each in found],
        "unanswered or misled, outside of promise 1": [len(each.answers_outside) for each in found],
        "unanswered: lost by Celery or its broker": [each.lost.total() for each in found],
        "answered with an error of the lock's (LockLost, LockUnavailable)": [each.refused.total() for each in found],
    }
    for counts in answers.values():
        counts[:] = [count if each.promises else "not asked for" for each, count in zip(here, counts, strict=True)]
    yield from table(FLIGHTS_VERDICT, here, runs | answers)


def table(head, here, rows):
    yield head.format(labels=" | ".join(each.label for each in here), rules="|".join("---:" for _ in here))
    for name, values in rows.items():
        yield f"| {name} | {' | '.join(f'{value:,}' if isinstance(value, int) else value for value in values)} |\n"


def kind_rows(run, verdicts, flown, kinds):
    happenings = run.history.happenings
    ours = [verdict for name, verdict in verdicts.items() if 1 in CONTESTANTS[name].promises]
    controls = [verdict for name, verdict in verdicts.items() if 1 not in CONTESTANTS[name].promises]
    causes = {
        "overlaps": causes_of_overlaps(ours, run),
        "stale": by_cause([each for own in ours for each in own.stale], happenings),
        "hangs": by_cause([each for own in ours for each in own.hangs], happenings),
        "their overlaps": causes_of_overlaps(controls, run),
        "their stale": by_cause([each for other in controls for each in other.stale], happenings),
    }
    if flown:
        flights = flown["flights"]
        causes["flights"] = causes_of_overlaps([flights], run)
        causes["flights"] += by_cause([*flights.hangs, *flights.unanswered, *flights.misled], happenings)
        causes["flights"] += by_cause(flights.answers_outside, outside_of(run))
    leases = leases_under(run)
    nothing = " |" * len(causes)
    for kind in kinds:
        promise = "holds" if kind.holds else "*outside*"
        if reason := run.not_run.get(kind.name):
            yield f"| {kind.name} | {promise} | not run: {reason} | |{nothing}\n"
            continue
        times = sum(happening.kind == kind.name for happening in happenings)
        counts = " | ".join(str(cause[kind.name]) for cause in causes.values())
        yield f"| {kind.name} | {promise} | {times} | {leases[kind.name]:,} | {counts} |\n"
    unexplained = [str(cause[""]) for cause in causes.values()]
    yield f"| *none of them nearby* | | | | {' | '.join(unexplained)} |\n"
    yield f"| **all** | | **{len(happenings) - len(run.failures)}** | |{nothing}\n"


def causes_of_overlaps(verdicts, run):
    """Those that only a fault outside of promise 1 excuses are one's."""
    happenings = run.history.happenings
    within = by_cause([each for verdict in verdicts for each in verdict.overlaps], happenings)
    return within + by_cause([each for verdict in verdicts for each in verdict.overlaps_outside], outside_of(run))


def outside_of(run):
    return [happening for happening in run.history.happenings if not happening.holds]


def by_cause(findings, happenings):
    """How many of what is wrong each kind may have caused: the last fault before it that touched its lock or client."""
    counts = Counter()
    for finding in findings:
        near = [
            happening
            for happening in happenings
            if happening.injected <= finding.at <= happening.over + AFTERMATH
            and (finding.lock in happening.locks or set(finding.clients) & set(happening.clients))
        ]
        counts[max(near, key=lambda happening: happening.injected).kind if near else ""] += 1
    return counts


def leases_under(run):
    """How many leases of promise 1 were granted while faults of each kind lasted, on what they touched."""
    granted = defaultdict(list)
    for attempt in run.history.attempts:
        if 1 in CONTESTANTS[attempt.contestant].promises and attempt.outcome == "granted":
            granted[attempt.lock].append(attempt.returned)
            granted[attempt.client].append(attempt.returned)
    for times in granted.values():
        times.sort()
    counts = defaultdict(int)
    for happening in run.history.happenings:
        for touched in happening.locks or happening.clients:
            times = granted[touched]
            counts[happening.kind] += bisect_right(times, happening.over) - bisect_left(times, happening.injected)
    return counts
