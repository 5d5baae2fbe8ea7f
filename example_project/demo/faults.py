"""What goes wrong during a flood: a web process is killed in the middle of a sale, and a primary of the cluster."""

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection

from redis import RedisCluster

from demo.flood import Flood
from demo.processes import Shop
from django_cluster_lock import embedded


@dataclass
class Faults:
    """What was done, for the account; times are of the monotonic clock."""

    till: int | None = None  # the killed web process
    till_event: int = 0
    till_killed: float = 0.0
    till_pause: float = 0.0  # until a buyer of the event was served again
    primary: int | None = None  # the port of the killed primary
    primary_events: list[int] = field(default_factory=list)
    primary_killed: float = 0.0
    primary_pause: float = 0.0
    promoted_after: float = 0.0
    whole_again: bool = False


def kill_a_web_process(shop: Shop, flood: Flood, faults: Faults) -> None:
    """Kills one that has just paid and has not yet written the ticket."""
    if not flood.reached(0.1):
        return
    connection = HTTPConnection("127.0.0.1", shop.payment_port, timeout=10)
    connection.request("POST", "/hold")
    try:
        payment = json.load(connection.getresponse())
    except TimeoutError:  # nobody pays any more
        return
    finally:
        connection.close()
    shop.kill(int(payment["till"]))
    faults.till, faults.till_event, faults.till_killed = int(payment["till"]), int(payment["event"]), time.monotonic()


def kill_a_primary(cluster: embedded.Cluster, events: Sequence[int], flood: Flood, faults: Faults) -> None:
    """Kills the primary of the first event's lock, and starts it again once its replica has taken over."""
    if not flood.reached(0.35):
        return
    with RedisCluster.from_url(cluster.urls[0]) as client:
        # A lock's hash tag is its name.
        ports = {event: client.get_node_from_key(f"{{event:{event}}}").port for event in events}
    port = ports[events[0]]
    faults.primary_events = [event for event in events if ports[event] == port]
    os.kill(cluster.pid(port), signal.SIGKILL)
    faults.primary, faults.primary_killed = port, time.monotonic()
    # Not before: a primary that comes back empty in time for nobody to notice has forgotten its locks.
    while not promoted(cluster, port):
        if flood.stopped.wait(0.1):
            return
    faults.promoted_after = time.monotonic() - faults.primary_killed
    embedded.up(cluster.directory)
    status = embedded.status(cluster.directory)
    faults.whole_again = bool(status and status.ok)


def promoted(cluster: embedded.Cluster, dead: int) -> bool:
    """Whether another node has taken the place of the dead primary."""
    status = embedded.status(cluster.directory)
    primaries = [node for node in status.nodes if node.role == "primary"] if status else []
    return len(primaries) == 3 and all(node.port != dead for node in primaries)
