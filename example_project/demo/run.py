"""The demo: two floods, which differ by the lock alone, and their account."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from django.core.management import call_command
from django.db import connection
from shop.samples import create_events

from demo.account import Account, account_of, breaches
from demo.faults import Faults, kill_a_primary, kill_a_web_process
from demo.flood import BUYERS, Flood, orders_for
from demo.processes import WEB_PROCESSES, running_shop
from demo.report import Progress, conclusion, incidents, table
from django_cluster_lock import embedded

IN_FLIGHT = 0.5  # seconds in which an answer may arrive that was given before a kill
GUARDED, UNGUARDED = "/api/events/{}/tickets/", "/api/events/{}/tickets/unguarded/"


@dataclass
class Demo:
    folder: Path
    requests: int
    seconds: float
    seed: int
    kill: bool
    lock: bool

    def run(self) -> bool:
        """Whether no guarantee was broken in the flood with the lock."""
        began = time.monotonic()
        self.migrate()
        with self.cluster() as cluster:
            print(f"A cluster of {len(cluster.ports)} nodes and an empty database are ready.")
            print(f"Now {self.requests} requests, {BUYERS} at a time, to {WEB_PROCESSES} web processes, twice.")
            guarded, faults = self.flood("with the lock", GUARDED if self.lock else UNGUARDED, cluster)
            control, _ = self.flood("without it", UNGUARDED, None)
        print()
        print(*table(guarded, control), sep="\n")
        print()
        print(*incidents(faults), sep="\n")
        print()
        print(*conclusion(breaches(guarded), breaches(control, guarded=False)), sep="\n")
        print(f"It took {time.monotonic() - began:.0f} s.")
        return not breaches(guarded)

    def migrate(self) -> None:
        connection.close()
        connection.settings_dict["NAME"] = self.database
        call_command("migrate", verbosity=0)

    @property
    def database(self) -> Path:
        return self.folder / "shop.sqlite3"

    @contextmanager
    def cluster(self) -> Iterator[embedded.Cluster]:
        """A cluster of our own, which would stop even if we were killed."""
        directory = self.folder / "cluster"
        try:
            yield embedded.up(directory, owner=True)
        finally:
            embedded.down(directory)

    def flood(self, title: str, path: str, cluster: embedded.Cluster | None) -> tuple[Account, Faults]:
        """One flood; with a cluster, one of its primaries is killed too."""
        log, payment_log = self.folder / "log", self.folder / "payments.jsonl"
        events = [event.pk for event in create_events(capacity=max(self.requests // 36, 1))]
        servers = ",".join(cluster.urls) if cluster else ""
        faults = Faults()
        with running_shop(self.database, payment_log, log, servers) as shop, ThreadPoolExecutor(1) as pool:
            flood = Flood(shop.port, path, orders_for(events, self.requests, self.seed))

            def go_wrong() -> None:
                kill_a_web_process(shop, flood, faults)
                if cluster:
                    kill_a_primary(cluster, events, flood, faults)

            flood.start()
            try:
                going_wrong = pool.submit(go_wrong) if self.kill else None
                progress = Progress(title, flood)
                while flood.under_way and time.monotonic() < flood.began + self.seconds:
                    progress.show()
                    time.sleep(0.1)
            finally:
                flood.stop()
            progress.show(last=True)
            if going_wrong:
                going_wrong.result()
        faults.till_pause = flood.served_again([faults.till_event], faults.till_killed, IN_FLIGHT)
        faults.primary_pause = flood.served_again(faults.primary_events, faults.primary_killed, faults.promoted_after)
        account = account_of(flood, faults, events, payment_log)
        if account.failed:
            print("The end of the web processes' log:", *log.read_text().splitlines()[-20:], sep="\n")
        return account, faults
