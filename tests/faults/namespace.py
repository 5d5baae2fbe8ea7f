"""A network of its own for the suite, in which links are cut by routing: packets vanish, as in a partition.

All nodes listen on one loopback address, each at ports of its own, and open connections from an address of its own.
So each direction of each link has a source, a destination and a port by which a rule can tell it. The namespaces, of
the network and of the processes, end with the suite's first process, and everything in them with it.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ENTERED = "CLUSTER_LOCK_FAULTS_ENTERED"
HOST = "127.0.0.1"
NOWHERE = "66"  # a routing table whose only route leads to a device that sends nothing on
SETUP = f"""\
link set lo up
rule add pref 100 lookup local
rule del pref 0
link add sink type veth peer name drain
link set sink up
route add default dev sink table {NOWHERE}
"""


def unshare(command):
    """The command in namespaces of its own."""
    root = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *root, "--net", "--pid", "--fork", "--kill-child", "--mount-proc", *command]


def why_not():
    """Why there can be no such namespace here; empty if there can."""
    for program in ("unshare", "setpriv", "ip"):
        if not shutil.which(program):
            return f"no {program} on PATH"
    setup = subprocess.run(unshare(["ip", "-batch", "-"]), input=SETUP, text=True, capture_output=True)
    return setup.stderr.strip().splitlines()[0] if setup.returncode else ""


def inside(work):
    """Calls ``work(folder, whole_links)``, where possible in this program started again in namespaces of its own.

    Args:
        work: gets a folder, which is removed in the end, and why links cannot be cut, which is empty if they can.

    Returns:
        The exit code of the program, which is what ``work`` returned.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that what was started is ended
    if folder := os.environ.get(ENTERED):
        subprocess.run(["ip", "-batch", "-"], input=SETUP, text=True, check=True)
        # Else a connection that would lead there is refused at once, and a node opens it without its own address.
        Path("/proc/sys/net/ipv4/conf/all/route_localnet").write_text("1")
        return work(Path(folder), "")
    with tempfile.TemporaryDirectory(prefix="cluster-lock-faults-") as folder:
        if reason := why_not():
            return work(Path(folder), reason)
        command = ["setpriv", "--pdeathsig", "KILL", *unshare([sys.executable, *sys.orig_argv[1:]])]
        entered = subprocess.Popen(command, env={**os.environ, ENTERED: folder})
        try:
            return entered.wait()
        finally:
            end(entered)


def end(entered):
    """Ends the first process of the namespaces, if it still runs, and so all of them."""
    children = Path(f"/proc/{entered.pid}/task/{entered.pid}/children")
    while entered.poll() is None:
        with suppress(OSError):
            for pid in children.read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            entered.wait(0.1)


@dataclass(frozen=True)
class Party:
    """One end of links: where its connections come from, and the ports it listens at, if any."""

    source: str
    ports: tuple[int, ...] = ()


class Links:
    """The links between parties: all whole at first. One that was cut twice is whole once it was healed twice."""

    def __init__(self):
        self._cuts = Counter()
        self._guard = threading.Lock()

    def cut(self, some, others):
        """Lets nothing pass between parties of the one group and of the other; gives what `heal` takes."""
        rules = [rule for one in some for other in others for rule in (*_between(one, other), *_between(other, one))]
        with self._guard:
            _change("add", [rule for rule in rules if not self._cuts[rule]])
            self._cuts.update(rules)
        return rules

    def heal(self, rules):
        with self._guard:
            self._cuts.subtract(rules)
            _change("del", [rule for rule in rules if not self._cuts[rule]])


def _change(verb, rules):
    script = "".join(f"rule {verb} pref 50 {rule} lookup {NOWHERE}\n" for rule in rules)
    subprocess.run(["ip", "-batch", "-"], input=script, text=True, check=True, capture_output=True)


def _between(opener, listener):
    """The rules for both directions of the connections that one opens to the other."""
    for port in listener.ports:
        yield f"from {opener.source} to {HOST} ipproto tcp dport {port}"
        yield f"from {HOST} to {opener.source} ipproto tcp sport {port}"
