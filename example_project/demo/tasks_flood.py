"""Many calls of few tasks at once, from several processes."""

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from django.core.management import CommandError

from demo.processes import CALLS, RUNS, Shop
from demo.tasks_faults import PrimaryKilled, RunKilled
from shop.models import Event, Ticket

Entry = dict[str, Any]


class Notes:
    """What is appended to a file of JSON lines from now on."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self.entries: list[Entry] = []
        self._file = path.open()
        self._file.seek(0, 2)
        self._rest = ""

    def read(self) -> list[Entry]:
        """All entries so far; of a line that is being written, the rest comes later."""
        *lines, self._rest = (self._rest + self._file.read()).split("\n")
        self.entries += map(json.loads, lines)
        return self.entries

    def close(self) -> None:
        self._file.close()


def calls_for(events: Sequence[Event], tickets: Sequence[Ticket], number: int, seed: int) -> list[tuple[str, int]]:
    """So many calls, half of them for invoices and half for reports."""
    choice = random.Random(seed)
    subjects = ("bill", tickets), ("report", events)
    return [(task, choice.choice(them).pk) for task, them in (choice.choice(subjects) for _ in range(number))]


class TaskFlood:
    """Has every caller of a shop make the same calls, each process as fast as it can."""

    def __init__(self, shop: Shop, folder: Path, calls: Sequence[tuple[str, int]], suffix: str) -> None:
        self.shop, self.calls, self.suffix = shop, calls, suffix
        self.total = len(calls) * len(shop.callers)
        self.log = folder / CALLS
        self.notes, self.runs = Notes(self.log), Notes(folder / RUNS)
        self.killed: RunKilled | None = None
        self.primary: PrimaryKilled | None = None
        self.stopped = False
        self.began = self.ended = time.monotonic()

    def __enter__(self) -> Self:
        order = json.dumps({"calls": self.calls, "suffix": self.suffix, "log": str(self.log)})
        self.began = time.monotonic()
        for caller in self.shop.callers:
            if caller.stdin:
                caller.stdin.write(order + "\n")
                caller.stdin.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped = True
        self.notes.close()
        self.runs.close()

    def look(self) -> None:
        """Reads what was noted since."""
        self.notes.read()
        self.runs.read()

    def finish(self) -> None:
        """Waits until every caller is done."""
        for caller in self.shop.callers:
            if not caller.stdout or caller.stdout.readline() != "ready\n":
                raise CommandError(f"A process that calls tasks has died:\n{self.shop.log.read_text()}", returncode=2)
        self.ended = time.monotonic()
        self.stopped = True
        self.look()

    @property
    def under_way(self) -> bool:
        return len(self.closed) < self.total and all(caller.poll() is None for caller in self.shop.callers)

    @property
    def keys(self) -> set[str]:
        """What the calls are about."""
        return {f"{task} {subject}" for task, subject in self.calls}

    @property
    def made(self) -> list[Entry]:
        """The calls, as they were made."""
        return [entry for entry in self.notes.entries if "answered" not in entry]

    @property
    def closed(self) -> list[Entry]:
        """The calls that ended: with an answer or refused."""
        return [entry for entry in self.notes.entries if "answered" in entry or "refused" in entry]

    @property
    def begun(self) -> list[Entry]:
        """The runs' beginnings."""
        return [entry for entry in self.runs.entries if entry["what"] == "start"]

    def reached(self, share: float) -> bool:
        """Waits until that share of the calls is made; False if the flood ends before."""
        while len(self.made) < share * self.total:
            if self.stopped:
                return False
            time.sleep(0.02)
        return True
