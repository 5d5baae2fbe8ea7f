"""Calls tasks, kills children and whole workers meanwhile, and waits for the answers."""

import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from itertools import count, cycle
from pathlib import Path

from django_cluster_lock import LockError
from tests.celery.storm.account import account
from tests.celery.storm.broker import Messages
from tests.celery.storm.calls import FORMS, SEVERAL, Call
from tests.celery.storm.keys import POLICIES, keys_of
from tests.celery.storm.log import Log
from tests.celery.storm.process import PATIENCE
from tests.celery.storm.tasks import TASKS, bare
from tests.celery.workload import note, setup
from tests.workers import Worker, redeliver

MOST_WAITING = 150  # calls, so that the workers keep up


class Storm:
    """Calls on that many keys, until there were so many, or until it is ``over``.

    Args:
        seed: of the calls and the kills.
        pause: seconds between two calls.
    """

    def __init__(self, calls, keys, seed, *, workers=2, pause=0.0):
        self.chance, self.over = random.Random(seed), threading.Event()
        self.to_call, self.per_policy = calls, max(1, keys // len(POLICIES))
        self.pause = pause
        self.numbers, self.names = count(1), count(1)
        self.calls, self.waiting, self.workers, self.killed = [], [], [], Counter()
        self.log, self.messages = Log(setup["log"]), None  # RabbitMQ keeps messages by itself, and loses none
        if setup["broker"].startswith("redis"):
            self.messages = Messages(setup["broker"], f"{setup['prefix']}:celery:")
        self.sources = cycle(setup.get("sources", [""]))
        for _ in range(workers):
            self.start_worker()
        for worker in self.workers:
            worker.ready()

    def start_worker(self):
        name, values = f"storm-{next(self.names)}", setup | {"source": next(self.sources)}
        module = "tests.celery.storm.tasks"
        self.workers.append(Worker(values, "prefork", name, 4, queue="celery", app=module))

    def run(self):
        """Calls and kills, waits for the answers, and gives the account."""
        started = time.monotonic()
        try:
            self.blow(started)
        finally:
            for worker in self.workers:
                worker.stop()
        seconds = time.monotonic() - started
        fates = self.messages.fates() if self.messages else None
        return account(self.calls, self.log.read(), self.killed, fates, seconds)

    def blow(self, started):
        next_child, next_worker, next_delivery = 20, 120, started
        while self.calling() or not (bare or self.calm()):  # who runs bare loses answers, which nobody asks for
            now = time.monotonic()
            if self.calling():
                self.call()
                time.sleep(self.pause)
                if len(self.calls) >= next_child:
                    self.kill_child()
                    next_child += self.chance.randint(15, 50)
                if len(self.calls) >= next_worker:
                    self.kill_worker()
                    next_worker += self.chance.randint(200, 400)
                if len(self.waiting) > MOST_WAITING and not self.calm(MOST_WAITING):
                    time.sleep(0.05)
                done = now
            elif now > done + PATIENCE:
                break
            else:
                time.sleep(0.1)
            if self.messages and now > next_delivery:
                redeliver(setup["visibility_timeout"])
                next_delivery = now + 1

    def calling(self):
        return len(self.calls) < self.to_call and not self.over.is_set()

    def calm(self, waiting=0):
        """Whether no more calls than that wait for their answers."""
        self.waiting = [call for call in self.waiting if not call.answered()]
        return len(self.waiting) <= waiting

    def call(self):
        policy = self.chance.choice(POLICIES)
        key = keys_of(policy, self.per_policy)[int(self.per_policy * self.chance.random() ** 3)]
        how = self.chance.choices(["succeed", "fail", "retry"], [8, 1, 1])[0]
        form = "delay" if policy == "rerun" else self.chance.choice(["delay"] * 4 + [*FORMS])
        numbers = [next(self.numbers) for _ in range(3 if form in SEVERAL else 1)]
        at = time.monotonic()
        note("call", key, numbers=numbers, at=at)
        try:
            result, members = FORMS[form](TASKS[policy], key, numbers, how)
        except LockError as error:
            note("called", key, numbers=numbers, error=type(error).__name__)
            return
        note("called", key, numbers=numbers, error="")
        self.calls.append(Call(form, key, numbers, result, members=members, at=at))
        self.waiting.append(self.calls[-1])

    def kill_child(self):
        """Kills a child while it runs a task, or any child."""
        running = [event["pid"] for event in self.log.running()]
        children = running if running and self.chance.random() < 0.7 else self.children()
        if children:
            self.kill("child", [self.chance.choice(children)])

    def kill_worker(self):
        worker = self.chance.choice(self.workers)
        assert worker.process.poll() is None, worker.log.read_text()[-4000:]
        worker.process.send_signal(signal.SIGSTOP)
        self.kill("worker", [worker.process.pid, *children_of(worker)])
        worker.process.wait()
        self.workers.remove(worker)
        self.start_worker()

    def kill(self, what, pids):
        """What stands in the log of a stopped process is all that it did."""
        with suppress(ProcessLookupError, FileNotFoundError):
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            note("killed", "", pids=pids, victim=what, parent=parent_of(pids[0]))
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            self.killed[what] += 1

    def children(self):
        ready = (worker for worker in self.workers if "ready." in worker.log.read_text())
        return [pid for worker in ready for pid in children_of(worker)]


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children_of(worker):
    pid = worker.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
