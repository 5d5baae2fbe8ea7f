"""What goes wrong during a flood: a web process is killed in the middle of a sale, then a primary of the cluster."""

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import TypeVar

from django.core.management import CommandError
from redis import RedisCluster

from demo.flood import Flood, Kill
from demo.processes import Shop
from django_cluster_lock import embedded

T = TypeVar("T")
LONGEST_FAILOVER = 30.0  # seconds
ON_THEIR_WAY = 0.5  # seconds in which answers given before a kill still arrive


@dataclass
class Faults:
    wanted: bool
    web: Kill | None = None
    primary: Kill | None = None


def kill_a_web_process(shop: Shop, flood: Flood) -> Kill | None:
    """Kills one that has just taken a payment and has not yet written the ticket."""
    if not flood.reached(0.1):
        return None
    payment = hold(shop)
    if payment is None:
        return None
    shop.kill(int(payment["till"]))
    return Kill(int(payment["till"]), [int(payment["event"])], time.monotonic(), ON_THEIR_WAY)


def hold(shop: Shop) -> Mapping[str, str] | None:
    """The next payment or invoice, whose maker now waits for its answer; None if there is none for long."""
    connection = HTTPConnection("127.0.0.1", shop.payment_port, timeout=10)
    try:
        connection.request("POST", "/hold")
        held: Mapping[str, str] = json.load(connection.getresponse())
    except TimeoutError:  # nobody pays any more
        return None
    finally:
        connection.close()
    return held


def kill_a_primary(cluster: embedded.Cluster, events: Sequence[int], flood: Flood) -> Kill | None:
    """Kills the primary of the first event's lock."""
    if not flood.reached(0.35):
        return None
    ports = ports_of(cluster, {event: f"event:{event}" for event in events})
    port = ports[events[0]]
    at, replaced = replace_primary(cluster, port)
    return Kill(port, [event for event in events if ports[event] == port], at, replaced)


def ports_of(cluster: embedded.Cluster, names: Mapping[T, str]) -> dict[T, int]:
    """The ports of the primaries that have the locks of these names."""
    with RedisCluster.from_url(cluster.urls[0]) as client:
        # A lock's hash tag is its name.
        return {what: client.get_node_from_key(f"{{{name}}}").port for what, name in names.items()}


def replace_primary(cluster: embedded.Cluster, port: int) -> tuple[float, float]:
    """Kills a primary, and starts it again once its replica has taken over. When, and how many seconds after that."""
    os.kill(cluster.pid(port), signal.SIGKILL)
    killed = time.monotonic()
    # Not before: a primary that comes back empty in time for nobody to notice has forgotten its locks.
    while not is_replaced(cluster, port):
        if time.monotonic() > killed + LONGEST_FAILOVER:
            raise CommandError("No replica took over from the killed primary. Is the machine very busy?", returncode=2)
        time.sleep(0.05)
    replaced = time.monotonic() - killed
    if embedded.up(cluster.directory).ports != cluster.ports:
        raise CommandError(
            "The killed primary did not come back to its cluster. Is the machine very busy?", returncode=2
        )
    return killed, replaced


def is_replaced(cluster: embedded.Cluster, port: int) -> bool:
    """Whether another node serves in the place of this dead one."""
    status = embedded.status(cluster.directory)
    primaries = [node.port for node in status.nodes if node.role == "primary"] if status else []
    return len(primaries) == 3 and port not in primaries
