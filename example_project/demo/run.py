"""The demo: two floods, which differ by the lock alone, and their account."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection

from demo.account import Account, account_of
from demo.faults import Faults, kill_a_primary, kill_a_web_process
from demo.flood import BUYERS, SOLD, Flood, orders_for
from demo.processes import DATABASE, PAYMENTS, WEB_PROCESSES, running_shop
from demo.report import Progress, report
from demo.tasks_report import report_tasks
from demo.tasks_run import TaskFloods
from django_cluster_lock import embedded
from shop.samples import create_events

GUARDED, UNGUARDED = "/api/events/{}/tickets/", "/api/events/{}/tickets/unguarded/"


@dataclass
class Demo:
    folder: Path
    requests: int
    calls: int
    seconds: float
    seed: int
    kill: bool
    lock: bool

    def run(self) -> bool:
        """Whether no guarantee was broken in the floods with the lock."""
        began = time.monotonic()
        self.migrate()
        with self.servers() as (cluster, broker):
            print(f"A cluster of {len(cluster.ports)} nodes and an empty database are ready.")
            print(f"Now {self.requests} requests, {BUYERS} at a time, to {WEB_PROCESSES} web processes, twice.")
            guarded = self.flood("with the lock", GUARDED if self.lock else UNGUARDED, cluster)
            control = self.flood("without it", UNGUARDED, None)
            print(*report(guarded, control), "", sep="\n")
            tasks = TaskFloods(self.folder, calls=self.calls, seed=self.seed, kill=self.kill, lock=self.lock)
            guarded_tasks, control_tasks = tasks.run(cluster, broker)
        print(*report_tasks(guarded_tasks, control_tasks), sep="\n")
        print(f"\nAll of it took {time.monotonic() - began:.0f} s.")
        return not guarded.breaches and not guarded_tasks.breaches

    def migrate(self) -> None:
        if connection.vendor != "sqlite":
            raise CommandError("The demo makes a SQLite database of its own. Run it without DATABASE_URL.")
        connection.close()
        connection.settings_dict["NAME"] = self.database
        call_command("migrate", verbosity=0)

    @property
    def database(self) -> Path:
        return self.folder / DATABASE

    @contextmanager
    def servers(self) -> Iterator[tuple[embedded.Cluster, embedded.Cluster]]:
        """A cluster and a broker of our own, which would stop even if we were killed."""
        with ExitStack() as stack:
            for name in "cluster", "broker":
                stack.callback(embedded.down, self.folder / name)
            cluster = embedded.up(self.folder / "cluster", owner=True)
            settings.CLUSTER_LOCKS["default"]["LOCATION"] = cluster.urls  # before anything here asks for a lock
            yield cluster, embedded.up(self.folder / "broker", cluster=False, owner=True)

    def flood(self, title: str, path: str, cluster: embedded.Cluster | None) -> Account:
        """One flood; with a cluster, one of its primaries is killed too."""
        log, payment_log = self.folder / "log", self.folder / PAYMENTS
        events = [event.pk for event in create_events(capacity=max(self.requests // 36, 1))]
        faults = Faults(wanted=self.kill and self.requests > 0)
        with (
            ThreadPoolExecutor(1) as pool,
            running_shop(self.folder, cluster.urls if cluster else ()) as shop,
            Flood(shop.port, path, orders_for(events, self.requests, self.seed)) as flood,
        ):

            def go_wrong() -> None:
                faults.web = kill_a_web_process(shop, flood)
                if cluster:
                    faults.primary = kill_a_primary(cluster, events, flood)

            going_wrong = pool.submit(go_wrong) if faults.wanted else None
            progress = Progress(lambda: progress_of(title, flood))
            while flood.under_way and time.monotonic() < flood.began + self.seconds:
                progress.show()
                time.sleep(0.1)
            flood.finish()
            progress.show(last=True)
            if going_wrong:
                going_wrong.result()
        account = account_of(flood, faults, events, payment_log, guarded=cluster is not None)
        if account.failed:
            print("The end of the web processes' log:", *log.read_text().splitlines()[-20:], sep="\n")
        return account


def progress_of(title: str, flood: Flood) -> str:
    answers = flood.by_status
    return (
        f"{title:>13}: {time.monotonic() - flood.began:4.1f} s, {answers.total():4} of {flood.total} requests, "
        f"{answers[SOLD]} tickets sold"
    )
