"""The locks command: in this process, and as a program of its own for what only that shows."""

import json
import os
import subprocess
import sys

import pytest
from django.core.management import CommandError, call_command, load_command_class

from django_cluster_lock import LockLost, LockUnavailable, cache_lock, locks, names
from django_cluster_lock.inspection import Locks
from django_cluster_lock.management.tables import duration, table
from django_cluster_lock.printable import escaped
from django_cluster_lock.snapshots import ForcedRelease, Listing, Unread

SETTINGS = """\
from tests.settings import *
CLUSTER_LOCKS = {locks!r}
INSTALLED_APPS = [app for app in INSTALLED_APPS if app != "django_cluster_lock.fences"]  # it asks the database
DATABASES = {{"default": {{"ENGINE": "django.db.backends.postgresql", "HOST": "nowhere.invalid", "NAME": "x"}}}}
TEMPLATES = []  # an error of the admin's checks
"""


@pytest.fixture(autouse=True)
def locks_on(settings, cluster, prefix, without_fences):
    settings.CLUSTER_LOCKS = {
        "default": {"LOCATION": cluster.urls, "KEY_PREFIX": prefix, "TIMEOUT": 10},
        "other": {"LOCATION": cluster.urls, "KEY_PREFIX": f"{prefix}-other"},
        "nowhere": {"LOCATION": ["redis://127.0.0.1:1"], "KEY_PREFIX": prefix},
        "stranger": {"LOCATION": f"redis://:wrong@127.0.0.1:{cluster.embedded.ports[0]}", "KEY_PREFIX": prefix},
    }


@pytest.fixture
def run(capsys):
    """Runs the command in this process: ``run("list", code=1)`` gives what it printed."""

    def run(*args, code=0):
        try:
            call_command("locks", *args)
            ended = 0
        except SystemExit as stop:
            ended = stop.code
        printed = capsys.readouterr()
        assert (ended, printed.err if code == 0 else "") == (code, ""), printed
        return printed.out

    return run


@pytest.fixture
def run_json(run):
    return lambda *args, code=0: json.loads(run(*args, "--json", code=code))


@pytest.fixture
def enter(capsys):
    """Runs the command as its program does, but in this process; gives its exit code, and what it printed."""

    def enter(*args):
        with pytest.raises(SystemExit) as stop:
            load_command_class("django_cluster_lock", "locks").run_from_argv(["manage.py", "locks", *args])
        return stop.value.code, *capsys.readouterr()

    return enter


@pytest.fixture
def manage(settings, tmp_path):
    """Runs the command as a program, in a project whose own checks fail and whose database is gone."""
    (tmp_path / "broken.py").write_text(SETTINGS.format(locks=settings.CLUSTER_LOCKS))
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    inherited = {name: value for name, value in os.environ.items() if name != "PYTEST_VERSION"}

    def manage(*args, env=None, typed=""):
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "django", "locks", *args],
            env={**inherited, "PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": "broken", **(env or {})},
            input=typed,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return manage


def damage(cluster, prefix):
    keys = names.keys_of(prefix, "gone")
    cluster.admin().zadd(keys.index, {keys.member: 1})


# list


def test_list(run):
    with cache_lock("invoice:42") as lock, cache_lock("total", tag="order:7"):
        header, *rows, count = run("list").splitlines()
        assert header.split() == ["Lock", "State", "Age", "Left", "Waiters", "Fence", "Node", "Holder"]
        assert rows[0].startswith("invoice:42           held   ")
        assert str(lock.fence) in rows[0]
        assert f"pid {os.getpid()}" in rows[0]
        assert rows[1].startswith("total (tag order:7)  held   ")
        assert count == "2 locks"
    assert run("list") == "0 locks\n"


def test_list_as_json_has_the_documented_keys(run_json):
    with cache_lock("invoice:42") as lock:
        printed, fence = run_json("list"), lock.fence
    assert printed.keys() == {"locks", "unread"}
    assert printed["unread"] == []
    (shown,) = printed["locks"]
    assert shown.keys() == {
        *("name", "tag", "slot", "node", "state", "token", "fence", "owner", "age", "lease_left", "waiters", "parked")
    }
    assert (shown["name"], shown["tag"], shown["fence"], shown["waiters"]) == ("invoice:42", None, fence, [])
    assert shown["owner"].keys() == {"host", "pid", "thread", "task"}


def test_list_filters(run_json):
    def listed(*args):
        return [lock["name"] for lock in run_json("list", *args)["locks"]]

    with cache_lock(["invoice:1", "stock"]), cache_lock("elsewhere", alias="other"):
        assert listed() == ["invoice:1", "stock"]
        assert listed("invoice:*") == ["invoice:1"]
        assert listed("--node", locks["default"].show("stock").node, "stock") == ["stock"]
        assert listed("--task", "shop.*") == []
        assert listed("--older-than", "0") == ["invoice:1", "stock"]
        assert listed("--older-than", "3600") == []
        assert listed("--using", "other") == ["elsewhere"]


def test_names_cannot_play_tricks_on_the_terminal(run):
    with cache_lock("a\x1b[2J\nb\u202ec"):
        printed = run("list")
    assert r"a\x1b[2J\nb\u202ec" in printed
    assert "\x1b" not in printed


def test_what_could_not_be_read_is_a_warning(monkeypatch, capsys):
    partial = Listing((), (Unread("10.0.0.1:6379", ((0, 5460), (7000, 7000)), "node 10.0.0.1:6379: timed out"),))
    monkeypatch.setattr(Locks, "list", lambda self, *args, **filters: partial)
    with pytest.raises(SystemExit) as stop:
        call_command("locks", "list")
    assert stop.value.code == 1
    told = "Warning: slots 0-5460, 7000 could not be read: node 10.0.0.1:6379: timed out\n"
    assert capsys.readouterr() == ("0 locks\n", told)


# show


def test_show(run, run_json):
    with cache_lock("invoice:42") as lock:
        printed = run("show", "invoice:42")
        assert lock.token in printed
        assert f"Fence       {lock.fence}\n" in printed
        assert run_json("show", "invoice:42")["lock"]["token"] == lock.token
        assert "State    free\n" in run("show", "invoice:42", "--tag", "x", code=1)
    assert run_json("show", "invoice:42", code=1)["lock"]["state"] == "free"


def test_show_gives_the_waiters_in_order(run, cluster, prefix):
    seconds, _ = cluster.admin().time(target_nodes=cluster.admin().get_random_node())
    alive = (seconds + 60) * 1000
    cluster.admin().hset(
        names.keys_of(prefix, "a").record,
        mapping={"a": alive, "qh": 0, "qt": 2, "q0": "first", "q1": "second"}
        | {"wfirst": f"0:{alive}", "wsecond": f"1:{alive}"},
    )
    printed = run("show", "a").splitlines()
    place = printed.index(next(line for line in printed if line.startswith("Place")))
    assert [line.split()[:2] for line in printed[place + 1 :]] == [["1", "first"], ["2", "second"]]


# release


def test_release(run, run_json):
    lock, other = cache_lock("a"), cache_lock("b")
    lock.acquire()
    with other:
        printed = run("release", "a", "--no-input")
        assert "a: released\n" in printed
        assert printed.endswith("Released 1 lock.\n")
        assert other.owned()
    with pytest.raises(LockLost):
        lock.release()
    printed = run_json("release", "a", "--noinput", code=1)
    assert printed.keys() == {"dry_run", "locks", "outcomes"}
    assert printed["outcomes"] == [{"name": "a", "tag": None, "token": "", "outcome": "free"}]


def test_release_by_pattern_with_json(run_json):
    handles = [cache_lock(name) for name in ("invoice:1", "invoice:2", "stock")]
    for handle in handles:
        handle.acquire()
    tokens = {handle.name: handle.token for handle in handles}
    printed = run_json("release", "--pattern", "invoice:*", "--no-input")
    assert [each["outcome"] for each in printed["outcomes"]] == ["released", "released"]
    assert {each["name"]: each["token"] for each in printed["outcomes"]}.items() < tokens.items()
    assert handles[2].owned()
    assert run_json("release", "--pattern", "invoice:*", "--no-input", code=1)["outcomes"] == []


def test_release_with_a_tag(run):
    with cache_lock("total") as untagged, cache_lock("total", tag="order:7", raise_on_release_error=False) as tagged:
        run("release", "total", "--tag", "order:7", "--no-input")
        assert not tagged.owned()
        assert untagged.owned()


def test_release_dry_run(run, run_json):
    with cache_lock("a") as lock:
        assert run("release", "a", "--dry-run").endswith("Would release 1 lock.\n")
        printed = run_json("release", "a", "--dry-run")
        assert (printed["dry_run"], printed["locks"][0]["name"], printed["outcomes"]) == (True, "a", [])
        assert lock.owned()


@pytest.mark.parametrize("answer", ["", "n", "no", "YES please"])
def test_release_asks(run, monkeypatch, answer):
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or answer)
    with cache_lock("a") as lock:
        assert run("release", "a", code=1).endswith("Released 0 locks.\n")
        assert lock.owned()
    assert asked == ["Release 1 lock? [y/N] "]


def test_release_leaves_a_lock_alone_that_changed_hands_after_it_was_shown(run, monkeypatch):
    first, second = cache_lock("a"), cache_lock("a")
    first.acquire()

    def change_hands(question):
        first.release()
        second.acquire()
        return "y"

    monkeypatch.setattr("builtins.input", change_hands)
    assert "a: left alone: it changed hands or ended meanwhile\n" in run("release", "a", code=1)
    assert second.owned()
    second.release()


def test_release_hands_to_the_first_waiter(run, cluster, prefix):
    with cache_lock("a", raise_on_release_error=False):
        seconds, _ = cluster.admin().time(target_nodes=cluster.admin().get_random_node())
        alive = (seconds + 60) * 1000
        queue = {"a": alive, "qh": 0, "qt": 1, "q0": "waiter", "wwaiter": f"0:{alive}"}
        cluster.admin().hset(names.keys_of(prefix, "a").record, mapping=queue)
        assert "a: released, and handed to the first waiter\n" in run("release", "a", "--no-input")
    assert locks["default"].show("a").token == "waiter"


def test_release_goes_on_past_a_lock_whose_shard_does_not_answer(monkeypatch, capsys):
    def release(self, name, *, token, tag, fence):
        if name == "a":
            raise LockUnavailable(name, "node 10.0.0.1:6379: timed out")
        return ForcedRelease(name, tag, token, "released")

    monkeypatch.setattr(Locks, "release", release)
    with cache_lock(["a", "b"]), pytest.raises(SystemExit) as stop:
        call_command("locks", "release", "a", "b", "--no-input")
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert "a: its shard cannot be asked\nb: released\nReleased 1 lock.\n" in printed.out
    assert "Lock 'a' cannot be reached: node 10.0.0.1:6379: timed out." in printed.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Name the locks to release, or give a --pattern"),
        (["a", "--pattern", "*"], "one of them"),
        (["a", "--json"], "--no-input or --dry-run"),
        (["a", "--tag", "{"], "has a brace"),
    ],
)
def test_release_says_what_is_wrong_with_its_arguments(args, message):
    with pytest.raises(CommandError, match=message) as error:
        call_command("locks", "release", *args)
    assert error.value.returncode == 2


# verify, distribution


def test_verify(run, run_json, cluster, prefix):
    assert run("verify") == "0 keys examined, 0 findings, 0 repaired\n"
    damage(cluster, prefix)
    with cache_lock("healthy") as lock:
        printed = run("verify", code=1)
        assert "--repair would remove it from the index\n" in printed
        assert printed.endswith("3 keys examined, 1 finding, 0 repaired\n")
        found = run_json("verify", code=1)
        assert found.keys() == {"keys", "findings", "unread"}
        assert found["findings"][0].keys() == {*("kind", "name", "tag", "node", "key", "detail", "repair", "repaired")}
        assert "done: remove it from the index\n" in run("verify", "--repair")
        assert run_json("verify")["findings"] == []
        assert lock.owned()


def test_what_no_repair_is_safe_for_stays_found(run, cluster, prefix):
    cluster.admin().set(names.keys_of(prefix, "a").record, "a string")
    assert "none by itself" in run("verify", "--repair", code=1)


def test_distribution(run, run_json):
    with cache_lock([f"lock:{number}" for number in range(100)]):
        printed = run("distribution").splitlines()
        assert printed[0].split() == ["Node", "Slots", "Locks", "Waiters"]
        assert printed[-1].startswith("100 locks, 0 waiters, skew 1.")
        found = run_json("distribution")
    assert found.keys() == {"locks", "waiters", "skew", "nodes", "slots", "warnings", "unread"}
    assert found["nodes"][0].keys() == {"node", "slots", "locks", "waiters"}
    assert found["slots"][0].keys() == {"slot", "node", "locks", "waiters"}


def test_distribution_warns_of_a_shared_tag(capsys):
    with cache_lock([f"line:{number}" for number in range(100)], tag="order:7"):
        with pytest.raises(SystemExit) as stop:
            call_command("locks", "distribution")
        assert stop.value.code == 1
    assert "has 100 of 100 locks" in capsys.readouterr().err


# As a program


def test_as_a_program_in_a_broken_project(manage, cluster, prefix):
    with cache_lock("invoice:42"):
        listed = manage("list", "--settings", "broken", "--no-color")
        assert (listed.returncode, listed.stderr) == (0, "")
        assert "invoice:42" in listed.stdout
        shown = manage("show", "invoice:42", "--json")
        assert (shown.returncode, json.loads(shown.stdout)["lock"]["state"]) == (0, "held")
    assert manage("show", "unknown").returncode == 1
    assert manage("release", "unknown").returncode == 1
    damage(cluster, prefix)
    assert manage("verify").returncode == 1
    assert manage("verify", "--repair").returncode == 0
    assert manage("distribution").returncode == 0


def test_a_program_asks_and_needs_an_answer(manage):
    with cache_lock("a", raise_on_release_error=False) as lock:
        silent = manage("release", "a")
        assert (silent.returncode, "add --no-input" in silent.stderr) == (2, True)
        assert lock.owned()
        assert manage("release", "a", typed="y\n").returncode == 0
        assert not lock.owned()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["list", "--using", "nowhere"], "CLUSTER_LOCKS['nowhere'] cannot be read: node 127.0.0.1:1: "),
        (["show", "a", "--using", "nowhere"], "CLUSTER_LOCKS['nowhere'] cannot be read"),
        (["release", "a", "--no-input", "--using", "nowhere"], "CLUSTER_LOCKS['nowhere'] cannot be read"),
        (["verify", "--using", "nowhere"], "CLUSTER_LOCKS['nowhere'] cannot be read"),
        (["distribution", "--using", "nowhere"], "CLUSTER_LOCKS['nowhere'] cannot be read"),
        (["list", "--using", "stranger"], "invalid username-password pair"),
        (["list", "--using", "defualt"], "did you mean 'default'?"),
        (["show", "a", "--tag", ""], "is empty"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(enter, args, told):
    code, out, err = enter(*args)
    assert (code, out) == (2, "")
    assert told in err
    assert len(err.splitlines()) == 1


def test_so_it_is_in_a_program(manage):
    ended = manage("cluster", "up")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "CLUSTER_LOCK_EMBEDDED=1" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "args", [[], ["lsit"], ["show"], ["list", "--older-than", "-1"], ["list", "--older-than", "x"], ["cluster", "on"]]
)
def test_wrong_usage(enter, args):
    code, _, err = enter(*args)
    assert code == 2
    assert err.startswith("usage: ")


def test_the_embedded_cluster(manage, tmp_path):
    env = {"CLUSTER_LOCK_EMBEDDED": "1", "CLUSTER_LOCK_EMBEDDED_DIR": str(tmp_path / "embedded")}

    def status():
        ended = manage("cluster", "status", "--json", env=env)
        return ended.returncode, json.loads(ended.stdout)

    assert status() == (1, {"running": False, "ok": False, "directory": None, "nodes": []})
    try:
        up = manage("cluster", "up", env=env)
        assert (up.returncode, up.stderr) == (0, "")
        assert [line.split()[-1] for line in up.stdout.splitlines()[1:7]] == ["primary"] * 3 + ["replica"] * 3
        code, content = status()
        assert code == 0
        assert content["nodes"][0].keys() == {"port", "pid", "running", "role", "primary_port"}
    finally:
        down = manage("cluster", "down", env=env)
    assert (down.returncode, down.stdout) == (0, "Stopped.\n")
    assert status()[0] == 1


# Text


def test_tables_are_aligned_by_the_columns_that_a_terminal_uses():
    lines = list(table(("Lock", "Holder"), [("票", "x"), ("e\u0301a", "y")]))
    assert lines == ["Lock  Holder", "票    x", "e\u0301a    y"]


def test_tables_are_cut_at_the_width_of_the_terminal():
    lines = list(table(("Lock", "Holder"), [("a", "host, pid 1")], width=12))
    assert lines == ["Lock  Holder", "a     host,…"]


def test_escaped():
    assert escaped("a\x00\ud800ü 票") == r"a\x00\ud800ü 票"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0s"), (59.94, "59.9s"), (59.96, "1m00s"), (61, "1m01s"), (3599.9, "59m59s"), (7380, "2h03m")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
