"""Search all states of a shard and two clients, the nearest first, and print the shortest way to a broken promise."""

import argparse
import time
from array import array
from dataclasses import dataclass, field
from itertools import pairwise

from tests.model.states import NAMES, PROMISES, Broken, Model, State
from tests.model.world import Kind


@dataclass
class Found:
    """What a search came to.

    Args:
        states: how many distinct ones it met; `events` how many steps between them.
        depth: how many events lie between the beginning and the last one.
        finished: there are no more.
        broken: the promise that does not hold, if one does not; `trace` the shortest way there, in words.
    """

    states: int
    events: int
    depth: int
    finished: bool
    broken: Broken | None = None
    trace: list[str] = field(default_factory=list)


class Search:
    """A breadth-first search. States are kept as the numbers of their parts, of which there are few."""

    def __init__(self, model: Model):
        self.model = model
        self._numbers: dict = {}
        self._parts: list = []

    def run(self, limit: int) -> Found:
        """Search until so many states were met, or a promise is broken."""
        with self.model.flows.in_the_model():
            return self._run(limit)

    def _run(self, limit):
        begin = self._pack(self.model.begin())
        places = {begin: 0}
        keys, parents = [begin], array("l", [-1])
        depth, ends, events, place = 0, 1, 0, 0
        while place < len(keys):
            if place == ends:
                depth, ends = depth + 1, len(keys)
            state = self._unpack(keys[place])
            for event, after, broken in self.model.after(state):
                events += 1
                if broken:
                    trace = self._trace(keys, parents, place, event)
                    return Found(len(keys), events, depth + 1, False, broken, trace)
                key = self._pack(after)
                if key not in places:
                    places[key] = len(keys)
                    keys.append(key)
                    parents.append(place)
            if len(keys) >= limit:
                return Found(len(keys), events, depth + 1, False)
            place += 1
        return Found(len(keys), events, depth, True)

    def _pack(self, state):
        numbers, parts = self._numbers, self._parts
        key = []
        for part in (*state.nodes, state.facts, *state.clients):
            number = numbers.get(part)
            if number is None:
                number = numbers[part] = len(parts)
                parts.append(part)
            key.append(number)
        return tuple(key)

    def _unpack(self, key):
        parts = [self._parts[number] for number in key]
        clients = len(NAMES)
        return State(tuple(parts[: -clients - 1]), parts[-clients - 1], tuple(parts[-clients:]))

    def _trace(self, keys, parents, place, last):
        path = [place]
        while parents[path[-1]] >= 0:
            path.append(parents[path[-1]])
        path.reverse()
        told = []
        for before, after in pairwise(path):
            state = self._unpack(keys[before])
            event = next(event for event, found, _ in self.model.after(state) if self._pack(found) == keys[after])
            told.append(self.model.tell(state, event))
        told.append(self.model.tell(self._unpack(keys[place]), last))
        return told


def search(kind: Kind, limit: int, **kwargs) -> Found:
    return Search(Model(kind, **kwargs)).run(limit)


def add_options(parser, tries: int):
    """Add the options that tell which shard it is, what may happen to it, and which promises are watched."""
    parser.add_argument("--members", type=int, default=3, choices=(2, 3), help="nodes of the shard")
    parser.add_argument("--foreign", type=int, default=0, choices=(0, 1), help="replicas that belong to no shard")
    parser.add_argument("--servers", default="valkey", choices=("valkey", "7.2", "7.0", "6.2"), help="whose rules")
    parser.add_argument("--stays-recent", action="store_true", help="as before Redis 6.2.4")
    parser.add_argument("--any-age", action="store_true", help="cluster-replica-validity-factor 0")
    parser.add_argument("--faults", type=int, default=-1, help="of nodes and connections; -1: any number")
    parser.add_argument("--mishaps", type=int, default=-1, help="of requests; -1: any number")
    parser.add_argument("--times", type=int, default=-1, help="how often a third of a lease passes; -1: any number")
    parser.add_argument("--only-acquire", action="store_true", help="clients neither renew nor release")
    parser.add_argument("--detaches", action="store_true", help="clients detach their leases, and attach them")
    parser.add_argument("--tries", type=int, default=tries, help="how many leases each client tries for")
    parser.add_argument("--empties", action="store_true", help="former primaries may start again without data, at once")
    parser.add_argument("--gap", action="store_true", help="something may happen between WAIT and the command after it")
    parser.add_argument("--promise", action="append", choices=PROMISES)


def model_of(options) -> Model:
    """Return the model that the options ask for."""
    kind = Kind(options.members, options.foreign, options.servers, options.stays_recent, options.any_age)
    kind = kind._replace(empties=options.empties, gap=options.gap)
    kind = kind._replace(faults=options.faults, mishaps=options.mishaps, times=options.times)
    promises = options.promise or PROMISES
    keeps, detaches = not options.only_acquire, options.detaches
    return Model(kind, promises, tries=options.tries, keeps=keeps, detaches=detaches)


def print_broken(trace: list[str], broken: Broken):
    """Print how a promise was broken, an event a line."""
    for number, line in enumerate(trace, 1):
        print(f"{number:3}. {line}")
    print(f"Broken: {broken.told}.")


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.model.search", description=__doc__)
    parser.add_argument("--states", type=int, default=100_000, help="how many to search, if nothing is found")
    add_options(parser, tries=2)
    options = parser.parse_args()
    begun = time.monotonic()
    found = Search(model_of(options)).run(options.states)
    seconds = time.monotonic() - begun
    print(f"{found.states} states, {found.events} events, {found.depth} deep, {seconds:.1f} s")
    if found.broken:
        print_broken(found.trace, found.broken)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
