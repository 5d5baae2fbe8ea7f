"""A storm: calls of all kinds on few keys, while children and whole workers are killed.

``python -m tests.celery.storm --help``

At its end it tells, from the log that the tasks wrote, whether any two runs of a key overlapped, whether each call was
answered, and whether it was by a run that it may have. Exits with 1 if not.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import nullcontext, suppress
from importlib import import_module
from itertools import count
from pathlib import Path

from celery import chain, chord, group
from celery.exceptions import ChordError
from celery.result import AsyncResult

from django_cluster_lock import embedded, single_flight
from django_cluster_lock.flights.results import SKIPPED
from tests import rabbitmq
from tests.celery.workload import app, note, setup
from tests.servers import KINDS, PREFIX_STEM
from tests.workers import Worker, redeliver, setup_of

POLICIES = ("join", "running", "rerun", "wait", "skip", "early")
LATE = {"acks_late": True, "reject_on_worker_lost": True}
VISIBILITY = 3  # seconds until a message that was not acknowledged is delivered again
MOST_WAITING = 150  # calls, so that the workers keep up
PATIENCE = 40  # seconds for the last calls to be answered
bare = setup.get("bare", False)


class Failed(Exception):
    pass


def task_of(policy):
    options = {"scope": "running" if policy == "running" else "flight", "queue_timeout": 15}
    if policy not in ("running", "early"):
        options["on_duplicate"] = policy

    def body(self, key, number, how="succeed"):
        run = f"{self.request.id}:{self.request.retries}:{time.monotonic_ns()}"
        note("start", key, id=self.request.id, run=run)
        time.sleep(random.uniform(0, 0.05))
        retries = how == "retry" and not self.request.retries
        note("end", key, id=self.request.id, run=None if retries else run)
        if retries:
            raise self.retry(countdown=0)
        if how == "fail":
            raise Failed(number, run)
        return [number, run]

    if not bare:
        body = single_flight(key="{key}", **options)(body)
    return app.task(bind=True, name=f"storm-{policy}", **({} if policy == "early" else LATE))(body)


TASKS = {policy: task_of(policy) for policy in POLICIES}


@app.task(name="storm-gather", **LATE)
def gather(values):
    return values


@app.task(name="storm-follow", **LATE)
def follow(value):
    return value


class Call:
    """A call, and where it got its answer from: results whose values are each a number and a run."""

    def __init__(self, policy, key, numbers, result, members=()):
        self.policy, self.key, self.numbers, self.result, self.members = policy, key, numbers, result, members

        self._answered = False

    def answered(self):
        self._answered = self._answered or self.result.ready()
        return self._answered

    def answers(self):
        """A pair for each of its numbers: the number that was run, and the run; None for what was skipped."""
        value = self.result.get(propagate=False)
        if isinstance(value, ChordError):
            return []
        values = value if len(self.numbers) > 1 else [value]
        return [each.args if isinstance(each, Failed) else each for each in values]


class Storm:
    def __init__(self, calls, keys, seed, workers=2):
        self.chance, self.seed = random.Random(seed), seed
        self.to_call, self.per_policy = calls, max(1, keys // len(POLICIES))
        self.numbers, self.names = count(1), count(1)
        self.calls, self.waiting, self.workers, self.killed = [], [], [], Counter()
        self.log = Log()
        for _ in range(workers):
            self.start_worker()
        for worker in self.workers:
            worker.ready()

    def start_worker(self):
        name = f"storm-{next(self.names)}"
        self.workers.append(Worker(setup, "prefork", name, 4, queue="celery", app="tests.celery.storm"))

    def run(self):
        """Calls and kills, waits for the answers, and gives the account."""
        started = time.monotonic()
        next_child, next_worker, next_delivery = 20, 120, started
        while len(self.calls) < self.to_call or not self.calm():
            now = time.monotonic()
            if len(self.calls) < self.to_call:
                self.call()
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
            if now > next_delivery and setup["broker"].startswith("redis"):  # RabbitMQ does so by itself
                redeliver(VISIBILITY)
                next_delivery = now + 1
        for worker in self.workers:
            worker.stop()
        return self.account(time.monotonic() - started)

    def calm(self, waiting=0):
        """Whether no more calls than that wait for their answers."""
        self.waiting = [call for call in self.waiting if not call.answered()]
        return len(self.waiting) <= waiting

    def call(self):
        policy = self.chance.choice(POLICIES)
        task, key = TASKS[policy], f"{policy}-{int(self.per_policy * self.chance.random() ** 3)}"
        how = self.chance.choices(["succeed", "fail", "retry"], [8, 1, 1])[0]
        form = "delay" if policy == "rerun" else self.chance.choice(["delay"] * 5 + [*FORMS])
        numbers = [next(self.numbers) for _ in range(3 if form in ("chord", "group") else 1)]
        note("call", key, numbers=numbers)
        if form == "delay":
            result, members = task.delay(key, numbers[0], how), ()
        else:
            result, members = FORMS[form](task, key, numbers, how)
        self.calls.append(Call(policy, key, numbers, result, members))
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
        with suppress(ProcessLookupError):
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            note("killed", "", pids=pids, victim=what, at=time.time())
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            self.killed[what] += 1

    def children(self):
        ready = (worker for worker in self.workers if "ready." in worker.log.read_text())
        return [pid for worker in ready for pid in children_of(worker)]

    def account(self, seconds):
        events = self.log.read()
        overlaps = overlapping(events)
        unanswered = [call for call in self.calls if not call.answered()]
        lost = [call for call in unanswered if not excused(call, events)]
        broker_losses = [call for call in lost if never_came_again(call, events)]
        if len(broker_losses) <= self.killed["worker"]:  # popped by a dying worker: one at most
            lost = [call for call in lost if call not in broker_losses]
        wrong = [] if bare else misled(self.calls, events)
        times = recoveries(events)
        return {
            "seed": self.seed,
            "calls": len(self.calls),
            "numbers": next(self.numbers) - 1,
            "keys": len({call.key for call in self.calls}),
            "killed": dict(self.killed),
            "runs": sum(event["what"] == "start" for event in events),
            "parked": sum(event["what"] == "parked" for event in events),
            "seconds": round(seconds, 1),
            "free after a kill": {"of": len(times), "median": middle(times), "worst": round(max(times, default=0), 3)},
            "overlaps": overlaps,
            "unanswered": [describe(call) for call in lost],
            "unanswered for Celery's own reasons": len(unanswered) - len(lost),
            "misled": wrong,
        }


def by_id(task, key, numbers, how):
    return task.apply_async((key, numbers[0], how), task_id=f"storm-{numbers[0]}-{time.time_ns()}"), ()


def by_name(task, key, numbers, how):
    return app.send_task(task.name, (key, numbers[0], how)), ()


def by_chain(task, key, numbers, how):
    result = chain(task.si(key, numbers[0], "succeed"), follow.s())()
    return result, (result.parent.id,)


def by_chord(task, key, numbers, how):
    result = chord([task.s(key, number) for number in numbers])(gather.s())
    return result, tuple(member.id for member in result.parent.results)


def by_group(task, key, numbers, how):
    result = group(task.s(key, number) for number in numbers)()
    return result, tuple(member.id for member in result.results)


FORMS = {"id": by_id, "name": by_name, "chain": by_chain, "chord": by_chord, "group": by_group}


class Log:
    """What the tasks and the storm wrote; lines are in the order in which they happened."""

    def __init__(self):
        self.path, self.place, self.events = Path(setup["log"]), 0, []

    def read(self):
        with self.path.open() as file:
            file.seek(self.place)
            while (line := file.readline()).endswith("\n"):
                self.place += len(line.encode())
                self.events.append(json.loads(line))
        return self.events

    def running(self):
        """The starts of runs that have not ended."""
        under_way = {}
        for event in self.read()[-2000:]:
            if event["what"] == "start":
                under_way[event["pid"]] = event
            elif event["what"] == "end":
                under_way.pop(event["pid"], None)
            elif event["what"] == "killed":
                for pid in event["pids"]:
                    under_way.pop(pid, None)
        return list(under_way.values())


def children_of(worker):
    pid = worker.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


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


def excused(call, events):
    """Whether Celery itself leaves a call unanswered.

    With early acknowledgement a message is lost with its worker. And a member of a chord whose child died after its
    result was stored is not counted, nor run again.
    """
    if call.policy == "early":
        return any(event["what"] == "killed" and event["victim"] == "worker" for event in events)
    for member in call.members:
        arrived = next((e for e in reversed(events) if e["what"] == "arrived" and e.get("id") == member), None)
        died = arrived and any(e["what"] == "killed" and arrived["pid"] in e["pids"] for e in events)
        if died and AsyncResult(member, app=app).ready():
            return True
    return False


def never_came_again(call, events):
    """Whether its message, or one of its members', was not seen after the last time that a worker was killed."""
    last = max(
        (place for place, e in enumerate(events) if e["what"] == "killed" and e["victim"] == "worker"), default=0
    )
    ids = [*call.members, call.result.id] if hasattr(call.result, "id") else list(call.members)
    unready = [each for each in ids if not AsyncResult(each, app=app).ready()]
    return any(not any(e.get("id") == each and e["what"] == "parked" for e in events[last:]) for each in unready)


def misled(calls, events):
    """Calls whose answer is not from a run that they may have it from."""
    ends = {event["run"]: (place, event) for place, event in enumerate(events) if event["what"] == "end"}
    starts = defaultdict(list)
    called = {}
    for place, event in enumerate(events):
        if event["what"] == "start":
            starts[event["key"]].append(place)
        elif event["what"] == "call":
            called[tuple(event["numbers"])] = place
    dead = {pid for event in events if event["what"] == "killed" for pid in event["pids"]}
    troubled = {event["key"] for event in events if event["what"] == "start" and event["pid"] in dead}
    found = []
    for call in calls:
        if not call.answered() or getattr(call.result, "state", "") == SKIPPED or call.policy == "early":
            continue
        place = called[tuple(call.numbers)]
        for number, answer in zip(call.numbers, call.answers(), strict=False):
            if answer is None and call.policy == "skip":
                continue
            if not isinstance(answer, list | tuple) or answer[1] not in ends:
                found.append((describe(call), "not from a run", repr(answer)))
                continue
            ended, run = ends[answer[1]]
            stale = any(ended < start < place for start in starts[call.key])
            rerun = call.policy == "rerun" and call.key not in troubled and answer[0] < number
            if run["key"] != call.key or stale or rerun or (call.policy == "wait" and answer[0] != number):
                found.append((describe(call), "another's", answer))
    return found


def describe(call):
    return f"{call.key} {call.numbers} {getattr(call.result, 'id', '')}"


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


def arguments():
    parser = argparse.ArgumentParser(prog="python -m tests.celery.storm", description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--keys", type=int, default=300)
    parser.add_argument(
        "--seed", type=int, default=None, help="of the calls and the kills; by default another each time"
    )
    parser.add_argument("--bare", action="store_true", help="the same without single_flight, which has to fail")
    parser.add_argument("--rabbitmq", action="store_true", help="with RabbitMQ as the broker")
    return parser.parse_args()


def start_servers_and_storm(bare, on_rabbitmq):
    """The program again, with servers of its own."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        cluster, broker = (KINDS[kind].start(base) for kind in ("valkey-cluster", "valkey-standalone"))
        try:
            values = setup_of(cluster, broker, base, f"{PREFIX_STEM}-storm")
            with rabbitmq.running() if on_rabbitmq else nullcontext() as instead:
                if instead:
                    values |= {"broker": instead.url, "backend": values["broker"]}
                    values["conf"] = {"broker_transport_options": {}}
                return run_storm(values, *sys.argv[1:], bare=bare).returncode
        finally:
            for server in (cluster, broker):
                server.close()
                embedded.down(server.embedded.directory)


def run_storm(values, *options, bare=False, **process):
    """The storm in a process of its own, with servers that run."""
    locks = values["locks"]["default"] | {"KEY_PREFIX": f"{values['prefix']}-storm", "SWEEP_INTERVAL": 1}
    values = values | {
        "prefix": f"{values['prefix']}-storm",
        "log": f"{values['log']}.storm",
        "locks": values["locks"] | {"default": locks},
        "bare": bare,
        "visibility_timeout": VISIBILITY,
    }
    Path(values["log"]).write_text("")
    environment = os.environ | {
        "FLIGHT_TESTS": json.dumps(values),
        "DJANGO_SETTINGS_MODULE": "tests.celery.settings",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-m", "tests.celery.storm", *options]
    return subprocess.run(command, env=environment, check=False, **process)


def main():
    given = arguments()
    if not setup:
        sys.exit(start_servers_and_storm(given.bare, given.rabbitmq))
    seed = random.randrange(2**32) if given.seed is None else given.seed
    account = Storm(given.calls, given.keys, seed).run()
    sys.stdout.write(json.dumps(account, indent=1) + "\n")
    sys.exit(bool(account["overlaps"] or account["unanswered"] or account["misled"]))


if __name__ == "__main__":
    import_module("tests.celery.storm").main()  # under the name that its tasks have
