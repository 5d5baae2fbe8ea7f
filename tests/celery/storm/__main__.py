"""``python -m tests.celery.storm --help``

At its end it tells, from the log that the tasks wrote, whether any two runs of a key overlapped, whether each call was
answered, and whether it was by a run that it may have. Exits with 1 if not.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
from contextlib import nullcontext
from pathlib import Path

from django_cluster_lock import embedded
from tests import rabbitmq
from tests.celery.storm import process
from tests.celery.workload import setup
from tests.servers import KINDS, PREFIX_STEM
from tests.workers import setup_of

WRONG = ("overlaps", "unanswered", "misled", "refused")


def arguments():
    parser = argparse.ArgumentParser(prog="python -m tests.celery.storm", description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--keys", type=int, default=300)
    parser.add_argument(
        "--seed", type=int, default=None, help="of the calls and the kills; by default another each time"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two calls")
    parser.add_argument("--until-closed", action="store_true", help="call until the input is closed")
    parser.add_argument("--bare", action="store_true", help="the same without single_flight, which has to fail")
    parser.add_argument("--rabbitmq", action="store_true", help="with RabbitMQ as the broker")
    return parser.parse_args()


def start_servers_and_storm(bare, on_rabbitmq):
    """The program again, with servers of its own."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        cluster, broker = (KINDS[kind].start(base) for kind in ("valkey-cluster", "valkey-standalone"))
        try:
            values = process.values_of(setup_of(cluster, broker, base, PREFIX_STEM), bare=bare)
            with rabbitmq.running() if on_rabbitmq else nullcontext() as instead:
                if instead:
                    values |= {"broker": instead.url, "backend": values["broker"]}
                    values["conf"] = {"broker_transport_options": {}}
                return process.run(values, *sys.argv[1:]).returncode
        finally:
            for server in (cluster, broker):
                server.close()
                embedded.down(server.embedded.directory)


def main():
    given = arguments()
    if not setup:
        sys.exit(start_servers_and_storm(given.bare, given.rabbitmq))
    from tests.celery.storm.storm import Storm  # its tasks need a setup

    seed = random.randrange(2**32) if given.seed is None else given.seed
    storm = Storm(given.calls, given.keys, seed, workers=given.workers, pause=given.pause)
    if given.until_closed:
        threading.Thread(target=lambda: sys.stdin.read() or storm.over.set(), daemon=True).start()
    found = storm.run()
    sys.stdout.write(json.dumps({"seed": seed, **found}, indent=1) + "\n")
    sys.exit(any(found[wrong] for wrong in WRONG))


if __name__ == "__main__":
    main()
