"""One run: a cluster and its clients, harmed for a while; and what came of it."""

import itertools
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from django.core.management import call_command
from django.db import connections

from tests.faults import client, flights, history, workloads
from tests.faults.contestants import contestants_on
from tests.faults.crew import HERE, THERE, Crew, Post
from tests.faults.database import commits, database
from tests.faults.history import History
from tests.faults.layouts import ONE, Layout
from tests.faults.namespace import Links
from tests.faults.nodes import Nodes, Pair, home_of, slot_of, until
from tests.faults.proxy import Proxy
from tests.faults.world import Harm, World

SKEW = 0.5
WARM_UP, COOL_DOWN = 1.0, 3.0  # seconds without faults, after all have begun
LOCKS = {"exclusive": 10, "queue": 1, "keep": 12, "register": 6}  # of each of three shards, by workload
FULL_CREW = (
    Post("auto", "exclusive"),
    Post("auto", "exclusive"),
    Post("auto", "exclusive", THERE),
    Post("auto", "exclusive", proxied=True),
    Post("auto", "queue", threads=3),
    Post("auto", "queue", threads=3),
    Post("auto", "queue", THERE, threads=2),
    Post("auto", "keep"),
)
SMALL_CREW = (
    Post("auto", "exclusive"),
    Post("auto", "exclusive", THERE),
    Post("auto", "queue", threads=2),
)


@dataclass
class Run:
    """What a run leaves: what happened, which kinds were not run and why, and what went wrong with the faults."""

    layout: Layout
    history: History
    began: float
    server: str
    database: str
    not_run: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    latency: object = None
    flown: dict[str, flights.Flown] = field(default_factory=dict)


def crew_on(layout, *, small=False):
    """Who works there: on locks of one contestant alone, and on the register with all of them."""
    sources = (HERE,) if small and layout is not ONE else (HERE, THERE)
    threads = 6 // len(sources)  # each has a connection to the database, which takes a hundred
    registrars = (
        Post(name, "register", source, threads=threads) for name in contestants_on(layout) for source in sources
    )
    crew = (*(SMALL_CREW if small else FULL_CREW), *registrars)
    return [replace(post, threads=post.threads * 3 // layout.shards) for post in crew]


def names(shards):
    """The locks by workload, for each of them those of each shard."""
    homes = {workload: [[] for _ in range(shards)] for workload in LOCKS}
    for workload, count in LOCKS.items():
        number = 0
        while any(len(home) < count * 3 // shards for home in homes[workload]):
            lock = f"{workload}:{number}"
            home = homes[workload][home_of(slot_of(lock), shards)]
            if len(home) < count * 3 // shards:
                home.append(lock)
            number += 1
    return homes


def run(folder, layout, *, seconds, seed, crew, kinds, rounds=None, whole_links="", storming=True, after=None):
    """Lets faults happen for that many seconds.

    Args:
        rounds: how many times each kind happens at most.
        whole_links: why links cannot be cut; empty if they can.
        storming: whether tasks are called as well.
        after: called with the world at the end, when the clients are gone; its result is the run's `latency`.
    """
    logs = folder / "logs"
    logs.mkdir()
    shards = layout.shards
    locks = names(shards)
    by_shard = [[lock for homes in locks.values() for lock in homes[shard]] for shard in range(shards)]
    for lock in flights.LOCKS if storming else ():
        by_shard[home_of(slot_of(lock), shards)].append(lock)
    with ExitStack() as stack:
        nodes = (Nodes if layout.cluster else Pair)(folder, layout)
        stack.callback(nodes.close)
        proxy = Proxy({nodes.entrance(port) for port in nodes.cluster.ports})
        stack.callback(proxy.close)
        task = {
            "urls": nodes.urls,
            "cluster": layout.cluster,
            "skew": SKEW,
            "seed": seed,
            "divided": not whole_links,
            "database": stack.enter_context(database(folder)),
            "proxied": {},
            "source": "",
        }
        client.configure(task)
        call_command("migrate", verbosity=0)
        stack.callback(connections.close_all)
        registers = itertools.chain(*locks["register"])
        workloads.create_tables([f"{name} {lock}" for lock in registers for name in contestants_on(layout)])
        team = Crew(logs, task, locks, {port: proxy.remap(("", port))[1] for port in proxy.ports})
        stack.callback(team.close)
        storms = {}
        if storming:
            storms = stack.enter_context(flights.storms(folder, nodes, skew=SKEW, seed=seed, divided=not whole_links))
        contestants = sorted({post.contestant for post in crew})
        world = World(
            nodes, Links(), proxy, team, locks=by_shard, contestants=contestants, skew=SKEW, whole_links=whole_links
        )
        not_run = {kind.name: reason for kind in kinds if (reason := kind.why_not(world))}
        began = time.monotonic()
        threading.Thread(target=client.watch, args=(world.stalled,), daemon=True).start()
        for post in crew:
            team.hire(post)
        until(lambda: all(member.has_begun() for member in team.members), "every client to have held a lock")
        warm = time.monotonic()
        time.sleep(WARM_UP)
        possible = [kind for kind in kinds if kind.name not in not_run]
        Harm(world, possible, seed, seconds, rounds).run()
        time.sleep(COOL_DOWN)
        late = team.dismiss()
        flown = {name: storm.end() for name, storm in storms.items()}
        attempts, stalls = history.read(logs)
        told = History(
            attempts=attempts,
            stalls=stalls | {"": world.stalls},
            happenings=world.happenings,
            commits=commits(),
            pauses={member.name: member.pauses for member in team.members},
            deaths={member.name: member.died for member in team.members if member.died},
            warm=warm,
            end=time.monotonic(),
        )
        return Run(
            layout,
            told,
            began,
            server=nodes.version(),
            database=connections["default"].display_name,
            not_run=not_run,
            failures=world.failures,
            late=late,
            latency=after(world) if after else None,
            flown=flown,
        )
