"""One of the shop's Celery workers: ``python -m demo.worker CONCURRENCY``."""

import os
import sys

from celery.signals import worker_ready

from demo.serving import end_with_parent, say_ready
from ticketshop.celery import app


@worker_ready.connect
def ready(**_: object) -> None:
    say_ready()


if __name__ == "__main__":
    end_with_parent()
    worker = app.Worker(
        hostname=f"shop-{os.getpid()}@localhost",
        pool="prefork",
        concurrency=int(sys.argv[1]),
        loglevel="WARNING",
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    sys.exit(worker.exitcode)
