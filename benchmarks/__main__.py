"""Measures on an embedded cluster; writes docs/benchmarks.md and its plots: ``python -m benchmarks [--quick]``."""

import argparse
import os
import platform
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path

import redis
from django.conf import settings

from benchmarks import flights, handover, many, pair
from benchmarks.bars import chart
from benchmarks.contestants import Bare, BareAcknowledged, Ours, OursAcknowledged, Push, PythonRedisLock, RedisPy
from django_cluster_lock import embedded

plots = {}  # by file name
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
HEAD = """\
# Benchmarks

Written by `python -m benchmarks`: every figure of this page comes from one run, with the contestants taking turns
round by round, on an embedded cluster of three primaries and three replicas that shares {cores} cores with the
measuring processes. Times depend on the machine; the ratios are what carries over.

{versions}
"""


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for a look; writes nothing")
    quick = parser.parse_args().quick
    settings.CLUSTER_LOCKS = {}
    with tempfile.TemporaryDirectory() as folder:
        folders = [f"{folder}/{name}" for name in ("cluster", "broker")]
        try:
            cluster = embedded.up(folders[0], owner=True)
            broker = embedded.up(folders[1], cluster=False, owner=True)
            page = "\n".join(sections(cluster, broker, quick=quick))
        finally:
            for each in folders:
                embedded.down(each)
    print(page)
    if not quick:
        PAGE.write_text(page)
        for name, plot in plots.items():
            PAGE.with_name(name).write_text(plot)


def sections(cluster, broker, *, quick):
    urls = cluster.urls
    packages = ("redis", "hiredis", "python-redis-lock", "django", "celery", "celery-singleton", "celery-once")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    yield HEAD.format(cores=os.cpu_count(), versions=f"Python {platform.python_version()}, {versions}.")
    yield from pairs(urls, rounds=5 if quick else 41)
    yield from handovers(urls, rounds=10 if quick else 200)
    yield from crowds(urls, quick=quick)
    yield from calls(cluster, broker, rounds=100 if quick else 2000)


def plot(name, title, seconds):
    """Keeps a plot, and gives the line of the page that shows it."""
    plots[f"benchmarks-{name}.svg"] = chart(title, {label: value * 1e6 for label, value in seconds.items()})
    return f"\n![{title}](benchmarks-{name}.svg)\n"


def calls(cluster, broker, rounds):
    first, duplicate = flights.measure(cluster, broker, rounds)
    yield "## A call of a Celery task\n"
    yield f"`.delay()` on a Redis broker: medians of {rounds:,} calls, each beside one of a plain task.\n"
    yield "| task | µs a call | of a plain one | µs a duplicate | of a plain call |\n|---|---:|---:|---:|---:|"
    for label, (plain, seconds) in first.items():
        beside, again = duplicate[label]
        yield f"| {label} | {seconds * 1e6:.0f} | {seconds / plain:.2f}x | {again * 1e6:.0f} | {again / beside:.2f}x |"
    yield plot("calls", "A call of a Celery task", _with_plain(first))
    yield plot("duplicates", "A call that is a duplicate", _with_plain(duplicate))


def _with_plain(times):
    """The seconds of a call by label; those of a plain one first."""
    plain = statistics.median(plain for plain, _ in times.values())
    return {flights.PLAIN: plain, **{label: seconds for label, (_, seconds) in times.items()}}


def pairs(urls, rounds):
    medians = pair.measure([Ours, Bare, RedisPy, PythonRedisLock, OursAcknowledged, BareAcknowledged], urls, rounds)
    yield "## Uncontended acquire and release\n"
    yield f"Medians of {rounds} rounds of {pair.PAIRS} pairs each.\n"
    yield "| lock | µs a pair | of the bare socket |\n|---|---:|---:|"
    for kind, seconds in medians.items():
        base = medians[BareAcknowledged if kind in (OursAcknowledged, BareAcknowledged) else Bare]
        yield f"| {kind.label} | {seconds * 1e6:.0f} | {seconds / base:.2f}x |"
    yield plot("pairs", "Uncontended acquire and release", {kind.label: seconds for kind, seconds in medians.items()})


def handovers(urls, rounds):
    contestants = [Ours, Bare, OursAcknowledged, BareAcknowledged, Push, PythonRedisLock, RedisPy]
    times = {kind: handover.summary(values) for kind, values in handover.measure(contestants, urls, rounds).items()}
    yield "## Hand-over to a waiter\n"
    yield (
        "From the holder's call of `release` to the return of the waiter's `acquire`, in two processes: "
        f"{rounds} rounds, each waiter met at another moment of its wait.\n"
    )
    yield "| lock | median µs | p99 µs | median, of the bare slice and release |\n|---|---:|---:|---:|"
    for kind, (median, worst) in times.items():
        base = times[BareAcknowledged if kind in (OursAcknowledged, BareAcknowledged) else Bare][0]
        yield f"| {kind.label} | {median * 1e6:.0f} | {worst * 1e6:.0f} | {median / base:.2f}x |"
    yield plot(
        "handovers", "Hand-over to a waiter, median", {kind.label: median for kind, (median, _) in times.items()}
    )


def crowds(urls, *, quick):
    yield "## Many locks\n"
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


if __name__ == "__main__":
    main()
