"""Walk at random through the states that `search` goes through in order: far deeper, and past most of them.

At each step the walk looks at all that may happen, so that a broken promise is seen one step off its way, and takes one
of them. Each walk prefers other things, since what breaks a promise takes much of one thing and little of another. The
same seed gives the same walks.
"""

import argparse
import random
import time
from dataclasses import dataclass, field

from tests.model.search import add_options, model_of, print_broken
from tests.model.states import NAMES, PLAIN, Broken, Model, State
from tests.model.world import Kind

STEPS = 400  # of one walk, after which another begins
HARM = {"stall", "die", "restart empty", "lag", "cut"}
ROUND = 20_000  # steps with one seed, where more are asked for
# How much more often than others each sort of event happens: one of these is drawn for each walk. A lease needs a shard
# in good health, so that harm has to be rare beside recovery on most walks; what breaks a promise needs harm.
WEIGHTS = {
    "harm": (0.3, 1, 3),
    "time": (0.3, 1, 3),
    "recovery": (1, 3, 9),
    "a client": (0.3, 1, 3, 9),
    "a mishap": (0.3, 1, 3),
}


@dataclass
class Walked:
    """What walks came to.

    Args:
        steps: how many were taken; `walks` in how many walks; `events` how many were looked at.
        grants: how many leases clients came to count on, on the way.
        broken: the promise that does not hold, if one does not; `trace` the way there, in words, shortened.
        taken: the length of the way before it was shortened.
    """

    steps: int
    walks: int
    events: int
    grants: int
    broken: Broken | None = None
    trace: list[str] = field(default_factory=list)
    taken: int = 0


def sort_of(event: tuple) -> str:
    """Return of which sort an event is: each is given a weight of its own."""
    if event[0] in HARM:
        return "harm"
    if event[0] == "time":
        return "time"
    if event[0] not in NAMES:
        return "recovery"
    return "a client" if event[2] in PLAIN else "a mishap"


class Walks:
    """Walks through one model; what was learned of its flows in one walk serves the next."""

    def __init__(self, model: Model, seed: int):
        self.model, self._random = model, random.Random(seed)

    def run(self, steps: int, longest: int = STEPS) -> Walked:
        """Walk until so many steps were taken, or a promise is broken; each walk takes `longest` at most."""
        walked = Walked(0, 0, 0, 0)
        with self.model.flows.in_the_model():
            while walked.steps < steps and not walked.broken:
                walked.walks += 1
                self._walk(walked, min(longest, steps - walked.steps))
        return walked

    def _walk(self, walked: Walked, steps: int) -> None:
        weights = {sort: self._random.choice(some) for sort, some in WEIGHTS.items()}
        state, way = self.model.begin(), []
        for _ in range(steps):
            sorts: dict[str, list[tuple[tuple, State]]] = {}
            for event, after, broken in self.model.after(state):
                walked.events += 1
                if broken:
                    walked.taken = len(way) + 1
                    walked.broken, walked.trace = broken, self._told(self._shortened([*way, event], broken))
                    return
                if after != state:
                    sorts.setdefault(sort_of(event), []).append((event, after))
            if not sorts:
                return
            (sort,) = self._random.choices(list(sorts), [weights[sort] for sort in sorts])
            event, after = self._random.choice(sorts[sort])
            walked.steps += 1
            walked.grants += sum(
                now.lease is not None and (was.lease is None or was.lease.token != now.lease.token)
                for was, now in zip(state.clients, after.clients, strict=True)
            )
            way.append(event)
            state = after

    def _shortened(self, way: list[tuple], broken: Broken) -> list[tuple]:
        """Leave out events as long as the same promise is broken without them: many at once, then one by one."""
        size = len(way) // 2
        while size:
            start = 0
            while start < len(way) - 1:
                shorter = self._broken_by(way[:start] + way[start + size :], broken.promise)
                if shorter is None:
                    start += size
                else:
                    way = shorter
            size //= 2
        return way

    def _broken_by(self, way: list[tuple], promise: str) -> list[tuple] | None:
        """Return the events up to the one that breaks a promise; None if one cannot happen, or none breaks it."""
        state = self.model.begin()
        for place, event in enumerate(way):
            found = next(((after, broken) for other, after, broken in self.model.after(state) if other == event), None)
            if found is None:
                return None
            state, broken = found
            if broken:
                return way[: place + 1] if broken.promise == promise else None
        return None

    def _told(self, way: list[tuple]) -> list[str]:
        state, told = self.model.begin(), []
        for event in way:
            told.append(self.model.tell(state, event))
            state = next(after for other, after, _ in self.model.after(state) if other == event)
        return told


def walk(kind: Kind, steps: int, seed: int, longest: int = STEPS, **kwargs) -> Walked:
    return Walks(Model(kind, **kwargs), seed).run(steps, longest)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.model.walk", description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000, help="how many to take, if nothing is found")
    parser.add_argument("--longest", type=int, default=STEPS, help="the most steps of one walk")
    parser.add_argument("--seed", type=int, help="of the first walks; drawn if not given")
    add_options(parser, tries=6)
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    left = options.steps
    while left > 0:
        begun = time.process_time()
        # A new model forgets the flows of the walks before, which would fill the memory in the end.
        walked = Walks(model_of(options), seed).run(min(left, ROUND), options.longest)
        seconds = time.process_time() - begun
        print(
            f"seed {seed}: {walked.steps} steps in {walked.walks} walks, {walked.events} events, "
            f"{walked.grants} leases, {seconds:.1f} s",
            flush=True,
        )
        if walked.broken:
            print_broken(walked.trace, walked.broken)
            print(f"It took {walked.taken} steps, of which {len(walked.trace)} are needed.")
            raise SystemExit(1)
        left -= walked.steps
        seed += 1


if __name__ == "__main__":
    main()
