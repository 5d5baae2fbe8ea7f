"""The clients as processes: started, paused, killed and replaced, and brought home at the end."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.history import LOG

HERE, THERE = "127.2.0.1", "127.2.0.2"  # where clients are: on the side of the majority, and on the other
TAIL = 20_000


@dataclass(frozen=True)
class Post:
    """What one process of the crew does.

    Attributes:
        source: the address it is at.
        proxied: whether it goes through the proxies that lose and delay.
        threads: how many work on each shard's locks.
    """

    contestant: str
    workload: str
    source: str = HERE
    proxied: bool = False
    threads: int = 1


@dataclass
class Member:
    """One process. It is ``paused`` over spans of time, in which it cannot be blamed for being late."""

    post: Post
    log: Path
    process: subprocess.Popen
    pauses: list[tuple[float, float]] = field(default_factory=list)
    died: float | None = None

    @property
    def name(self):
        return self.log.name.removesuffix(LOG)

    def has_begun(self):
        """Whether it has held a lock."""
        try:
            return any(line.startswith("grant ") for line in self.log.open())
        except FileNotFoundError:
            return False

    def does(self, state):
        """Whether it holds a lock, or waits for one, by what it last wrote: "holding", "waiting"."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - TAIL))
                lines = file.read().decode().splitlines()[1:]
        except FileNotFoundError:
            return False
        last, since = {}, {}
        for words in map(str.split, lines):
            if len(words) > 2:
                last[words[1]], since[words[1]] = words[0], float(words[2])
        wanted = {"holding": ("grant", "seen"), "waiting": ("call",)}[state]
        return any(kind in wanted and time.monotonic() - since[number] > 0.03 for number, kind in last.items())


def through(ports, url):
    """The URL with another port in place of its own."""
    start, _, port = url.rpartition(":")
    return f"{start}:{ports[int(port)]}"


class Crew:
    """All clients of a run.

    Args:
        task: what every client is told; see `client`.
        locks: those of each shard, by workload.
        proxied: the proxy's port of each that clients connect to.
    """

    def __init__(self, folder, task, locks, proxied):
        self._folder, self._task, self._locks, self._proxied = Path(folder), task, locks, proxied
        self._numbers = itertools.count()
        self._guard = threading.Lock()
        self.members = []

    def hire(self, post):
        """Starts a process."""
        number = next(self._numbers)
        log = self._folder / f"{post.contestant}.{number}{LOG}"
        task = {
            **self._task,
            "contestant": post.contestant,
            "workload": post.workload,
            "source": post.source if self._task["divided"] and not post.proxied else "",
            "proxied": self._proxied if post.proxied else {},
            "urls": [through(self._proxied, url) for url in self._task["urls"]] if post.proxied else self._task["urls"],
            "locks": [locks for locks in self._locks[post.workload] for _ in range(post.threads)],
            "seed": f"{self._task['seed']} {number}",
            "log": str(log),
        }
        command = [sys.executable, "-m", "tests.faults.client", json.dumps(task)]
        with (self._folder / f"{log.stem}.err").open("w") as errors:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors, start_new_session=True)
        member = Member(post, log, process)
        with self._guard:
            self.members.append(member)
        return member

    def doing(self, state, contestant=None):
        """A member that holds a lock, or waits for one, now; None if there is none. Nobody else is given it."""
        with self._guard:
            for member in self.members[::-1]:
                free = member.died is None and all(end <= time.monotonic() for _, end in member.pauses)
                if free and contestant in (None, member.post.contestant) and member.does(state):
                    self.members.remove(member)
                    self.members.insert(0, member)  # the next time it is another's turn
                    member.pauses.append((time.monotonic(), float("inf")))
                    return member
        return None

    def stop(self, member):
        os.kill(member.process.pid, signal.SIGSTOP)

    def resume(self, member):
        os.kill(member.process.pid, signal.SIGCONT)
        member.pauses[-1] = (member.pauses[-1][0], time.monotonic())

    def kill(self, member):
        """Kills it, and has another do its work; gives that one."""
        member.pauses.pop()
        member.died = time.monotonic()
        member.process.kill()
        member.process.wait()
        return self.hire(member.post)

    def dismiss(self):
        """Lets everybody end what they do and go; gives those who did not come home by themselves."""
        alive = [member for member in self.members if member.died is None]
        for member in alive:
            member.process.stdin.close()
        late = []
        for member in alive:
            try:
                member.process.wait(30)
            except subprocess.TimeoutExpired:
                late.append(member.name)
        return late

    def close(self):
        """Ends whoever is still there."""
        for member in self.members:
            if member.process.poll() is None:
                member.process.kill()
                member.process.wait()
            if member.process.stdin:
                member.process.stdin.close()
