"""Measures on an embedded cluster; writes docs/benchmarks.md and its plots: ``python -m benchmarks [--busy]``."""

import argparse
import os
import platform
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path

import redis
from django.conf import settings

from benchmarks import busy, calls, crowds, flights, handover, hung, many, pair
from benchmarks.bars import chart
from benchmarks.contestants import Bare, BareAcknowledged, Ours, OursAcknowledged, Push, PythonRedisLock, RedisPy
from django_cluster_lock import embedded

plots = {}  # by file name
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
HEAD = """\
# Benchmarks

Written by `python -m benchmarks{options}`. Every figure of this page comes from one run, in which the contestants take
turns round by round. The embedded cluster of three primaries and three replicas shares the machine with the processes
that measure.

Measured on {machine}, with {versions}.

Times depend on the machine, and ratios do too, though less: where Python is slow beside the kernel, Python's part of
each figure grows. The numbers of function calls depend on the versions alone.
"""
QUIET = "Alone on the machine"
BUSY = "Beside {count} busy processes"
ON_BUSY = "The same, while {count} processes kept a core busy each, on a machine of {cores} cores.\n"


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for a look; writes nothing")
    parser.add_argument(
        "--busy",
        type=int,
        nargs="?",
        const=cores(),
        default=0,
        metavar="PROCESSES",
        help="measure all of it a second time beside so many busy processes, one for each core if no number is given",
    )
    arguments = parser.parse_args()
    quick = arguments.quick
    settings.CLUSTER_LOCKS = {}
    with tempfile.TemporaryDirectory() as folder:
        folders = [f"{folder}/{name}" for name in ("cluster", "broker")]
        try:
            cluster = embedded.up(folders[0], owner=True)
            broker = embedded.up(folders[1], cluster=False, owner=True)
            page = "\n".join(sections(cluster, broker, quick=quick, neighbours=arguments.busy))
        finally:
            for each in folders:
                embedded.down(each)
    print(page)
    if not quick:
        PAGE.write_text(page)
        for name, plot in plots.items():
            PAGE.with_name(name).write_text(plot)


def sections(cluster, broker, *, quick, neighbours):
    options = f" --busy {neighbours}" if neighbours else ""
    yield HEAD.format(options=options, machine=machine(), versions=versions(cluster.urls[0]))
    yield from function_calls(cluster.urls)
    yield f"## {QUIET}\n"
    yield from times(cluster, broker, quick=quick)
    if neighbours:
        yield f"\n## {BUSY.format(count=neighbours)}\n"
        yield ON_BUSY.format(count=neighbours, cores=cores())
        with busy.neighbours(neighbours):
            yield from times(cluster, broker, quick=quick, prefix="busy-")


def times(cluster, broker, *, quick, prefix=""):
    """Measure everything that takes time, and give its part of the page."""
    urls = cluster.urls
    yield from pairs(urls, 5 if quick else 41, prefix)
    yield from handovers(urls, 10 if quick else 200, prefix)
    yield from many_locks(urls, quick=quick)
    yield from cold_crowds(urls, quick=quick)
    yield from beside_a_hung_node(cluster, quick=quick)
    yield from tasks(cluster, broker, 100 if quick else 2000, prefix)


def cores():
    return len(os.sched_getaffinity(0))


def machine():
    """Return the kind of machine, in words that name no host."""
    return f"{platform.system()} on {platform.machine()} with {cores()} cores"


def versions(url):
    with redis.Redis.from_url(url) as client:
        info = client.info("server")
    server = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    packages = ("redis", "hiredis", "python-redis-lock", "django", "celery", "celery-singleton", "celery-once")
    installed = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{server}, Python {platform.python_version()}, {installed}"


def function_calls(urls):
    counted = calls.measure([Ours, OursAcknowledged, RedisPy, PythonRedisLock, Bare], urls)
    yield "## Function calls\n"
    yield "In the thread that locks, for one uncontended acquire and release.\n"
    yield "| lock | calls of Python functions | of built-in functions | together |\n|---|---:|---:|---:|"
    for kind, (python, built_in) in counted.items():
        yield f"| {kind.label} | {python:.0f} | {built_in:.0f} | {python + built_in:.0f} |"
    yield ""


def plot(name, title, seconds):
    """Keeps a plot, and gives the line of the page that shows it."""
    plots[f"benchmarks-{name}.svg"] = chart(title, {label: value * 1e6 for label, value in seconds.items()})
    return f"\n![{title}](benchmarks-{name}.svg)\n"


def tasks(cluster, broker, rounds, prefix):
    first, duplicate = flights.measure(cluster, broker, rounds)
    yield "### A call of a Celery task\n"
    yield f"`.delay()` on a Redis broker: medians of {rounds:,} calls, each beside one of a plain task.\n"
    yield "| task | µs a call | of a plain one | µs a duplicate | of a plain call |\n|---|---:|---:|---:|---:|"
    for label, (plain, seconds) in first.items():
        beside, again = duplicate[label]
        yield f"| {label} | {seconds * 1e6:.0f} | {seconds / plain:.2f}x | {again * 1e6:.0f} | {again / beside:.2f}x |"
    yield plot(f"{prefix}calls", "A call of a Celery task", _with_plain(first))
    yield plot(f"{prefix}duplicates", "A call that is a duplicate", _with_plain(duplicate))


def _with_plain(times):
    """The seconds of a call by label; those of a plain one first."""
    plain = statistics.median(plain for plain, _ in times.values())
    return {flights.PLAIN: plain, **{label: seconds for label, (_, seconds) in times.items()}}


def pairs(urls, rounds, prefix):
    medians = pair.measure([Ours, Bare, RedisPy, PythonRedisLock, OursAcknowledged, BareAcknowledged], urls, rounds)
    yield "### Uncontended acquire and release\n"
    yield f"Medians of {rounds} rounds of {pair.PAIRS} pairs each.\n"
    yield "| lock | µs a pair | of the bare socket |\n|---|---:|---:|"
    for kind, seconds in medians.items():
        base = medians[BareAcknowledged if kind in (OursAcknowledged, BareAcknowledged) else Bare]
        yield f"| {kind.label} | {seconds * 1e6:.0f} | {seconds / base:.2f}x |"
    yield plot(f"{prefix}pairs", "Uncontended acquire and release", {kind.label: t for kind, t in medians.items()})


def handovers(urls, rounds, prefix):
    contestants = [Ours, Bare, OursAcknowledged, BareAcknowledged, Push, PythonRedisLock, RedisPy]
    times = {kind: handover.summary(values) for kind, values in handover.measure(contestants, urls, rounds).items()}
    yield "### Hand-over to a waiter\n"
    yield (
        "From the holder's call of `release` to the return of the waiter's `acquire`, in two processes: "
        f"{rounds} rounds, each waiter met at another moment of its wait.\n"
    )
    yield "| lock | median µs | p99 µs | median, of the bare slice and release |\n|---|---:|---:|---:|"
    for kind, (median, worst) in times.items():
        base = times[BareAcknowledged if kind in (OursAcknowledged, BareAcknowledged) else Bare][0]
        yield f"| {kind.label} | {median * 1e6:.0f} | {worst * 1e6:.0f} | {median / base:.2f}x |"
    medians = {kind.label: median for kind, (median, _) in times.items()}
    yield plot(f"{prefix}handovers", "Hand-over to a waiter, median", medians)


def many_locks(urls, *, quick):
    yield "### Many locks\n"
    alias = f"benchmark-{Ours.replicas}"
    at_once, one_by_one = many.together(alias, 100, 3 if quick else 15)
    count, seconds = (1_000, 5) if quick else (10_000, 60)
    share, held = many.renewed(alias, count, seconds)
    client = redis.RedisCluster.from_url(urls[0])
    record, index = many.memory(alias, client, 100)
    client.close()
    yield "| what | measured |\n|---|---|"
    yield f"| 100 locks in one `cache_lock([...])` beside 100 single ones | {one_by_one / at_once:.1f}x faster |"
    yield (
        f"| {count} leases of 30 s renewed for {seconds} s, REPLICAS 0 | {share:.2%} of a core; "
        f"{'all held' if held else 'SOME LOST'} |"
    )
    yield f"| memory of a held lock | {record:.0f} bytes the record with its owner, {index:.0f} its index of one |"
    yield ""


def cold_crowds(urls, *, quick):
    rounds = 1 if quick else 3
    yield "### A crowd in a new process\n"
    yield (
        f"All start at once, under `ulimit -n {crowds.DESCRIPTORS}`, each with a lock of its own, from a process that "
        f"has no connection yet: medians of {rounds} processes.\n"
    )
    yield "| lock | crowd | ms until all are done | had their lock |\n|---|---|---:|---:|"
    for crowd, count in (("threads", 100), ("coroutines", 1500)):
        for lock, label in crowds.LOCKS.items():
            outcomes = [crowds.measure(lock, crowd, count, urls) for _ in range(rounds)]
            seconds = statistics.median(outcome.seconds for outcome in outcomes)
            least = min(outcome.had for outcome in outcomes)
            yield f"| {label} | {count:,} {crowd} | {seconds * 1000:,.0f} | {least:,} of {count:,} |"
    yield ""


def beside_a_hung_node(cluster, *, quick):
    seconds = 1 if quick else 2
    yield "### Calls on healthy shards while a node hangs\n"
    yield (
        f"REPLICAS auto, {hung.LEASES} leases of {hung.TIMEOUT:.0f} s on all shards in one process. One primary is "
        f"stopped for {seconds} s while five threads ask it; medians of pairs on the other shards.\n"
    )
    yield "| callers | µs a pair before | µs meanwhile | ratio | their leases lost |\n|---|---:|---:|---:|---:|"
    for face in ("threads", "asyncio"):
        before, meanwhile, lost, leases = hung.measure(cluster, seconds, face=face)
        figures = f"{before * 1e6:.0f} | {meanwhile * 1e6:.0f} | {meanwhile / before:.2f}x | {lost} of {leases}"
        yield f"| {face} | {figures} |"
    yield ""


if __name__ == "__main__":
    main()
